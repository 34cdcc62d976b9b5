"""Bars over batches: all of them come through, and a file gets no bar."""

from rich.console import Console

from peft_vprompt.utils import progress
from peft_vprompt.utils.progress import with_progress


def test_all_batches_come_through(capsys):
    for label in (None, "Test"):
        assert list(with_progress([1, 2, 3], label)) == [1, 2, 3]
    assert capsys.readouterr().out == ""


def test_a_screen_shows_what_is_done(monkeypatch, capsys):
    class Screen(progress.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options, console=Console(force_terminal=True, width=100))

    monkeypatch.setattr(progress, "Progress", Screen)
    assert list(with_progress([1, 2, 3], "Test")) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().out
