"""Is the store what it says it is? Segments, index and files against each other, also while servers run.

Each look is a generator that yields how much of it is done, so that whoever drives it shows that and may stop. What is
found is reported as a :class:`Problem`; with ``repair`` it is put right where that loses nothing that was sound.

The rule: what changes while one looks is no problem. Whatever seems wrong is looked up once more in the index, because
eviction may have been faster; only rows and entries that still say the same are called wrong, and a repair happens in
one write transaction that asks again.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from millpond.core.clock import Clock
from millpond.core.digest import Digest
from millpond.disk import locks
from millpond.disk.group_writer import Transaction
from millpond.store.failures import told_of_reading
from millpond.store.index import ENTRY, Entry, Index, SegmentRow, SegmentState
from millpond.store.repository.layout import Layout
from millpond.store.room.space import Space
from millpond.store.room.taken import file_bytes
from millpond.store.segments.files import SegmentFile, departed_segments, segment_name, segment_number
from millpond.store.segments.format import (
    FOOTER_END_BYTES,
    SEGMENT_HEADER_BYTES,
    Damaged,
    Newer,
    Record,
    footer,
    footer_begin,
    parse_footer,
    record_bytes,
    scan,
)
from millpond.store.segments.open_segment import write_all

_ROWS_AT_ONCE = 10_000
_IN_THE_MAKING_MS = 60_000
"""A file that nobody lists may be a moment old: its writer is about to."""
_OLD_UPLOAD_MS = 86_400_000
_LEDGER_SLACK_BYTES = 65_536
"""Some file systems find out later what a file takes."""
_DEEP = "millpond check --deep --repair takes what is damaged off the index; the next upload brings it back"
_REPAIR = "millpond check --repair puts it right"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be. ``next_step`` is empty when it was put right."""

    thing: str
    trouble: str
    """What is the case, and what was expected."""
    next_step: str = ""


Report = Callable[[Problem], None]


class StoreCheck:
    """Looks at one repository's store. Makes write transactions of its own when it repairs."""

    def __init__(self, index: Index, layout: Layout, report: Report, *, repair: bool, clock: Clock) -> None:
        self._index = index
        self._layout = layout
        self._report = report
        self._repair = repair
        self._clock = clock

    def _found(self, thing: str, trouble: str, *, repaired: str = "", next_step: str = _REPAIR) -> None:
        """Report; ``repaired`` says what was done about it."""
        self._report(Problem(thing, f"{trouble}; {repaired}" if repaired else trouble, "" if repaired else next_step))

    # -- segments ---------------------------------------------------------------------------------------------------

    def segments(self) -> Iterator[int]:
        """Every segment that the index knows against its file."""
        with self._index.reading() as txn:
            rows = list(self._index.all_segments(txn))
        for number, row in rows:
            if row.state is not SegmentState.SWEEPING:
                self._segment(number, row)
            yield 1

    def _segment(self, number: int, row: SegmentRow) -> None:
        thing = f"segments/{segment_name(number)}"
        if row.suspect:
            if self._still(number, row):
                trouble = (
                    "it was given up (its header is damaged, or the disk did not keep it): what it held is missing"
                )
                self._found(
                    thing, trouble, next_step="look after the disk; upkeep removes it, uploads bring its blobs back"
                )
            return
        try:
            file = SegmentFile(self._path(number), number)
            if file.header.number != number:
                raise Damaged(f"it says that it is segment {file.header.number:08x}")
        except Newer as why:
            self._found(thing, f"it was written by a newer Millpond: {why}", next_step="upgrade Millpond")
            return
        except (Damaged, OSError) as why:
            if self._still(number, row):
                self._lost(thing, number, row, "it is gone" if isinstance(why, FileNotFoundError) else _said(why))
            return
        size_bytes = os.fstat(file.descriptor).st_size
        if size_bytes < row.end:
            trouble = f"it has {size_bytes} bytes and should have {row.end}: what was behind them is lost"
            self._found(thing, trouble, next_step=_DEEP)
        elif row.state is SegmentState.SEALED:
            self._sealed(thing, file, row)
        else:
            self._open(thing, file, row)

    def _still(self, number: int, row: SegmentRow) -> bool:
        """Whether the index says of a segment what it said when we looked, or nearly so."""
        with self._index.reading() as txn:
            now = self._index.segment(txn, number)
        return now is not None and now.state is not SegmentState.SWEEPING and now.suspect == row.suspect

    def _lost(self, thing: str, number: int, row: SegmentRow, why: str) -> None:
        repaired = ""
        if self._repair:
            with self._index.writing() as txn:
                now = self._index.segment(txn, number)
                if now is not None:
                    self._index.put_segment(txn, number, now._replace(suspect=True, incarnation=now.incarnation + 1))
            repaired = "they count as missing now, and uploads bring them back"
        self._found(thing, f"{why}: its {row.live_count} blobs are lost", repaired=repaired)

    def _sealed(self, thing: str, file: SegmentFile, row: SegmentRow) -> None:
        try:
            trouble = _footer_trouble(file, row)
        except (Damaged, OSError) as why:
            trouble = _said(why)
        if not trouble or not self._still(file.number, row):
            return
        trouble = f"its footer, which the next index would be made of, is of no use ({trouble})"
        if not self._repair:
            self._found(thing, trouble)
        elif self._reseal(file, row):
            self._found(thing, trouble, repaired="it was written anew")
        else:
            self._found(thing, f"{trouble}, and cannot be written anew: a record is damaged", next_step=_DEEP)

    def _reseal(self, file: SegmentFile, row: SegmentRow) -> bool:
        """Write a footer anew, behind the records; False when those are damaged.

        Readers do not look there, and a crash in the middle leaves a segment without a footer, which is read record by
        record.
        """
        records = list(_records(file, row))
        if not records or records[-1].end != row.end:
            return False
        listed = self._index.entries([record.key for record in records])
        places = {(entry.segment, entry.offset) for entry in listed.values()}
        kept = [record for record in records if (file.number, record.offset) in places]  # the others are dead
        descriptor = os.open(self._path(file.number), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, row.end)
            write_all(descriptor, [footer(kept, row.end, file.seed)], row.end)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        return True

    def _open(self, thing: str, file: SegmentFile, row: SegmentRow) -> None:
        end = _records_end(file, row)
        if end < row.end and self._still(file.number, row):
            self._found(
                thing, f"the record at {end} is damaged; the index lists records up to {row.end}", next_step=_DEEP
            )

    def _path(self, number: int) -> str:
        return os.path.join(self._layout.segments, segment_name(number))

    # -- index ------------------------------------------------------------------------------------------------------

    def blobs(self) -> int:
        """How many entries there are."""
        with self._index.reading() as txn:
            count: int = txn.stat(self._index.blobs)["entries"]
        return count

    def entries(self) -> Iterator[int]:
        """Every entry against its segment's row, and what the rows say of their entries."""
        counted: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        wrong: list[tuple[bytes, Entry]] = []
        with self._index.reading() as txn:  # one moment: counts would not fit otherwise
            rows = dict(self._index.all_segments(txn))
            bounds = {number: row.end for number, row in rows.items()}
            with txn.cursor(self._index.blobs) as cursor:
                for part in _parts(cursor):
                    for key, entry in part:
                        number, offset, size, _ = entry
                        length = record_bytes(size)
                        if offset < SEGMENT_HEADER_BYTES or offset + length > bounds.get(number, 0):
                            wrong.append((key, Entry._make(entry)))
                            if self._repair:
                                continue  # it goes, and counts no more
                        counts = counted[number]
                        counts[0] += 1
                        counts[1] += length
                    yield len(part)
        for key, entry in wrong:
            self._entry_out_of_place(key, entry, rows.get(entry.segment))
        for number, row in rows.items():
            self._counts(number, row, *counted.get(number, (0, 0)))

    def _entry_out_of_place(self, key: bytes, entry: Entry, row: SegmentRow | None) -> None:
        where = f"at {entry.offset} of segment {entry.segment:08x}"
        trouble = f"the index lists it {where}, which " + (f"ends at {row.end}" if row else "does not exist")
        repaired = ""
        if self._repair:
            with self._index.writing() as txn:
                if txn.get(key, db=self._index.blobs) == entry.encode():
                    txn.delete(key, db=self._index.blobs)
            repaired = "it is a miss now, and the next upload brings it back"
        self._found(f"blob {Digest(key, entry.size_bytes)}", trouble, repaired=repaired)

    def _counts(self, number: int, row: SegmentRow, count: int, live_bytes: int) -> None:
        if not row.holds or (row.live_count, row.live_bytes) == (count, live_bytes):
            return
        trouble = f"the index counts {row.live_count} blobs of {row.live_bytes} bytes there, and lists {count} of {live_bytes}"
        repaired = ""
        if self._repair:
            with self._index.writing() as txn:
                now = self._index.segment(txn, number)
                if now is not None:  # by the difference: others may have counted on meanwhile
                    now = now._replace(
                        live_count=max(0, now.live_count + count - row.live_count),
                        live_bytes=max(0, now.live_bytes + live_bytes - row.live_bytes),
                    )
                    self._index.put_segment(txn, number, now)
            repaired = "it was counted anew"
        self._found(f"segments/{segment_name(number)}", trouble, repaired=repaired)

    # -- the ledger -------------------------------------------------------------------------------------------------

    def ledger(self) -> None:
        """What the ledger of room charges for sealed segments against what their files take, and its sum."""
        space = Space(self._index, self._layout, reserve_bytes=0)
        with self._index.reading() as txn:
            said = space.used_bytes(txn)
            wrong = self._wrong_charges(space, txn)
            fits = space.add_up(txn, change=False)
        if fits and not wrong:
            return
        what = f"is wrong about {len(wrong)} of them" if wrong else "its parts have another sum"
        trouble = f"it says that segments take {said} bytes, and {what}"
        repaired = ""
        if self._repair:
            with self._index.writing() as txn:
                for number, size_bytes in self._wrong_charges(space, txn).items():
                    if size_bytes:
                        space.takes(txn, number, size_bytes)
                    else:
                        space.free(txn, number)
                space.add_up(txn)
                repaired = f"now {space.used_bytes(txn)}, as their files take"
        self._found("the ledger of room", trouble, repaired=repaired)

    def _wrong_charges(self, space: Space, txn: Transaction) -> dict[int, int]:
        """Segments that are charged wrongly, with what they take; 0 for one that is no more. Open ones grow: not they."""
        wrong: dict[int, int] = {}
        charges = space.charges(txn)
        for number, row in self._index.all_segments(txn):
            charged = charges.pop(number, 0)
            if row.state is SegmentState.SEALED and row.holds:
                taken = file_bytes(self._path(number))
                if taken and abs(taken - charged) > _LEDGER_SLACK_BYTES:
                    wrong[number] = taken
        return wrong | {number: 0 for number in charges if not os.path.exists(self._path(number))}

    # -- files ------------------------------------------------------------------------------------------------------

    def orphans(self) -> None:
        """Files that nobody lists and nobody has open."""
        with self._index.reading() as txn:
            listed = {number for number, _ in self._index.all_segments(txn)}
        departed = {path for _, path in departed_segments(self._layout.segments)}
        for entry in _files(self._layout.segments):
            number = segment_number(entry.name)
            if entry.path in departed:
                continue  # upkeep sees to it
            if number is None or number not in listed:
                self._orphan(entry, number, "the index does not know it", _IN_THE_MAKING_MS)
        for entry in _files(self._layout.uploads):
            self._orphan(entry, None, "nobody went on with this upload for a day", _OLD_UPLOAD_MS)

    def _orphan(self, entry: "os.DirEntry[str]", number: int | None, trouble: str, young_ms: int) -> None:
        with suppress(FileNotFoundError):
            descriptor = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                age_ms = self._clock() - os.fstat(descriptor).st_mtime_ns // 1_000_000
                if age_ms < young_ms or not locks.try_lock(descriptor, exclusive=True) or self._is_listed(number):
                    return
                repaired = ""
                if self._repair:
                    os.unlink(entry.path)
                    repaired = "it was removed"
                size_bytes = os.fstat(descriptor).st_blocks * 512
            finally:
                os.close(descriptor)
            place = os.path.relpath(entry.path, self._layout.root)
            self._found(place, f"{trouble}; it takes {size_bytes} bytes", repaired=repaired)

    def _is_listed(self, number: int | None) -> bool:
        if number is None:
            return False
        with self._index.reading() as txn:
            return self._index.segment(txn, number) is not None


def _files(directory: str) -> "list[os.DirEntry[str]]":
    with os.scandir(directory) as entries:
        return sorted((entry for entry in entries if entry.is_file(follow_symlinks=False)), key=lambda one: one.name)


def _parts(cursor: Iterator[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, tuple[int, int, int, int]]]]:
    """Keys with their decoded entries, many at once."""
    keys: list[bytes] = []
    values: list[bytes] = []
    for key, value in cursor:
        keys.append(key)
        values.append(value)
        if len(keys) == _ROWS_AT_ONCE:
            yield list(zip(keys, ENTRY.iter_unpack(b"".join(values)), strict=True))
            keys, values = [], []
    yield list(zip(keys, ENTRY.iter_unpack(b"".join(values)), strict=True))


def _said(why: Exception) -> str:
    return str(told_of_reading(why)) if isinstance(why, OSError) else str(why)


def _footer_trouble(file: SegmentFile, row: SegmentRow) -> str:
    """What is wrong with the footer of a sealed segment; empty when nothing is.

    Raises:
        Damaged: it does not verify.
        OSError: it cannot be read.
    """
    size = os.fstat(file.descriptor).st_size
    begin = footer_begin(os.pread(file.descriptor, FOOTER_END_BYTES, max(0, size - FOOTER_END_BYTES)), file.seed)
    if begin != row.end:
        return f"it begins at {begin}, not at {row.end}"
    parse_footer(os.pread(file.descriptor, size - begin, begin), file.header)
    return ""


def _records(file: SegmentFile, row: SegmentRow) -> Iterator[Record]:
    """The records whose headers verify, up to the first that does not."""
    return scan(
        lambda at, size: os.pread(file.descriptor, size, at),
        file.header,
        start=SEGMENT_HEADER_BYTES,
        end=row.end,
        verify_data=False,
    )


def _records_end(file: SegmentFile, row: SegmentRow) -> int:
    """Where they end."""
    end = SEGMENT_HEADER_BYTES
    for record in _records(file, row):
        end = record.end
    return end
