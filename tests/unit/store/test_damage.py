"""Bit rot: never served, a miss from then on, healed by the next upload (I4)."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import MIB, OtherProcess, Repository, blob, flip, noise, read, read_chunks, soon

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, NotReady
from millpond.store.interface import KnownClosure
from millpond.store.segments import reading as segment_reading

ROW, STAMP = b"r" * 32, b"s" * 16
SMALL = noise(3000, "small")
LARGE = noise(3 * MIB + 5, "large")


def put(repository: Repository, *data: bytes) -> list[Digest]:
    assert repository.store.put_many([blob(one) for one in data]) == [None] * len(data)
    return [Digest.of(one) for one in data]


def in_chunks(store: Any, digest: Digest) -> bytes | None:
    try:
        return read_chunks(store, digest)
    except BlobNotFound:
        return None


def is_missing(repository: Repository, digest: Digest) -> bool:
    return bool(repository.store.find_missing([digest]))


def damaged_places(size_bytes: int) -> dict[str, int]:
    """Offsets within a record."""
    return {
        "size": 8,
        "digest": 24,
        "last of digest": 55,
        "data": 64,
        "middle": 64 + size_bytes // 2,
        "last of data": 63 + size_bytes,
    }


@pytest.mark.parametrize("reading", [read, in_chunks])
@pytest.mark.parametrize("where", damaged_places(0))
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_flipped_bit_is_never_served_and_heals(
    repository: Repository, data: bytes, where: str, reading: Callable[..., bytes | None]
) -> None:
    before, digest, after = put(repository, b"before", data, b"after")
    entry = repository.entry(digest)
    flip(repository.segment(entry.segment), entry.offset + damaged_places(len(data))[where], bit=3)
    assert reading(repository.store, digest) is None
    assert [read(repository.store, before), read(repository.store, after)] == [b"before", b"after"]
    assert soon(lambda: is_missing(repository, digest))
    assert reading(repository.store, digest) is None
    put(repository, data)
    assert not is_missing(repository, digest)
    assert reading(repository.store, digest) == data


@pytest.mark.parametrize("reading", [read, in_chunks])
@pytest.mark.parametrize("chunk", range(4))
def test_a_flipped_bit_in_a_large_blobs_checksums_is_found(
    repository: Repository, chunk: int, reading: Callable[..., bytes | None]
) -> None:
    (digest,) = put(repository, LARGE)
    entry = repository.entry(digest)
    flip(repository.segment(entry.segment), entry.offset + 64 + len(LARGE) + 8 * chunk)
    assert reading(repository.store, digest) is None
    put_until_healed(repository, LARGE)


def put_until_healed(repository: Repository, data: bytes) -> None:
    assert soon(lambda: is_missing(repository, Digest.of(data)))
    put(repository, data)
    assert read(repository.store, Digest.of(data)) == data


def test_no_mib_leaves_before_it_was_verified(repository: Repository) -> None:
    (digest,) = put(repository, LARGE)
    entry = repository.entry(digest)
    with repository.store.open(digest) as opened:
        assert bytes(opened.chunk(0)) == LARGE[:MIB]
        flip(repository.segment(entry.segment), entry.offset + 64 + MIB + 1)
        with pytest.raises(BlobNotFound):
            opened.chunk(1)
        assert bytes(opened.chunk(2)) == LARGE[2 * MIB : 3 * MIB]
    put_until_healed(repository, LARGE)


def test_a_cut_off_segment_loses_what_was_cut_off(repository: Repository) -> None:
    before, digest, after = put(repository, b"before", SMALL, b"after")
    entry = repository.entry(digest)
    os.truncate(repository.segment(entry.segment), entry.offset + 64 + len(SMALL) - 1)
    assert [bool(data) for data in repository.store.read_many([before, digest, after])] == [True, False, False]
    assert soon(lambda: repository.store.find_missing([before, digest, after]) == [digest, after])


@pytest.mark.parametrize("reading", [read, in_chunks])
@pytest.mark.parametrize("harm", ["header", "gone", "empty"])
def test_a_segment_that_is_no_more_takes_nothing_else_with_it(
    repository: Repository, harm: str, reading: Callable[..., bytes | None]
) -> None:
    digests = put(repository, noise(MIB, "lost"), noise(MIB, "well"), b"small")
    repository.open()
    path = repository.segment(repository.entry(digests[0]).segment)
    if harm == "header":
        flip(path, 30)
    elif harm == "gone":
        path.unlink()
    else:
        os.truncate(path, 0)
    contents = [reading(repository.store, digest) for digest in digests]
    assert [data is not None for data in contents] == [False, True, True]
    in_one_go = repository.store.read_many(digests)
    assert [data is not None for data in in_one_go] == [False, True, True]
    put_until_healed(repository, noise(MIB, "lost"))


def test_nobody_appends_to_a_segment_whose_header_is_damaged(repository: Repository) -> None:
    """Its writer knows the header from before; whoever opens it now does not."""
    digest, other = put(repository, SMALL, b"beside it")
    number = repository.entry(digest).segment
    flip(repository.segment(number), 20)
    reader = OtherProcess(repository.path)
    assert reader.read_many([digest]) == [None]
    assert soon(lambda: is_missing(repository, digest))
    assert is_missing(repository, other)
    put(repository, SMALL)
    assert repository.entry(digest).segment != number
    assert reader.read_many([digest]) == [SMALL]
    reader.end()


@pytest.mark.parametrize("harm", ["header", "gone"])
def test_what_is_no_more_when_a_push_settles_is_missing_from_then_on(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    digests = put(repository, b"a", b"b")
    number = repository.entry(digests[0]).segment
    repository.open()  # no descriptor is left
    unsynced = repository.row(number)._replace(synced_to=0)  # as after a kill
    repository.store._index_writer.run(lambda txn: repository.store._index.put_segment(txn, number, unsynced))
    if harm == "gone":
        repository.segment(number).unlink()
    else:
        flip(repository.segment(number), 20)
    with pytest.raises(BlobNotFound):
        repository.store.settle(digests)
    assert repository.store.find_missing(digests) == digests
    put(repository, b"a", b"b")
    repository.store.settle(digests)
    assert read(repository.store, digests[0]) == b"a"


def test_names_whose_segment_lost_a_blob_are_walked_again(repository: Repository) -> None:
    damaged, _ = put(repository, SMALL, b"other")
    (elsewhere,) = put(repository, noise(MIB))
    repository.store.remember([KnownClosure(ROW, STAMP, repository.store.settle([damaged]))])
    repository.store.remember([KnownClosure(b"o" * 32, STAMP, repository.store.settle([elsewhere]))])
    assert soon(lambda: repository.store.intact(ROW, STAMP))
    entry = repository.entry(damaged)
    flip(repository.segment(entry.segment), entry.offset + 70)
    assert read(repository.store, damaged) is None
    assert soon(lambda: not repository.store.intact(ROW, STAMP))
    assert repository.store.intact(b"o" * 32, STAMP)
    with pytest.raises(BlobNotFound):
        repository.store.settle([damaged])
    put(repository, SMALL)
    repository.store.remember([KnownClosure(ROW, STAMP, repository.store.settle([damaged]))])
    assert soon(lambda: repository.store.intact(ROW, STAMP))


def test_a_disk_that_cannot_read_is_damage_and_a_shortage_is_not(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (digest,) = put(repository, SMALL)
    real = os.preadv
    fails_with = errno.ENOMEM

    def preadv(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if ".seg" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(fails_with, "tried")
        return real(descriptor, buffers, offset, flags)

    with monkeypatch.context() as patch:
        patch.setattr(segment_reading.os, "preadv", preadv)
        for reading in (read, in_chunks):
            with pytest.raises(NotReady):
                reading(repository.store, digest)
        assert not is_missing(repository, digest)
        fails_with = errno.EIO
        assert read(repository.store, digest) is None
        assert soon(lambda: is_missing(repository, digest))
    put(repository, SMALL)
    assert read(repository.store, digest) == SMALL


def test_no_descriptor_left_is_not_damage(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    (digest,) = put(repository, SMALL)
    repository.open()
    real = os.open

    def no_descriptor(path: Any, *rest: Any) -> int:
        if Path(path).suffix == ".seg":
            raise OSError(errno.EMFILE, "too many open files")
        return real(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_descriptor)
        for reading in (read, in_chunks):
            with pytest.raises(NotReady):
                reading(repository.store, digest)
    assert read(repository.store, digest) == SMALL


def test_a_reader_that_has_begun_finishes_when_the_segment_goes(repository: Repository) -> None:
    (digest,) = put(repository, LARGE)
    with repository.store.open(digest) as opened:
        assert bytes(opened.chunk(0)) == LARGE[:MIB]
        repository.segment(repository.entry(digest).segment).unlink()
        repository.store._files.drop_departed()
        assert b"".join(bytes(opened.chunk(i)) for i in range(4)) == LARGE


def test_an_entry_that_points_at_another_blob_is_a_miss(repository: Repository) -> None:
    one, other = put(repository, b"one", b"two")
    assert repository.opened
    index = repository.opened.index
    wrong = repository.entry(other)
    with index.env.begin(write=True) as txn:
        txn.put(one.key, wrong.encode(), db=index.blobs)
    assert read(repository.store, one) is None
    assert read(repository.store, other) == b"two"
    assert soon(lambda: is_missing(repository, one))
    assert not is_missing(repository, other)


def test_a_bad_place_on_the_disk_costs_only_the_blob_that_lies_there(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [noise(5000 + i, "neighbours") for i in range(10)]
    digests = put(repository, *contents)
    bad = repository.entry(digests[4]).offset + 2000
    preadv = os.preadv

    def failing(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if offset <= bad < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset, flags)

    monkeypatch.setattr(segment_reading.os, "preadv", failing)
    read = repository.store.read_many(digests)
    assert [data is None or bytes(data) for data in read] == [*contents[:4], True, *contents[5:]]
    assert soon(lambda: repository.store.find_missing(digests) == [digests[4]])
