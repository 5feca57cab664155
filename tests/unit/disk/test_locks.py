"""flock as ``disk.locks`` spells it."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from millpond.core.errors import NotReady, WouldBlock
from millpond.disk import locks
from millpond.disk.locks import SharedLock


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "promise.lock")


def open_descriptors(path: str) -> int:
    return sum(
        os.path.realpath(f"/proc/self/fd/{number}") == os.path.realpath(path) for number in os.listdir("/proc/self/fd")
    )


def test_many_hold_the_shared_side_at_once_and_the_other_side_waits_for_all(path: str) -> None:
    lock, all_in = SharedLock(path), threading.Barrier(9)

    def hold() -> None:
        with lock.shared(wait=False):
            all_in.wait()
            all_in.wait()

    exclusive = locks.open_lock_file(path)
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(hold) for _ in range(8)]
        all_in.wait()
        assert not locks.try_lock(exclusive, exclusive=True)
        all_in.wait()
        for one in held:
            one.result()
    assert locks.try_lock(exclusive, exclusive=True)
    os.close(exclusive)


def test_without_waiting_a_taken_lock_says_so_and_with_waiting_it_comes(path: str) -> None:
    lock, exclusive = SharedLock(path), locks.open_lock_file(path)
    locks.lock(exclusive, exclusive=True)
    with pytest.raises(WouldBlock), lock.shared(wait=False):
        pass
    threading.Timer(0.1, locks.unlock, [exclusive]).start()
    with lock.shared(wait=True):
        assert not locks.try_lock(exclusive, exclusive=True)
    os.close(exclusive)


def test_a_new_thread_shares_the_lock_on_a_disk_that_takes_no_writes_any_more(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.close(locks.open_lock_file(path))
    really_open = os.open

    def refuse(file: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return really_open(file, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with SharedLock(path).shared(wait=False):
        pass


def test_a_failure_lets_the_lock_go(path: str) -> None:
    lock, exclusive = SharedLock(path), locks.open_lock_file(path)
    with pytest.raises(KeyError), lock.shared(wait=True):
        raise KeyError
    assert locks.try_lock(exclusive, exclusive=True)
    os.close(exclusive)


def test_threads_that_ended_leave_no_descriptor(path: str) -> None:
    lock = SharedLock(path)

    def use() -> None:
        with lock.shared(wait=True):
            pass

    for _ in range(20):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert open_descriptors(path) == 0


def test_closing_lets_all_go_and_never_under_one_who_holds_it(path: str) -> None:
    lock, exclusive = SharedLock(path), locks.open_lock_file(path)
    with lock.shared(wait=True):
        lock.close()
        assert not locks.try_lock(exclusive, exclusive=True)
    assert locks.try_lock(exclusive, exclusive=True)
    with pytest.raises(NotReady), lock.shared(wait=False):
        pass
    lock.close()
    os.close(exclusive)
    assert open_descriptors(path) == 0


def test_who_is_asked_to_wait_does_and_what_was_asked_runs_out(path: str) -> None:
    lock, exclusive = SharedLock(path), locks.open_lock_file(path)
    locks.ask(exclusive)
    with pytest.raises(WouldBlock), lock.shared(wait=False):
        pass
    with lock.shared(wait=True):  # a killed process asks no longer
        assert not locks.is_asked(exclusive)
    locks.ask(exclusive)
    locks.ask_no_more(exclusive)
    with lock.shared(wait=False):
        pass
    os.close(exclusive)


@pytest.mark.parametrize("word", [b"", b"\x01", bytes(8), b"\xff" * 8, (2**40).to_bytes(8, "little")])
def test_a_word_from_before_keeps_nobody_waiting(path: str, word: bytes) -> None:
    lock, exclusive = SharedLock(path), locks.open_lock_file(path)
    os.pwrite(exclusive, word, 0)
    with lock.shared(wait=False):
        pass
    os.close(exclusive)
