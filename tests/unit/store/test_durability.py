"""What is called durable is durable (I2), and what could not be made so is not held."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from unit.store.repositories import MIB, Repository, blob, noise, read

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, NotReady
from millpond.store.index import SegmentState
from millpond.store.interface import KnownClosure
from millpond.store.segments.files import SegmentFile
from millpond.store.segments.rebuild import read_records

ROW, STAMP = b"r" * 32, b"s" * 16


def put(repository: Repository, *data: bytes) -> list[Digest]:
    assert repository.store.put_many([blob(one) for one in data]) == [None] * len(data)
    return [Digest.of(one) for one in data]


def path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files and directories that are synced from here on."""
    synced: list[str] = []

    def watched(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            real(descriptor)
            synced.append(path_of(descriptor).name)

        return sync

    monkeypatch.setattr(os, "fdatasync", watched(os.fdatasync))
    monkeypatch.setattr(os, "fsync", watched(os.fsync))
    return synced


class BadDisk:
    """Whose fdatasync fails for chosen files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad: set[Path] = set()
        self.failed = threading.Event()
        real = os.fdatasync

        def fdatasync(descriptor: int) -> None:
            if path_of(descriptor) in self.bad:
                self.failed.set()
                raise OSError(errno.EIO, "bad disk")
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", fdatasync)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> BadDisk:
    return BadDisk(monkeypatch)


def spoil(repository: Repository, disk: BadDisk, *data: bytes) -> int:
    """Store ``data`` in the current segment and have its sync fail; the segment's number."""
    digests = put(repository, *data)
    number = repository.entry(digests[0]).segment
    disk.bad = {repository.segment(number)}
    with pytest.raises(NotReady):
        repository.store.settle(digests)
    disk.bad = set()
    return number


def test_what_settles_was_synced_with_its_directory_once(repository: Repository, synced: list[str]) -> None:
    digests = put(repository, b"a", b"b")
    name = repository.segment(repository.entry(digests[0]).segment).name
    assert synced == []  # a blob costs no sync of its own
    repository.store.settle(digests)
    assert synced == [name, "segments"]
    repository.store.settle(digests)
    assert synced == [name, "segments"]
    digests += put(repository, b"c")
    repository.store.settle(digests)
    assert synced == [name, "segments", name]
    assert (
        repository.row(repository.entry(digests[2]).segment).synced_to == repository.entry(digests[2]).offset + 64 + 9
    )


def test_the_kernel_gets_a_segments_bytes_in_time(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SYNC_EVERY_BYTES", 100_000)
    digests = put(repository, noise(60_000, "a"), noise(60_000, "b"))
    number = repository.entry(digests[0]).segment
    for _ in range(1000):
        if repository.row(number).synced_to:
            break
        threading.Event().wait(0.01)
    assert repository.row(number).synced_to == repository.row(number).end


def test_what_could_not_be_synced_is_missing_at_once_and_for_ever(repository: Repository, disk: BadDisk) -> None:
    number = spoil(repository, disk, b"lost", b"lost too")
    lost = [Digest.of(b"lost"), Digest.of(b"lost too")]
    for _ in range(2):
        assert repository.row(number).suspect
        assert repository.store.find_missing(lost) == lost
        assert repository.store.read_many(lost) == [None, None]
        with pytest.raises(BlobNotFound):
            repository.store.settle(lost)
        with pytest.raises(BlobNotFound):
            repository.store.open(lost[0])
        repository.open()


def test_a_segment_that_could_not_be_synced_takes_no_more_blobs(repository: Repository, disk: BadDisk) -> None:
    number = spoil(repository, disk, b"lost")
    (fresh, again) = put(repository, b"fresh", b"lost")
    assert repository.entry(fresh).segment == repository.entry(again).segment != number
    assert [read(repository.store, fresh), read(repository.store, again)] == [b"fresh", b"lost"]
    repository.store.settle([fresh, again])


def test_a_streamed_blob_avoids_it_too(repository: Repository, disk: BadDisk) -> None:
    number = spoil(repository, disk, b"lost")
    data = noise(100_000)
    stream = repository.store.begin_upload(Digest.of(data), "session", offset=0)
    stream.write(data)
    stream.finish()
    assert repository.entry(Digest.of(data)).segment != number
    repository.store.settle([Digest.of(data)])


def test_it_is_not_continued_by_the_next_process(repository: Repository, disk: BadDisk) -> None:
    number = spoil(repository, disk, b"lost")
    repository.open()
    (again,) = put(repository, b"lost")
    assert repository.entry(again).segment != number
    assert read(repository.store, again) == b"lost"


def test_names_whose_blobs_it_held_must_be_walked(repository: Repository, disk: BadDisk) -> None:
    held = put(repository, b"held")
    repository.store.remember([KnownClosure(ROW, STAMP, repository.store.settle(held))])
    spoil(repository, disk, b"lost")  # into the same segment
    assert not repository.store.intact(ROW, STAMP)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_blob_of_its_own_segment_that_could_not_be_synced_is_missing(
    repository: Repository, disk: BadDisk, monkeypatch: pytest.MonkeyPatch, *, streamed: bool
) -> None:
    data = noise(MIB)
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        if path_of(descriptor).suffix == ".seg":
            raise OSError(errno.EIO, "bad disk")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fdatasync)
        with suppress(NotReady):  # if that was found out before it was promised
            if streamed:
                stream = repository.store.begin_upload(Digest.of(data), "session", offset=0)
                stream.write(data)
                stream.finish()
            else:
                repository.store.put_many([(Digest.of(data), data)])
        with pytest.raises((NotReady, BlobNotFound)):
            repository.store.settle([Digest.of(data)])
    assert repository.store.find_missing([Digest.of(data)])
    put(repository, data)
    repository.store.settle([Digest.of(data)])
    assert read(repository.store, Digest.of(data)) == data


def test_a_segment_without_room_for_its_footer_keeps_what_it_holds(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = put(repository, noise(200_000, "early"), b"small")
    number = repository.entry(early[0]).segment
    repository.store.remember([KnownClosure(ROW, STAMP, repository.store.settle(early))])
    with monkeypatch.context() as patch:
        real = os.pwrite

        def full(descriptor: int, data: bytes, offset: int) -> int:
            if path_of(descriptor).suffix == ".seg":
                raise OSError(errno.ENOSPC, "full")
            return real(descriptor, data, offset)

        patch.setattr(os, "pwrite", full)
        late = put(repository, *(noise(200_000, f"late {i}") for i in range(5)))  # which fill the segment
        repository.store._sealer.close()
    assert repository.store.intact(ROW, STAMP)
    assert repository.store.find_missing([*early, *late]) == []
    row = repository.row(number)
    assert (row.state, row.suspect, row.synced_to) == (SegmentState.OPEN, False, row.end)
    repository.open()
    put(repository, *(noise(200_000, f"later {i}") for i in range(8)))  # which seals it after all
    repository.close()
    assert read_records(SegmentFile(str(repository.segment(number)), number))[2]
    repository.open()
    assert read(repository.store, early[0]) == noise(200_000, "early")


def test_eight_pushes_at_once_all_settle(repository: Repository) -> None:
    def push(caller: int) -> None:
        for i in range(10):
            digests = put(repository, b"%d/%d" % (caller, i), noise(70_000, f"{caller}/{i}"))
            repository.store.settle(digests)
            for digest in digests:
                entry = repository.entry(digest)
                assert repository.row(entry.segment).synced_to >= entry.offset + entry.size_bytes

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(push, range(8)))
