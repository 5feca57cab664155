"""What was used and promised is noted in whole groups, and noting it never stands in a reader's way."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from unit.store.repositories import Repository, blob, noise, read, soon

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NotReady
from millpond.disk import locks
from millpond.store import touch_log
from millpond.store.touch_log import Group, Kind, TouchLog, decode, encode

NOW_MS = 1_700_000_000_000
KEY, OTHER_KEY = b"k" * 33, b"o" * 33


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TouchLog]:
    log = TouchLog(str(tmp_path), lambda: NOW_MS)
    yield log
    log.close()


def groups(directory: Path) -> list[Group]:
    paths = sorted(directory.iterdir(), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [group for path in paths for group in decode(path.read_bytes())]


def test_what_was_appended_is_in_the_log_at_once(log: TouchLog, tmp_path: Path) -> None:
    log.append(Kind.LEASED, [KEY, OTHER_KEY])
    log.append(Kind.NAME_BOUND, [b"n" * 32])
    log.append(Kind.LEASED, [])
    assert groups(tmp_path) == [
        Group(Kind.LEASED, NOW_MS, [KEY, OTHER_KEY]),
        Group(Kind.NAME_BOUND, NOW_MS, [b"n" * 32]),
    ]


def test_uses_are_written_together_each_once(log: TouchLog, tmp_path: Path) -> None:
    log.used([KEY])
    log.used([OTHER_KEY, KEY])
    assert groups(tmp_path) == []
    log.flush()
    log.flush()
    assert groups(tmp_path) == [Group(Kind.USED, NOW_MS, [KEY, OTHER_KEY])]


def test_many_uses_do_not_wait_for_a_flush(log: TouchLog, tmp_path: Path) -> None:
    for i in range(3000):
        log.used([b"%033d" % i])
    assert groups(tmp_path)


def test_uses_are_written_when_the_log_is_closed(log: TouchLog, tmp_path: Path) -> None:
    log.used([KEY])
    log.close()
    log.close()
    log.append(Kind.LEASED, [KEY])
    log.used([KEY])
    log.flush()
    assert groups(tmp_path) == [Group(Kind.USED, NOW_MS, [KEY])]


def test_a_full_log_is_followed_by_another_and_few_are_kept(
    log: TouchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TOUCH_LOG_BYTES", 1000)
    for i in range(500):
        log.append(Kind.LEASED, [b"%033d" % i])
    found = groups(tmp_path)
    assert 2 <= len(list(tmp_path.iterdir())) <= 4
    assert [group.rows for group in found] == [[b"%033d" % i] for i in range(500 - len(found), 500)]
    assert all(path.stat().st_size < 1100 for path in tmp_path.iterdir())


def test_who_writes_a_log_holds_its_lock(log: TouchLog, tmp_path: Path) -> None:
    (path,) = tmp_path.iterdir()
    descriptor = os.open(path, os.O_RDONLY)
    assert not locks.try_lock(descriptor, exclusive=True)
    log.close()
    assert locks.try_lock(descriptor, exclusive=True)
    os.close(descriptor)


def test_threads_do_not_tear_each_others_groups(log: TouchLog, tmp_path: Path) -> None:
    def note(caller: int) -> None:
        for i in range(200):
            log.append(Kind.LEASED, [b"%033d" % (caller * 1000 + i)] * 20)
            log.used([b"%033d" % i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(8)))
    leases = [group for group in groups(tmp_path) if group.kind is Kind.LEASED]
    assert len(leases) == 1600
    assert all(len(set(group.rows)) == 1 for group in leases)


class FullDisk:
    """Whose writes of logs stop in the middle, or do not begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room_bytes: int) -> None:
        self.is_full = True
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if not self.is_full or not os.readlink(f"/proc/self/fd/{descriptor}").endswith(".log"):
                return real(descriptor, data)
            if not room_bytes:
                raise OSError(errno.ENOSPC, "full")
            return real(descriptor, data[:room_bytes])

        monkeypatch.setattr(touch_log.os, "write", write)


@pytest.mark.parametrize("room_bytes", [0, 1, 30])
def test_on_a_full_disk_leases_are_refused_and_hints_let_go(
    log: TouchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    log.append(Kind.LEASED, [KEY])
    disk = FullDisk(monkeypatch, room_bytes=room_bytes)
    with pytest.raises(NotReady):
        log.append(Kind.LEASED, [OTHER_KEY])
    log.append(Kind.NAME_USED, [b"n" * 32])
    log.used([KEY])
    log.flush()
    disk.is_full = False
    log.append(Kind.LEASED, [KEY])  # is not hidden behind half a group
    assert groups(tmp_path) == [Group(Kind.LEASED, NOW_MS, [KEY])] * 2


def test_on_a_full_disk_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    digest, data = blob(noise(100))
    assert store.put_many([(digest, data)]) == [None]
    store.remember(b"r" * 32, b"s" * 16, store.settle([digest]))
    disk = FullDisk(monkeypatch, room_bytes=0)
    for _ in range(5000):
        assert read(store, digest) == data
    assert soon(lambda: store.intact(b"r" * 32, b"s" * 16))
    with pytest.raises(NotReady):
        store.find_missing([digest])
    disk.is_full = False
    assert store.find_missing([digest]) == []
    repository.close()


def test_a_log_that_finds_no_successor_goes_on(log: TouchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that was closed may be another file's by the next line."""
    monkeypatch.setattr(limits, "TOUCH_LOG_BYTES", 500)
    real = os.open

    def no_descriptor(path: str, *rest: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(touch_log.os, "open", no_descriptor)
        for i in range(20):
            log.append(Kind.LEASED, [b"%033d" % i])
    victim = real(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    log.append(Kind.LEASED, [b"%033d" % 20])
    assert os.pread(victim, 1, 0) == b""
    os.close(victim)
    (tmp_path / "victim").unlink()
    assert [group.rows for group in groups(tmp_path)] == [[b"%033d" % i] for i in range(21)]


def test_the_store_notes_what_it_promises_and_serves(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo", clock=lambda: NOW_MS)
    store = repository.open()
    digest, never = Digest.of(b"held"), Digest.of(b"never")

    def noted(kind: Kind) -> list[bytes]:
        store._touches.flush()
        found = [group for group in groups(repository.path / "touch") if group.kind is kind]
        assert all(group.time_ms == NOW_MS for group in found)
        return [row for group in found for row in group.rows]

    store.put_many([(digest, b"held"), (never, b"lie")])
    assert noted(Kind.LEASED) == [digest.key]
    store.put_many([(digest, b"held")])
    store.find_missing([digest, never])
    assert noted(Kind.LEASED) == [digest.key] * 3
    stream = store.begin_upload(digest, "session", offset=0)
    stream.write(b"held")
    stream.finish()
    assert noted(Kind.LEASED) == [digest.key] * 4
    assert noted(Kind.USED) == []
    store.read_many([digest, never])
    assert noted(Kind.USED) == [digest.key]
    store.open(digest)
    assert noted(Kind.USED) == [digest.key] * 2
    store.holds_any([digest])
    footprint = store.settle([digest])
    store.remember(b"n" * 32, b"s" * 16, footprint)
    assert noted(Kind.NAME_BOUND) == [b"n" * 32]
    assert soon(lambda: store.intact(b"n" * 32, b"s" * 16))
    assert store.intact(b"n" * 32, b"x" * 16) is False
    assert noted(Kind.NAME_USED) == [b"n" * 32]  # the answer False is no use
    assert noted(Kind.LEASED) == [digest.key] * 4
    repository.close()


def test_a_group_is_what_was_encoded() -> None:
    encoded = encode(Kind.USED, NOW_MS, [KEY, OTHER_KEY])
    assert list(decode(encoded * 2)) == [Group(Kind.USED, NOW_MS, [KEY, OTHER_KEY])] * 2
    assert list(decode(encoded + encoded[:-1])) == [Group(Kind.USED, NOW_MS, [KEY, OTHER_KEY])]
    assert list(decode(b"")) == []
