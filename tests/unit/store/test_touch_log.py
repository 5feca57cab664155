"""What was used and promised is noted in whole groups, and noting it never stands in a reader's way."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
from unit.store.repositories import Repository, blob, noise, read, soon

from millpond.core.digest import Digest
from millpond.core.errors import NotReady
from millpond.disk import locks
from millpond.store.interface import KnownClosure
from millpond.store.uses import touch_log
from millpond.store.uses.touch_log import Group, Kind, TouchLog, decode, encode

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


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TouchLog]:
    """A log of which each file takes 16 groups of one row."""
    log = TouchLog(str(tmp_path), lambda: NOW_MS, log_bytes=lambda: 1000)
    yield log
    log.close()


def numbered(i: int) -> bytes:
    return b"%033d" % i


def test_a_full_log_is_followed_by_another(small: TouchLog, tmp_path: Path) -> None:
    for i in range(100):
        small.append(Kind.LEASED, [numbered(i)])
        if i % 3 == 0:
            small.flush()  # now and then it has made the next one before
    assert [group.rows for group in groups(tmp_path)] == [[numbered(i)] for i in range(100)]
    assert 7 <= len(list(tmp_path.iterdir())) <= 9
    assert all(path.stat().st_size == 1000 for path in tmp_path.iterdir())


def test_only_so_many_wait_to_be_merged(small: TouchLog, tmp_path: Path) -> None:
    for i in range(2000):
        small.append(Kind.LEASED, [numbered(i)])
        if i == 500:
            min(tmp_path.iterdir(), key=lambda path: int(path.stem.rpartition("-")[2])).unlink()  # one was
    found = groups(tmp_path)
    assert len(list(tmp_path.iterdir())) == 64
    assert [group.rows for group in found] == [[numbered(i)] for i in range(2000 - len(found), 2000)]


def test_a_log_has_all_its_blocks_from_the_beginning(tmp_path: Path) -> None:
    log = TouchLog(str(tmp_path), lambda: NOW_MS, log_bytes=lambda: 1 << 20)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_blocks
    assert before * 512 >= 1 << 20
    log.append(Kind.LEASED, [numbered(i) for i in range(30_000)])
    assert path.stat().st_blocks == before
    log.close()


def test_a_long_list_is_several_groups_and_never_torn_between_logs(small: TouchLog, tmp_path: Path) -> None:
    small.append(Kind.LEASED, [KEY])
    rows = [numbered(i) for i in range(20_000)]
    small.append(Kind.LEASED, rows)
    small.append(Kind.LEASED, [OTHER_KEY])
    first, *long, last = groups(tmp_path)
    assert [len(group.rows) for group in long] == [8192, 8192, 20_000 - 2 * 8192]
    assert [row for group in long for row in group.rows] == rows
    assert (first.rows, last.rows) == ([KEY], [OTHER_KEY])
    assert len(list(tmp_path.iterdir())) == 3


def test_two_logs_of_one_process_in_one_millisecond_are_two_files(log: TouchLog, tmp_path: Path) -> None:
    other = TouchLog(str(tmp_path), lambda: NOW_MS)
    log.append(Kind.LEASED, [KEY])
    other.append(Kind.LEASED, [OTHER_KEY])
    assert sorted(group.rows for group in groups(tmp_path)) == [[KEY], [OTHER_KEY]]
    other.close()


def test_who_writes_a_log_holds_its_lock(log: TouchLog, tmp_path: Path) -> None:
    (path,) = tmp_path.iterdir()
    descriptor = os.open(path, os.O_RDONLY)
    assert not locks.try_lock(descriptor, exclusive=True)
    log.close()
    assert locks.try_lock(descriptor, exclusive=True)
    os.close(descriptor)


def test_a_log_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever merges removes what nobody holds, and may look between the making and the locking."""
    real, removed = locks.lock, []

    def lock(descriptor: int, *, exclusive: bool) -> None:
        if not removed:
            removed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            removed[0].unlink()
        real(descriptor, exclusive=exclusive)

    monkeypatch.setattr(touch_log.locks, "lock", lock)
    log = TouchLog(str(tmp_path), lambda: NOW_MS)
    log.append(Kind.LEASED, [KEY])
    assert removed
    assert [group.rows for group in groups(tmp_path)] == [[KEY]]
    log.close()


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
    """On which no log gets a new block, and only so many bytes more can be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room_bytes: int = 0) -> None:
        self.is_full = True
        self.room_bytes = room_bytes
        self.made_room = 0
        self.can_make_room = False
        real, real_write = os.posix_fallocate, os.pwrite

        def is_log(descriptor: int) -> bool:
            return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".log")

        def fallocate(descriptor: int, offset: int, size: int) -> None:
            if self.is_full and is_log(descriptor):
                raise OSError(errno.ENOSPC, "full")
            real(descriptor, offset, size)

        def write(descriptor: int, data: bytes, offset: int) -> int:
            beyond = offset + len(data) - os.fstat(descriptor).st_size
            if not self.is_full or not is_log(descriptor) or beyond <= 0:
                return real_write(descriptor, data, offset)
            data = data[: len(data) - beyond + self.room_bytes]
            self.room_bytes = 0
            if not data:
                raise OSError(errno.ENOSPC, "full")
            return real_write(descriptor, data, offset)

        monkeypatch.setattr(touch_log.os, "posix_fallocate", fallocate)
        monkeypatch.setattr(touch_log.os, "pwrite", write)

    def make_room(self) -> bool:
        self.made_room += 1
        if self.can_make_room:
            self.is_full = False
        return self.can_make_room


def test_on_a_full_disk_leases_are_noted_as_long_as_there_are_blocks_for_it(
    small: TouchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        small.append(Kind.LEASED, [numbered(i)])
    small.flush()  # more than half is written: the next one is made
    disk = FullDisk(monkeypatch)
    noted = 2 * (1000 // 61)
    for i in range(10, noted):
        small.append(Kind.LEASED, [numbered(i)])
    with pytest.raises(NotReady):
        small.append(Kind.LEASED, [OTHER_KEY])
    small.append(Kind.NAME_USED, [b"n" * 32])  # hints are let go
    small.used([KEY])
    small.flush()
    disk.is_full = False
    small.append(Kind.LEASED, [numbered(noted)])
    assert [group.rows for group in groups(tmp_path)] == [[numbered(i)] for i in range(noted + 1)]


@pytest.mark.parametrize("room_bytes", [0, 1, 30])
def test_half_a_group_hides_nothing_that_follows(
    small: TouchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    for i in range(16):
        small.append(Kind.LEASED, [numbered(i)])
    disk = FullDisk(monkeypatch, room_bytes=room_bytes)
    for _ in range(3):
        with pytest.raises(NotReady):
            small.append(Kind.LEASED, [OTHER_KEY])
    disk.is_full = False
    small.append(Kind.LEASED, [numbered(16)])
    assert [group.rows for group in groups(tmp_path)] == [[numbered(i)] for i in range(17)]


def test_room_is_made_for_a_lease_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch)
    log = TouchLog(str(tmp_path), lambda: NOW_MS, log_bytes=lambda: 1000, make_room=disk.make_room)
    with pytest.raises(NotReady):
        log.append(Kind.LEASED, [KEY])
    assert disk.made_room == 1
    disk.can_make_room = True
    log.append(Kind.LEASED, [KEY])
    assert disk.made_room == 2
    assert [group.rows for group in groups(tmp_path)] == [[KEY]]
    log.close()


def test_a_log_that_was_begun_on_a_full_disk_gets_its_blocks_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    log = TouchLog(str(tmp_path), lambda: NOW_MS, log_bytes=lambda: 1000)
    log.flush()
    disk.is_full = False
    log.flush()
    disk.is_full = True
    log.append(Kind.LEASED, [KEY])
    assert [group.rows for group in groups(tmp_path)] == [[KEY]]
    log.close()


def test_on_a_full_disk_reads_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    digest, data = blob(noise(100))
    assert store.put_many([(digest, data)]) == [None]
    store.remember([KnownClosure(b"r" * 32, b"s" * 16, store.settle([digest]))])
    FullDisk(monkeypatch)
    for _ in range(5000):
        assert read(store, digest) == data
    assert soon(lambda: store.intact(b"r" * 32, b"s" * 16))
    assert store.find_missing([digest]) == []
    repository.close()


def test_a_name_is_answered_though_its_use_cannot_be_noted_but_no_blob_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is told that a blob is here will not send it; one that asks for a name only has to ask again."""
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    digest, data = blob(noise(100))
    assert store.put_many([(digest, data)]) == [None]
    store.remember([KnownClosure(b"r" * 32, b"s" * 16, store.settle([digest]))])
    assert soon(lambda: store.intact(b"r" * 32, b"s" * 16))

    def pwrite(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", pwrite)
        assert store.intact(b"r" * 32, b"s" * 16)
        with pytest.raises(NotReady):
            store.find_missing([digest])
    repository.close()


def test_a_log_that_finds_no_successor_goes_on(
    small: TouchLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that was closed may be another file's by the next line."""
    real = os.open

    def no_descriptor(path: str, *rest: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(touch_log.os, "open", no_descriptor)
        for i in range(40):
            small.append(Kind.LEASED, [numbered(i)])
    victim = real(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    small.append(Kind.LEASED, [numbered(40)])
    assert os.pread(victim, 1, 0) == b""
    os.close(victim)
    (tmp_path / "victim").unlink()
    assert [group.rows for group in groups(tmp_path)] == [[numbered(i)] for i in range(41)]


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
    # What is left of a broken closure is not kept in the place of whole ones.
    assert store.promise([[digest, never]], leases=True)[0].missing == [never]
    assert noted(Kind.WALKED) == []
    assert store.promise([[digest], [never]], leases=True) == [([], None), ([never], None)]
    assert noted(Kind.WALKED) == [digest.key]
    assert noted(Kind.USED) == []
    assert store.promise([[digest]], leases=False) == [([], None)]
    assert noted(Kind.WALKED) == [digest.key]
    assert noted(Kind.USED) == [digest.key]
    store.read_many([digest, never])
    assert noted(Kind.USED) == [digest.key] * 2
    store.open(digest)
    assert noted(Kind.USED) == [digest.key] * 3
    store.holds_any([digest])
    footprint = store.settle([digest])
    store.remember([KnownClosure(b"n" * 32, b"s" * 16, footprint, 5)])
    assert noted(Kind.NAME_WALKED) == [b"n" * 32 + (5).to_bytes(8, "little")]
    store.remember([KnownClosure(b"n" * 32, b"s" * 16, footprint, 6)], ends_leases=True)
    assert noted(Kind.NAME_BOUND) == [b"n" * 32 + (6).to_bytes(8, "little")]
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


def test_a_bad_place_under_one_log_has_the_lease_noted_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TouchLog(str(tmp_path), lambda: NOW_MS)
    bad = {os.stat(path).st_ino for path in tmp_path.iterdir()}
    writing = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if os.fstat(descriptor).st_ino in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return writing(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    log.append(Kind.LEASED, [KEY])
    log.close()
    groups = [group for path in tmp_path.iterdir() for group in decode(path.read_bytes())]
    assert groups == [Group(Kind.LEASED, NOW_MS, [KEY])]


@pytest.mark.parametrize(("error", "noted"), [(errno.EROFS, True), (errno.EIO, True), (errno.EDQUOT, False)])
def test_where_nobody_can_write_a_lease_counts_as_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, *, noted: bool
) -> None:
    """Eviction cannot write there either; but a full disk, or one that is full for us, it can make room on."""
    log = TouchLog(str(tmp_path), lambda: NOW_MS)

    def pwrite(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with nullcontext() if noted else pytest.raises(NotReady):
        log.append(Kind.LEASED, [KEY])
    log.close()
