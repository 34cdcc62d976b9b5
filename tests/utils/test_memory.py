"""The most memory that was in use while a block ran."""

import numpy as np

from peft_vprompt.utils.memory import kernel_field, most_resident_bytes, peak_memory


def test_a_peak_is_seen_though_it_is_gone_at_the_end():
    with peak_memory() as peak:
        before = peak.before
        block = np.ones(60 * 2**20, dtype=np.uint8)
        del block
    assert 55 * 2**20 < peak.bytes - before < 120 * 2**20


def test_where_there_is_no_such_file(tmp_path):
    assert kernel_field(str(tmp_path / "status"), "VmHWM") == 0 < most_resident_bytes()
