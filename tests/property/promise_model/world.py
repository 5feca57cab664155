"""The state of the modelled repository and of everybody who works on it: values only, compared and hashed as such.

A blob is a letter and has no size; a record is one blob; an offset is a count of records. A process is a stack of steps
still to do, so a state says by itself what can happen next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Step = tuple[Any, ...]
"""A method of the protocol, by name, and its arguments."""

Line = tuple[str, str]
"""A touch line: "lease" and blobs; "name" and a name and binding; "former" and segments that a replaced note named."""

WORKERS = (0, 1)
UPKEEPER = 2

OPEN, SEALED, SWEEPING, FORWARD = "open", "sealed", "sweeping", "forward"


class File(NamedTuple):
    """A segment's file; which of them carries which number says its ``number`` as long as it is ``linked``."""

    number: int
    records: str = ""
    synced: int = 0
    """Records that a power loss leaves."""
    refused: bool = False
    """Whether the disk refused to write some of it; later syncs say that all is well, and nothing comes of them."""
    entered: bool = False
    """Whether its directory entry is on disk."""
    footer: str = ""
    """The records that its footer lists."""
    footer_synced: bool = False
    linked: bool = True
    locked_by: int = -1


class Row(NamedTuple):
    """What the index knows of a segment."""

    state: str
    end: int = 0
    synced_to: int = 0
    incarnation: int = 0
    suspect: bool = False

    @property
    def holds(self) -> bool:
        return self.state in (OPEN, SEALED) and not self.suspect


Entry = tuple[int, int]
"""Segment and offset."""
Note = tuple[int, tuple[tuple[int, int], ...]]
"""What ``closures`` keeps of a name: which binding, and the segments and incarnations where it lies."""


class Index(NamedTuple):
    """Survives the death of a process, and no power loss."""

    entries: tuple[Entry | None, ...]
    rows: tuple[Row | None, ...]
    """By number, from 1."""
    notes: tuple[Note | None, ...]

    def row(self, number: int) -> Row | None:
        return self.rows[number - 1] if number <= len(self.rows) else None

    def with_row(self, number: int, row: Row | None) -> Index:
        rows = self.rows + (None,) * (number - len(self.rows))
        return self._replace(rows=changed(rows, number - 1, row))


class Process(NamedTuple):
    """A worker with one client, or the upkeeper."""

    steps: tuple[Step, ...] = ()
    lock: str = ""
    """Its side of the promise lock: "", "shared" or "exclusive"."""
    descriptors: tuple[int, ...] = ()
    """The files that it has open for reading."""
    current: int = -1
    """The file that it appends to."""
    alive: bool = True


class World(NamedTuple):
    """All of it."""

    files: tuple[File, ...]
    index: Index
    names: tuple[int, ...]
    """Which binding each name has, 0 when none; on disk when it is here."""
    counter: int
    """The last segment number given out; on disk."""
    log: tuple[Line, ...]
    """Touch lines that upkeep has not read yet. What matters is which there are, so they are kept in one order."""
    used: str
    """Blobs that upkeep knows to be in use."""
    processes: tuple[Process, ...]
    crashes: int = 0
    """How many may still happen."""
    power_losses: int = 0
    bad_syncs: int = 0
    owed: str = ""
    """Blobs that somebody was told are here (I8). Nothing of this is old enough to be evicted while the model runs."""
    whole: tuple[tuple[int, int], ...] = ()
    """Names (and which binding) that were acknowledged or answered, and lost no blob to eviction since."""
    broken: str = ""
    """What went wrong in the last step, as somebody outside would see it."""


def changed(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    """``values`` with another value at one place."""
    return (*values[:at], value, *values[at + 1 :])


def joined(blobs: str, more: str) -> str:
    """A set of blobs, written in one way."""
    return "".join(sorted({*blobs, *more}))


def at(blob: str) -> int:
    """Where a blob's entry is."""
    return ord(blob) - ord("a")


def noted(log: tuple[Line, ...], kind: str, what: str) -> tuple[Line, ...]:
    """A log with one more line."""
    line = (kind, what)
    return log if line in log else tuple(sorted((*log, line)))


def linked(world: World, number: int) -> int:
    """The file under a number, -1 when there is none."""
    for place, file in enumerate(world.files):
        if file.linked and file.number == number:
            return place
    return -1


def listed(index: Index, blob: str) -> Entry | None:
    """Where the index says that a blob is, if its segment holds."""
    entry = index.entries[at(blob)]
    row = index.row(entry[0]) if entry else None
    return entry if row is not None and row.holds else None


def lies_in(index: Index, blob: str, number: int) -> bool:
    """Whether the blob's entry points to a segment, whatever that segment's state is."""
    entry = index.entries[at(blob)] if at(blob) < len(index.entries) else None
    return entry is not None and entry[0] == number


def is_owed(world: World, blob: str) -> bool:
    """Whether somebody may count on a blob. Nobody may on what the disk refused to write."""
    return blob in world.owed and not is_suspect(world, blob)


def is_suspect(world: World, blob: str) -> bool:
    """Whether the disk refused to write where a blob is."""
    entry = world.index.entries[at(blob)]
    row = world.index.row(entry[0]) if entry else None
    return row is not None and row.suspect


def held(world: World, blob: str) -> bool:
    """Whether a blob is listed and its bytes are where the index says."""
    entry = listed(world.index, blob)
    if entry is None:
        return False
    place = linked(world, entry[0])
    return place >= 0 and world.files[place].records[entry[1] : entry[1] + 1] == blob
