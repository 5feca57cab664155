"""Reading the touch logs: to merge them into the table of uses, and to look at their ends once more.

Each process appends to logs of its own (``store.uses.touch_log``). Here they are read from where the last reader stopped;
how far that was stands in the table of uses, written in the transaction that holds what was read. A log whose process
lets it go and that has been read to its end is removed, so that they stay few.

The rule: what is in a log is merged before the log goes, and merging it twice changes nothing.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.disk import locks
from millpond.disk.blocks import pieces
from millpond.store.uses import tally
from millpond.store.uses.table import Row, Uses
from millpond.store.uses.touch_log import Group, Kind, decode, group_bytes
from millpond.store.uses.use import NameUse

_PIECE_BYTES = 256 * limits.KIB
_ROWS_AT_ONCE = 100_000
"""How many rows are folded in memory before they are written."""
_ROW_BYTES = 32
_NEWBORN_SECONDS = 60.0
"""An empty log that nobody holds may be one whose process is just about to lock it."""
_AT = b"log:"
_KEY_BYTES = 33
_row = itemgetter(0)
_OF_BLOBS = (Kind.USED, Kind.LEASED, Kind.WALKED)


class Touched(NamedTuple):
    """What is in the logs and not merged yet."""

    keys: set[bytes]
    """Blobs that were used or promised."""
    names: set[bytes]
    """Rows of names whose closures were used without being walked."""


class _Reader:
    """One log, read from a position on."""

    def __init__(self, path: str, position: int) -> None:
        self.path = path
        self.position = position

    def groups(self) -> Iterator[Group]:
        """The groups that follow, up to the first that is not there or does not verify.

        Raises:
            OSError: the log cannot be read; FileNotFoundError: it is gone.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = _PIECE_BYTES
            while True:
                piece = os.pread(descriptor, size, self.position)
                found = False
                for group in decode(piece):
                    found = True
                    self.position += group_bytes(group)
                    yield group
                if not found:
                    # Either the end, or a group longer than what was read of it.
                    if len(piece) < size or size > limits.TOUCH_LOG_BYTES or not piece.startswith(b"tch1"):
                        return
                    size *= 8
        finally:
            os.close(descriptor)


class TouchReader:
    """Reads what came since the last merge, again and again, without merging it. Not for several threads."""

    def __init__(self, directory: str, positions: dict[str, int]) -> None:
        self._directory = directory
        self._readers = {name: _Reader(os.path.join(directory, name), at) for name, at in positions.items()}
        self.touched = Touched(set(), set())

    def read(self) -> Touched:
        """All that was touched since the merge, up to this moment."""
        keys, names = self.touched
        for name in _names(self._directory):
            reader = self._readers.setdefault(name, _Reader(os.path.join(self._directory, name), 0))
            with suppress(FileNotFoundError):
                for group in reader.groups():
                    if group.kind in _OF_BLOBS:
                        keys.update(group.rows)
                    elif group.kind is Kind.NAME_USED:
                        names.update(group.rows)
        return self.touched


class Merger:
    """Merges the logs into the table of uses. Used by whoever holds ``upkeep.lock``."""

    def __init__(self, directory: str, uses: Uses, clock: Clock) -> None:
        self._directory = directory
        self._uses = uses
        self._clock = clock

    def waiting_bytes(self) -> int:
        """How much there is at most to merge."""
        total = 0
        for name in _names(self._directory):
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(self._directory, name)).st_size - self._position(name)
        return total

    def reader(self) -> TouchReader:
        """A reader of what comes after what is merged."""
        return TouchReader(self._directory, {name: self._position(name) for name in _names(self._directory)})

    def merge(self, *, seconds: float = float("inf")) -> int:
        """Merge all that is there, or what can be merged in that time; the number of rows that were read."""
        until = time.monotonic() + seconds
        names = _names(self._directory)
        readers: list[_Reader] = []
        fold = _Fold(self._uses, self._clock())
        for name in names:
            if time.monotonic() > until:
                break
            reader = _Reader(os.path.join(self._directory, name), self._position(name))
            if self._read(reader, fold, _AT + name.encode(), until):
                readers.append(reader)
        fold.write()
        for reader in readers:
            with suppress(FileNotFoundError):
                _remove_if_over(reader)
        self._forget_gone(set(names))
        return fold.rows

    def _position(self, name: str) -> int:
        return int(self._uses.remembered(_AT + name.encode()) or 0)

    def _read(self, reader: "_Reader", fold: "_Fold", meta_key: bytes, until: float) -> bool:
        """Take a log in; whether that was all of it."""
        try:
            for group in reader.groups():
                fold.add(group, meta_key, reader.position)
                if time.monotonic() > until:
                    return False
        except FileNotFoundError:
            return False
        return True

    def _forget_gone(self, names: set[str]) -> None:
        with self._uses.reading() as txn, txn.cursor(self._uses.meta) as cursor:
            known = []
            if cursor.set_range(_AT):
                for key in cursor.iternext(keys=True, values=False):
                    if not key.startswith(_AT):
                        break
                    known.append(key)
        for key in known:
            if key.removeprefix(_AT).decode() not in names:
                self._uses.remember(key, None)


class _Fold:
    """Rows of the logs on their way into the tables: of each blob only the last times are written."""

    def __init__(self, uses: Uses, now_ms: int) -> None:
        self.rows = 0
        self._uses = uses
        self._now_ms = now_ms
        self._clear()

    def _clear(self) -> None:
        self._positions: dict[bytes, int] = {}
        self._rows: dict[bytes, Row] = {}
        self._names: list[tuple[bytes, NameUse]] = []
        self._counted: list[Group] = []

    def add(self, group: Group, meta_key: bytes, position: int) -> None:
        """Take a group in; ``position`` is where the next one begins in its log, kept under ``meta_key``."""
        # A clock that was wrong must not make anything young for ever.
        time_ms = min(group.time_ms, self._now_ms)
        self.rows += len(group.rows)
        self._positions[meta_key] = position
        if group.kind in _OF_BLOBS:
            keys = group.rows if len(group.rows[0]) == _KEY_BYTES else []
            lease_ms = 0 if group.kind is Kind.USED else time_ms + limits.LEASE_MS
            self._add_use(keys, (time_ms, lease_ms, int(group.kind is Kind.LEASED)))
        elif group.kind is Kind.COUNTED:
            self._counted.append(group)
        else:
            self._names += [_name_use(group.kind, row, time_ms) for row in group.rows]
        if len(self._rows) >= _ROWS_AT_ONCE:
            self.write()

    def _add_use(self, keys: Sequence[bytes], use: Row) -> None:
        rows = self._rows
        fresh = dict.fromkeys(keys, use)  # most blobs are new: there is nothing to be done for each of them
        if len(fresh) == len(keys) and rows.keys().isdisjoint(fresh):
            rows.update(fresh)
            return
        time_ms, lease_ms, grants = use
        for key in keys:
            before_ms, leased_ms, granted = rows.get(key, (0, 0, 0))
            rows[key] = (max(time_ms, before_ms), max(lease_ms, leased_ms), grants + granted)

    def write(self) -> None:
        """Write what was taken in, and then how far that was: it is taken in once more by whoever finds us killed before.

        Of that nothing comes but that some leases, of which grants are counted twice, may last for their full hour.
        """
        if not self._positions:
            return
        uses, at_once = self._uses, self._uses.at_once()
        rows = self._rows
        for some in pieces(sorted(rows), at_once):
            with uses.writing(rows=len(some)) as txn:
                uses.note_in(txn, some, [rows[key] for key in some])
        for names in pieces(sorted(self._names, key=_row), at_once):
            with uses.writing(rows=len(names)) as txn:
                for row, use in names:
                    uses.note_name_in(txn, row, use)
        with uses.writing(rows=len(self._positions) + len(self._counted)) as txn:
            for group in self._counted:
                tally.add(txn, uses.meta, group)
            for meta_key, position in self._positions.items():
                txn.put(meta_key, b"%d" % position, db=uses.meta)
        self._clear()


def _name_use(kind: Kind, row: bytes, time_ms: int) -> tuple[bytes, NameUse]:
    if kind is Kind.NAME_USED:
        return row[:_ROW_BYTES], NameUse(time_ms)
    promised_ms = min(int.from_bytes(row[_ROW_BYTES:], "little"), time_ms)
    return row[:_ROW_BYTES], NameUse(time_ms, promised_ms, time_ms if kind is Kind.NAME_BOUND else 0)


def _names(directory: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(".log"))


def _remove_if_over(reader: _Reader) -> None:
    """Remove a log that was read to its end, if the process that wrote it is gone or has begun another.

    Its lock is held until the name is gone: whoever is just beginning the log waits for it, and then sees that.
    """
    descriptor = os.open(reader.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_over = locks.try_lock(descriptor, exclusive=True) and not any(True for _ in reader.groups())
        if is_over and (reader.position or time.time() - os.fstat(descriptor).st_mtime > _NEWBORN_SECONDS):
            os.unlink(reader.path)
    finally:
        os.close(descriptor)
