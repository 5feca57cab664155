"""Making the index anew: what is listed, which of two records, and how much of a segment that leaves alive."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from unit.store.repositories import flip, noise

from millpond.core.digest import Digest
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.segments import rebuild as rebuilding
from millpond.store.segments.files import segment_name
from millpond.store.segments.format import RECORD_HEADER_BYTES, SegmentHeader, footer, record_bytes
from millpond.store.segments.open_segment import OpenSegment
from millpond.store.segments.rebuild import rebuild

A, B, C = (noise(size, "rebuild") for size in (300, 2000, 70))
LARGE = noise((1 << 20) + 5, "rebuild")


class Made:
    """A directory of segments, and the index that is made of it."""

    def __init__(self, root: Path) -> None:
        self.segments = root / "segments"
        self.segments.mkdir()
        self.index = Index(str(root / "index"))

    def segment(self, number: int, blobs: Sequence[bytes], *, sealed: bool = True) -> list[Entry]:
        header = SegmentHeader.new(number, 0)
        path = str(self.segments / segment_name(number))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, header.encode())
        segment = OpenSegment(descriptor, header, path)
        entries = [segment.add(Digest.of(data), data) for data in blobs]
        segment.flush()
        if sealed:
            os.pwrite(descriptor, footer(segment.records, segment.end, header.seed), segment.end)
        os.close(descriptor)
        return entries

    def path(self, number: int) -> Path:
        return self.segments / segment_name(number)

    def rebuild(self, holes: dict[int, set[int]] | None = None) -> None:
        rebuild(self.index, str(self.segments), holes=holes)

    def entry(self, data: bytes) -> Entry | None:
        return self.index.entries([Digest.of(data).key]).get(Digest.of(data).key)

    def row(self, number: int) -> SegmentRow:
        with self.index.reading() as txn:
            row = self.index.segment(txn, number)
        assert row
        return row

    def live(self, number: int) -> tuple[int, int]:
        return self.row(number).live_count, self.row(number).live_bytes


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def taken(*blobs: bytes) -> tuple[int, int]:
    return len(blobs), sum(record_bytes(len(data)) for data in blobs)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "open"])
def test_all_that_verifies_is_listed_and_counted(made: Made, *, sealed: bool) -> None:
    entries = made.segment(1, [A, LARGE, B], sealed=sealed)
    made.segment(2, [], sealed=sealed)
    made.rebuild()
    assert [made.entry(data) for data in (A, LARGE, B)] == entries
    assert made.live(1) == taken(A, LARGE, B)
    assert made.live(2) == (0, 0)
    row = made.row(1)
    assert row.state is (SegmentState.SEALED if sealed else SegmentState.OPEN)
    assert row.synced_to == row.end == 64 + taken(A, LARGE, B)[1]


def test_of_two_records_of_a_blob_the_later_one_is_listed(made: Made) -> None:
    """Whatever healed or moved a blob wrote it later."""
    made.segment(1, [A, B])
    (healed,) = made.segment(7, [A], sealed=False)
    _, _, last = made.segment(9, [B, C, B])
    made.rebuild()
    assert made.entry(A) == healed
    assert made.entry(B) == last
    assert [made.live(number) for number in (1, 7, 9)] == [(0, 0), taken(A), taken(C, B)]


@pytest.mark.parametrize("in_memory", [1, 7, 100])
def test_however_little_is_sorted_at_once_the_index_is_the_same(
    made: Made, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(rebuilding, "_IN_MEMORY", in_memory)
    blobs = [noise(50, f"{i}") for i in range(40)]
    entries = made.segment(1, blobs[:25]) + made.segment(2, blobs[25:], sealed=False)
    made.rebuild()
    assert [made.entry(data) for data in blobs] == entries
    assert (made.live(1), made.live(2)) == (taken(*blobs[:25]), taken(*blobs[25:]))


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "open"])
def test_a_hole_is_not_listed_again(made: Made, *, sealed: bool) -> None:
    first, _, third = made.segment(3, [A, B, C], sealed=sealed)
    made.rebuild({3: {third.offset - record_bytes(len(B))}, 4: {64}})
    assert (made.entry(A), made.entry(B), made.entry(C)) == (first, None, third)
    assert made.live(3) == taken(A, C)


def test_what_lies_behind_a_rotten_blob_is_found(made: Made) -> None:
    entries = made.segment(1, [A, B, C], sealed=False)
    flip(made.path(1), entries[0].offset + RECORD_HEADER_BYTES + 5)
    made.rebuild()
    assert [made.entry(data) for data in (A, B, C)] == [None, *entries[1:]]
    assert made.live(1) == taken(B, C)
    assert made.row(1).end == made.path(1).stat().st_size == entries[2].offset + record_bytes(len(C))


def test_what_lies_behind_a_damaged_header_is_nobodys(made: Made) -> None:
    entries = made.segment(1, [A, B, C], sealed=False)
    flip(made.path(1), entries[1].offset + 9)
    made.rebuild()
    assert [made.entry(data) for data in (A, B, C)] == [entries[0], None, None]
    assert made.row(1).end == made.path(1).stat().st_size == entries[1].offset


def test_what_is_listed_may_be_called_durable(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is pushed next syncs nothing that says it is synced."""
    made.segment(1, [A])
    made.segment(2, [B], sealed=False)
    synced: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    made.rebuild()
    assert synced == [str(made.path(2)), str(made.segments)]


def test_what_cannot_be_made_durable_is_not_trusted(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    made.segment(2, [B], sealed=False)

    def fail(_: int) -> None:
        raise OSError(5, "no")

    monkeypatch.setattr(os, "fdatasync", fail)
    made.rebuild()
    assert made.row(2).suspect
    assert made.entry(B) is None
