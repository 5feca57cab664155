"""Names on disk, in an LMDB environment of their own.

The rule: a call that returned is on disk, and a value is believed only with its checksum. The environment is fully
synchronous; names are few and precious, and group commit makes their fsync bearable. A read transaction lives for
microseconds, never across a ``yield``: LMDB cannot reuse a page while an older reader lives.

Tables: ``bindings`` (``Name.row`` -> ``values``), ``counters`` (sealed like bindings), ``meta`` (the format), ``pins``
and ``broken`` (``names.marks``), ``changes`` (``names.changes``).
All processes on one host; in one process one :class:`LmdbNames` per path, because two would drop each other's locks.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import lmdb

from millpond.core import limits
from millpond.core.errors import MillpondError, NameNotFound, NotReady, NotServed
from millpond.core.names import Name, Namespace
from millpond.core.outcome import Outcome
from millpond.disk.blocks import ROWS, Governed, pieces
from millpond.disk.group_writer import GroupWriter, Work
from millpond.names import environment, room, values
from millpond.names.binding import Binding
from millpond.names.changes import Changes
from millpond.names.consequences import Consequences
from millpond.names.marks import BrokenNames, Pins
from millpond.names.recent import Recent

_Result = TypeVar("_Result")

_NUMBERS_ROW = b"segments"
_NUMBER_BYTES = 8
_GATHER_SECONDS = 0.001
"""About two commits. Tried with 8 callers: from 0.6 to 2 ms it is the same."""
_NAME_ROWS = 2
"""What a name changes: its own row, and one in the list of changes."""
_CHUNK_ROWS = 256
"""How much of a listing is read in one transaction, at most ``limits.CHUNK_BYTES`` plus one value."""

_log = logging.getLogger(__name__)


class LmdbNames:
    """A NameIndex and a NumberSource in the directory ``path``.

    ``read_only`` opens what exists and writes nothing; where ``lock.mdb`` cannot be written it reads without a lock,
    which is right for a copy that nobody writes and a gamble elsewhere. ``lock=False`` asks for that at once; who
    writes always locks. ``must_exist``: names were here before, so that none at all is damage. ``limit_bytes`` tells
    how much they may hold.

    Raises:
        RefusedToStart: damaged, of a newer format, not names, not there, or already open in this process.

    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        must_exist: bool = False,
        limit_bytes: Callable[[], int] | None = None,
        map_bytes: int = limits.LMDB_MAP_BYTES,
        lock: bool = True,
    ) -> None:
        self._path = path
        self._closed = False
        self._opened = False  # until then a failure is a reason not to start, and told as such
        self._damaged: set[bytes] = set()
        self._recent = Recent()
        self._writer: GroupWriter | None = None
        self._governed: Governed | None = None
        self._presence = environment.enter(path, read_only=read_only, must_exist=must_exist, map_bytes=map_bytes)
        try:
            self._env = environment.open_environment(path, read_only=read_only, map_bytes=map_bytes, lock=lock)
        except BaseException:
            self._leave()
            raise
        try:
            if read_only:
                tables = environment.tables_to_read(path, self._env)
            else:
                self._governed = governed = Governed(self._env, str(path))
                self._writer = GroupWriter(
                    governed.writing,
                    "names-writer",
                    told=self._told,
                    ending=self._end,
                    most_rows=governed.rows_at_once,
                    gather_seconds=_GATHER_SECONDS,
                )
                tables = environment.tables_to_write(path, self._env, self._writer, must_exist=must_exist)
        except BaseException:
            self.close()
            raise
        self._bindings, self._counters = tables[b"bindings"], tables[b"counters"]
        self._tables = tables
        if self._governed is not None:
            self._governed.tables = list(tables.values())
        self.changes = Changes(tables.get(b"changes"), self._reading)
        self.pins = Pins(tables.get(b"pins"), self._reading, self._write)
        self.broken = BrokenNames(tables.get(b"broken"), self._reading, self._write)
        self._room = room.Room(self._counters, self._bindings)
        self._consequences = Consequences(tables[b"meta"], self._room, self.changes, limit_bytes)
        self._opened = True

    def bind(self, bindings: Sequence[tuple[Name, Binding]]) -> None:
        """See :meth:`NameIndex.bind`."""
        self.bind_later(bindings).result()

    def bind_later(
        self,
        bindings: Sequence[tuple[Name, Binding]],
        *,
        overwrite: bool = True,
        first: Callable[[], None] | None = None,
    ) -> "Outcome[None]":
        """See :meth:`NameIndex.bind_later`."""
        rows = [(name.row, self._recent.value_of(name, binding)) for name, binding in bindings]

        def write(transaction: "lmdb.Transaction[bytes]") -> None:
            put = [one for one in rows if overwrite or not self._is_bound(transaction, one[0])]
            grown_bytes = sum([self._put(transaction, row, value) for row, value in put])
            self._consequences.changed(transaction, [row for row, _ in put], grown_bytes)

        return self._open_writer().submit(Work(write, rows=sum([_rows(value) for _, value in rows]), first=first))

    def resolve(self, name: Name) -> Binding:
        """See :meth:`NameIndex.resolve`."""
        row = name.row
        try:
            with self._env.begin(self._bindings) as transaction:
                value = transaction.get(row)
        except lmdb.Error as error:
            raise self._unread(error) from error
        if value is not None:
            try:
                return self._recent.binding_of(row, value)
            except values.Damaged as damage:
                self._report(row, damage)
        raise NameNotFound(f"{name.key[:200]!r} is not bound")

    def unbind(self, name: Name, expected: Binding | None = None) -> bool:
        """See :meth:`NameIndex.unbind`. Without ``expected`` a damaged value is removed as well."""
        row = name.row

        def remove(transaction: "lmdb.Transaction[bytes]") -> bool:
            if expected is not None and not self._is_bound_to(transaction, row, expected):
                return False
            return self._delete(transaction, [row]) == 1

        return self._write(remove)

    def unbind_many(self, bindings: Sequence[tuple[Name, Binding]]) -> list[tuple[Name, Binding]]:
        """Remove those of ``bindings`` that are still bound so, some per transaction; which they were.

        Raises:
            NoSpace: as :meth:`unbind`.
        """

        def remove(
            transaction: "lmdb.Transaction[bytes]", some: Sequence[tuple[Name, Binding]]
        ) -> list[tuple[Name, Binding]]:
            removed = [one for one in some if self._is_bound_to(transaction, one[0].row, one[1])]
            self._delete(transaction, [name.row for name, _ in removed])
            return removed

        at_once = max(1, self._governed.rows_at_once() // _NAME_ROWS) if self._governed else 1
        removed: list[tuple[Name, Binding]] = []
        for some in pieces(bindings, at_once):
            removed += self._write(partial(remove, some=some), rows=_NAME_ROWS * len(some))
        return removed

    def _put(self, transaction: "lmdb.Transaction[bytes]", row: bytes, value: bytes) -> int:
        """Write a row; the bytes that it takes more than what it replaces."""
        before = transaction.get(row, db=self._bindings)
        transaction.put(row, value, db=self._bindings)
        return room.taken_bytes(value) - (0 if before is None else room.taken_bytes(before))

    def _delete(self, transaction: "lmdb.Transaction[bytes]", rows: Sequence[bytes]) -> int:
        """Remove those of ``rows`` that are there; how many they were."""
        held = {row: value for row in rows if (value := transaction.get(row, db=self._bindings)) is not None}
        for row in held:
            transaction.delete(row, db=self._bindings)
        if held:
            self._consequences.changed(transaction, held, -sum(map(room.taken_bytes, held.values())))
        return len(held)

    def _is_bound_to(self, transaction: "lmdb.Transaction[bytes]", row: bytes, expected: Binding) -> bool:
        value = transaction.get(row, db=self._bindings)
        try:
            return value is not None and values.binding_of(row, value) == expected
        except values.Damaged as damage:
            self._report(row, damage)
            return False

    def _is_bound(self, transaction: "lmdb.Transaction[bytes]", row: bytes) -> bool:
        value = transaction.get(row, db=self._bindings)
        try:
            return value is not None and bool(values.binding_of(row, value))
        except values.Damaged as damage:
            self._report(row, damage)
            return False

    def names(self, namespace: Namespace | None = None) -> Iterator[tuple[Name, Binding]]:
        """See :meth:`NameIndex.names`."""
        for row, value in self.rows():
            try:
                entry = values.entry_of(row, value)
            except values.Damaged as damage:
                self._report(row, damage)
                continue
            if entry is not None and namespace in (None, entry[0].namespace):
                yield entry

    def entry(self, row: bytes) -> tuple[Name, Binding] | None:
        """The name whose ``Name.row`` this is and what it is bound to; None when it is not bound, or damaged."""
        with self._reading() as transaction:
            value = transaction.get(row, db=self._bindings)
        try:
            return None if value is None else values.entry_of(row, value)
        except values.Damaged as damage:
            self._report(row, damage)
            return None

    def version(self) -> int:
        """A number that grows with every change by any process, of whatever is kept here."""
        return int(self._env.info()["last_txnid"])

    def count(self) -> int:
        """How many names there are."""
        with self._reading() as transaction:
            return int(transaction.stat(self._bindings)["entries"])

    def held_bytes(self) -> int:
        """What names take."""
        with self._reading() as transaction:
            return self._room.held_bytes(transaction)

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """All bindings as they are written, by row; like :meth:`names` not one snapshot."""
        after = b""
        while chunk := self._chunk(after):
            yield from chunk
            after = chunk[-1][0]

    def copy_notes(self, copy: lmdb.Environment, transaction: "lmdb.Transaction[bytes]") -> None:
        """Write all but the bindings into ``transaction`` of another environment: format, counters, pins."""
        with self._reading() as own:
            for key, table in self._tables.items():
                if key in (b"meta", b"counters", b"pins"):
                    target = copy.open_db(key, txn=transaction)
                    for row, value in own.cursor(table):
                        if row != room.ROW:  # what the copy holds is counted there
                            transaction.put(row, value, db=target)

    def next_number(self) -> int:
        """The first number that :meth:`take_numbers` has not given out.

        Raises:
            NotReady: the counter is damaged.
        """
        with self._reading() as transaction:
            value = transaction.get(_NUMBERS_ROW, db=self._counters)
        try:
            return _number(value)
        except values.Damaged as damage:
            raise self._no_numbers() from damage

    def raise_numbers(self, first: int) -> None:
        """See to it that no number below ``first`` is given out any more, even if the counter was damaged."""

        def work(transaction: "lmdb.Transaction[bytes]") -> None:
            try:
                following = max(first, _number(transaction.get(_NUMBERS_ROW, db=self._counters)))
            except values.Damaged:
                following = first
            transaction.put(_NUMBERS_ROW, _sealed_number(following), db=self._counters)

        self._write(work)

    def take_numbers(self, count: int) -> range:
        """See :meth:`NumberSource.take_numbers`."""

        def take(transaction: "lmdb.Transaction[bytes]") -> range:
            first = _number(transaction.get(_NUMBERS_ROW, db=self._counters))
            transaction.put(_NUMBERS_ROW, _sealed_number(first + count), db=self._counters)
            return range(first, first + count)

        try:
            return self._write(take)
        except values.Damaged as damage:  # a guess could give a number out twice (I9)
            raise self._no_numbers() from damage

    def _no_numbers(self) -> NotReady:
        _log.critical("%s", environment.damaged(self._path, "the counter of segment numbers"))
        return NotReady("the store cannot begin a new segment: the server's log says why")

    def free_dead_readers(self) -> int:
        """Give back the reader slots of processes that died, which would pin pages for ever. How many there were."""
        try:
            return self._env.reader_check()
        except lmdb.Error as error:
            raise self._unread(error) from error

    def close(self) -> None:
        """See :meth:`NameIndex.close`."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()
        if self._governed is not None:
            self._governed.close()
        self._env.close()
        self._leave()

    def _leave(self) -> None:
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None

    @contextmanager
    def _reading(self) -> Iterator["lmdb.Transaction[bytes]"]:
        try:
            with self._env.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self._unread(error) from error

    def _write(self, work: Callable[["lmdb.Transaction[bytes]"], _Result], *, rows: int = ROWS) -> _Result:
        return self._open_writer().run(work, rows=rows)

    def _end(self, transaction: "lmdb.Transaction[bytes]") -> None:
        if self._opened:
            self._consequences.write(transaction)

    def _open_writer(self) -> GroupWriter:
        if self._writer is None:
            raise self._closing() if self._closed else NotServed("this server only reads names")
        return self._writer

    def _told(self, failure: Exception) -> Exception:
        return (
            environment.unwritten(self._path, failure) if self._opened and isinstance(failure, lmdb.Error) else failure
        )

    def _chunk(self, after: bytes) -> list[tuple[bytes, bytes]]:
        """Rows that follow ``after``; empty at the end."""
        chunk: list[tuple[bytes, bytes]] = []
        room_bytes = limits.CHUNK_BYTES
        try:
            with self._env.begin(self._bindings) as transaction, transaction.cursor() as cursor:
                if cursor.set_range(after + b"\0"):
                    for row, value in cursor:
                        chunk.append((row, value))
                        room_bytes -= len(value)
                        if room_bytes <= 0 or len(chunk) == _CHUNK_ROWS:
                            break
        except lmdb.Error as error:
            raise self._unread(error) from error
        return chunk

    @property
    def damaged(self) -> frozenset[bytes]:
        """The rows whose values were found not to verify, so far. A listing finds all."""
        return frozenset(self._damaged)

    def _report(self, row: bytes, damage: values.Damaged) -> None:
        if row not in self._damaged:
            self._damaged.add(row)
            _log.error("the name in row %s of %s counts as absent: %s", row.hex(), self._path, damage)

    def _unread(self, error: lmdb.Error) -> MillpondError:
        return self._closing() if self._closed else environment.unread(self._path, error)

    def _closing(self) -> NotReady:
        return NotReady("the names are closed: the server is stopping")


def _rows(value: bytes) -> int:
    return _NAME_ROWS + len(value) // 128


def _number(value: bytes | None) -> int:
    """The next number that a counter stands for.

    Raises:
        Damaged: see :func:`values.unseal`.
    """
    return 1 if value is None else int.from_bytes(values.unseal(_NUMBERS_ROW, value), "little")


def _sealed_number(number: int) -> bytes:
    return values.seal(_NUMBERS_ROW, number.to_bytes(_NUMBER_BYTES, "little"))
