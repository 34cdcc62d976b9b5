"""Work that processes share, and how they end together. Processes themselves are in tests/cli/test_launchers.py."""

import os
import time

import pytest
from torch.distributed import HashStore

from peft_vprompt.utils import process_watch
from peft_vprompt.utils.process_watch import Watch, set_restart_hint
from peft_vprompt.utils.processes import ALONE, Processes, all_processes


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", [0, 1, 5, 8])
def test_shares_are_contiguous_and_nearly_equal(count, length):
    work = list(range(length))
    shares = [Processes(number, count).share(work) for number in range(count)]
    assert sum(shares, []) == work
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_shares_with_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert all_processes() == ALONE and ALONE.is_first
    assert ALONE.gather([1, 2]) == [1, 2] and ALONE.from_first(lambda: 3) == 3
    with ALONE.one_by_one():
        ALONE.wait()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_launchers_that_share_out_weights_are_refused(name, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match=f"Received: a launcher for {name}"):
        all_processes()


@pytest.fixture
def watch(monkeypatch):
    """Start watches of two processes, which end by a note of what they say."""
    monkeypatch.setattr(process_watch, "LOOK", 0.01)
    monkeypatch.setattr(process_watch, "BEAT", 0.02)
    monkeypatch.setattr(process_watch, "SILENCE", 0.3)
    set_restart_hint("It goes on.")
    store, started = HashStore(), []

    def start(number: int):
        said = []
        started.append(Watch(Processes(number, 2), store, said.append))
        started[-1].start()
        return started[-1], said

    yield start
    for each in started:
        each.leave()


def until(condition):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 5
        time.sleep(0.01)


def test_living_processes_go_on(watch):
    (first, of_first), (second, of_second) = watch(0), watch(1)
    time.sleep(0.5)
    assert not of_first and not of_second
    second.leave()  # it is done, which is no silence
    time.sleep(0.5)
    assert not of_first and first.is_alive()


def test_who_ends_says_so_and_the_others_end_without_a_word(watch):
    (first, of_first), (_, of_second) = watch(0), watch(1)
    assert first.claim()
    until(lambda: of_second)
    assert of_second == [None] and not of_first


def test_a_process_that_stands_still_is_noticed_and_ended(watch, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(pid))
    second, _ = watch(1)
    second._left.set()  # it counts no more, and has not said that it is done
    second.join()
    _, of_first = watch(0)
    until(lambda: of_first)
    (message,) = of_first
    assert message.startswith(f"Process 1 of 2 ({os.getpid()} on ") and message.endswith("All were ended. It goes on.")
    assert killed == [os.getpid()]


def test_a_launcher_that_has_gone_is_noticed(watch, monkeypatch):
    (_, of_first), (_, of_second) = watch(0), watch(1)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    until(lambda: of_first and of_second)
    # One of them says it.
    assert sorted([of_first, of_second], key=str) == [["The launcher has gone. It goes on."], [None]]
