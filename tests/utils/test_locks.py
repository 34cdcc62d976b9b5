"""One writer for each folder; whoever dies holds nothing."""

import os
import signal
import socket
import time

import pytest

from peft_vprompt.errors import FolderInUseError
from peft_vprompt.utils import locks
from peft_vprompt.utils.locks import LOCK, Claim, Holder, holder_of, only_writer


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold the lock of a folder until they are ended."""
    children = []

    def start(folder=tmp_path):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with only_writer(folder):
                    os.write(writing, b"x")
                    signal.pause()
            finally:
                os._exit(0)
        children.append(child)
        assert os.read(reading, 1) == b"x"
        return child

    yield start
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def end(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def write_lock(folder, pid, host, start=None):
    lines = [
        "filelock/2",
        f"pid={pid}",
        f"host={host}",
        "mode=lease",
        f"token={'0' * 32}",
        f"duration={locks.LEASE!r}",
    ]
    lines += [] if start is None else [f"start={start}"]
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text("\n".join(lines) + "\n")


def test_a_second_writer_is_told_who_the_first_is(holder, tmp_path):
    child = holder()
    started = time.monotonic()
    with (
        pytest.raises(FolderInUseError, match=f"process {child} on {socket.gethostname()}.*--wait"),
        only_writer(tmp_path),
    ):
        pass
    assert time.monotonic() - started < 5
    with only_writer(tmp_path / "inside"):  # another folder
        pass


def test_the_lock_goes_with_its_owner(holder, tmp_path):
    for _ in range(3):
        end(holder())
    with only_writer(tmp_path):
        assert (tmp_path / LOCK).is_file()
    assert not list(tmp_path.iterdir())


def test_the_same_process_does_not_write_twice(tmp_path):
    with only_writer(tmp_path), pytest.raises(FolderInUseError, match=f"process {os.getpid()}"), only_writer(tmp_path):
        pass


def test_waiting_ends_with_the_other_writer(holder, tmp_path):
    child = holder()
    if os.fork() == 0:
        time.sleep(0.5)
        os.kill(child, signal.SIGKILL)
        os._exit(0)
    started = time.monotonic()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.05)
    with only_writer(tmp_path, wait=True):
        pass
    assert time.monotonic() - started < 10
    os.wait()


def test_a_process_number_that_was_given_again_holds_nothing(tmp_path):
    write_lock(tmp_path, os.getppid(), socket.gethostname(), start=1)
    with only_writer(tmp_path):
        pass


def test_a_dead_owner_on_another_host_is_known_by_its_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.5)
    write_lock(tmp_path, 1, "another-host")
    with only_writer(tmp_path):
        pass


def test_an_owner_on_another_host_that_lives_keeps_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 1.0)
    monkeypatch.setattr(locks, "PATIENCE", 1.5)
    write_lock(tmp_path, 1, "another-host")
    if (child := os.fork()) == 0:
        while True:
            os.utime(tmp_path / LOCK)
            time.sleep(0.1)
    try:
        with pytest.raises(FolderInUseError, match="process 1 on another-host, last seen"), only_writer(tmp_path):
            pass
    finally:
        end(child)


def test_a_writer_that_lost_its_lock_writes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    with only_writer(tmp_path) as writer:
        writer.check()
        (tmp_path / LOCK).unlink()
        write_lock(tmp_path, 1, "another-host")
        deadline = time.monotonic() + 10
        with pytest.raises(FolderInUseError, match="was lost.*Start again"):
            while time.monotonic() < deadline:
                writer.check()
                time.sleep(0.05)


def test_of_several_processes_of_one_training_the_first_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with only_writer(tmp_path), only_writer(tmp_path):
        assert not (tmp_path / LOCK).exists()


def test_a_file_has_a_lock_of_its_own(tmp_path):
    with only_writer(tmp_path / "a", is_file=True), only_writer(tmp_path / "b", is_file=True):
        pass
    assert not list(tmp_path.iterdir())


def test_a_claim_does_not_wait_and_says_who_holds_it(tmp_path):
    place = tmp_path / "locks" / "a"
    first, second = Claim(place), Claim(place)
    assert holder_of(place) is None
    with first.tried() as writer, second.tried() as refused:
        assert refused is None and not writer.is_lost
        holder = holder_of(place)
        assert str(holder) == f"process {os.getpid()} on {socket.gethostname()}"
        assert holder.lives_here and not holder.is_gone and abs(holder.seen.timestamp() - time.time()) < 60
    with second.tried() as writer:
        assert writer is not None
    assert holder_of(place) is None


def test_a_holder_of_this_host_that_is_dead_is_gone(tmp_path):
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert Holder(child, socket.gethostname(), None).is_gone
    assert not Holder(child, "another-host", None).is_gone and not Holder(child, "another-host", None).lives_here
