"""Names on disk, in an LMDB environment of their own.

The rule: a call that returned is on disk, and a value is believed only with its checksum. The environment is fully
synchronous; names are few and precious, and group commit makes their fsync bearable. A read transaction lives for
microseconds, never across a ``yield``: LMDB cannot reuse a page while an older reader lives.

Tables: ``bindings`` (``Name.row`` -> ``values``), ``counters`` (sealed like bindings), ``meta`` (the format).
All processes on one host; in one process one :class:`LmdbNames` per path, because two would drop each other's locks.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import lmdb

from millpond.core import limits
from millpond.core.errors import MillpondError, NameNotFound, NotReady, NotServed
from millpond.core.names import Name, Namespace
from millpond.disk.group_writer import GroupWriter, Work
from millpond.names import environment, values
from millpond.names.binding import Binding

_Result = TypeVar("_Result")

_NUMBERS_ROW = b"segments"
_NUMBER_BYTES = 8
_CHUNK_ROWS = 256
"""How much of a listing is read in one transaction, at most ``limits.CHUNK_BYTES`` plus one value."""

_log = logging.getLogger(__name__)


class LmdbNames:
    """A NameIndex and a NumberSource in the directory ``path``.

    ``read_only`` opens what exists and writes nothing; where ``lock.mdb`` cannot be written it reads without a lock,
    which is right for a copy that nobody writes and a gamble elsewhere. ``lock=False`` asks for that at once; who
    writes always locks.

    Raises:
        RefusedToStart: damaged, of a newer format, not names, not there, or already open in this process.

    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        map_bytes: int = limits.LMDB_MAP_BYTES,
        lock: bool = True,
    ) -> None:
        self._path = path
        self._closed = False
        self._opened = False  # until then a failure is a reason not to start, and told as such
        self._damaged: set[bytes] = set()
        self._writer: GroupWriter | None = None
        self._env = environment.open_environment(path, read_only=read_only, map_bytes=map_bytes, lock=lock)
        try:
            if read_only:
                tables = environment.tables_to_read(path, self._env)
            else:
                self._writer = GroupWriter(self._env, "names-writer", told=self._told)
                tables = environment.tables_to_write(path, self._env, self._writer)
        except BaseException:
            self.close()
            raise
        self._bindings, self._counters = tables[b"bindings"], tables[b"counters"]
        self._opened = True

    def bind(self, bindings: Sequence[tuple[Name, Binding]]) -> None:
        """See :meth:`NameIndex.bind`."""
        self.bind_later(bindings).result()

    def bind_later(self, bindings: Sequence[tuple[Name, Binding]]) -> "Future[None]":
        """See :meth:`NameIndex.bind_later`."""
        rows = [(name.row, values.value_of(name, binding)) for name, binding in bindings]

        def write(transaction: "lmdb.Transaction[bytes]") -> None:
            for row, value in rows:
                transaction.put(row, value, db=self._bindings)

        return self._open_writer().submit(Work(write))

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
                return values.binding_of(row, value)
            except values.Damaged as damage:
                self._report(row, damage)
        raise NameNotFound(f"{name.key[:200]!r} is not bound")

    def unbind(self, name: Name, expected: Binding | None = None) -> bool:
        """See :meth:`NameIndex.unbind`. Without ``expected`` a damaged value is removed as well."""
        row = name.row

        def remove(transaction: "lmdb.Transaction[bytes]") -> bool:
            if expected is not None:
                value = transaction.get(row, db=self._bindings)
                try:
                    if value is None or values.binding_of(row, value) != expected:
                        return False
                except values.Damaged as damage:
                    self._report(row, damage)
                    return False
            return transaction.delete(row, db=self._bindings)

        return self._write(remove)

    def names(self, namespace: Namespace | None = None) -> Iterator[tuple[Name, Binding]]:
        """See :meth:`NameIndex.names`."""
        after = b""
        while chunk := self._chunk(after):
            for row, value in chunk:
                try:
                    entry = values.entry_of(row, value)
                except values.Damaged as damage:
                    self._report(row, damage)
                    continue
                if entry is not None and namespace in (None, entry[0].namespace):
                    yield entry
            after = chunk[-1][0]

    def take_numbers(self, count: int) -> range:
        """See :meth:`NumberSource.take_numbers`."""

        def take(transaction: "lmdb.Transaction[bytes]") -> range:
            value = transaction.get(_NUMBERS_ROW, db=self._counters)
            first = 1 if value is None else int.from_bytes(values.unseal(_NUMBERS_ROW, value), "little")
            following = (first + count).to_bytes(_NUMBER_BYTES, "little")
            transaction.put(_NUMBERS_ROW, values.seal(_NUMBERS_ROW, following), db=self._counters)
            return range(first, first + count)

        try:
            return self._write(take)
        except values.Damaged as damage:  # a guess could give a number out twice (I9)
            _log.critical(
                "the counter of segment numbers in %s is damaged: stop the server, move %s aside, and put your own backup"
                " of all of it in its place or begin anew",
                self._path,
                self._path.parent,
            )
            raise NotReady("the store cannot begin a new segment: the server's log says why") from damage

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
        self._env.close()

    def _write(self, work: Callable[["lmdb.Transaction[bytes]"], _Result]) -> _Result:
        return self._open_writer().run(work)

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

    def _report(self, row: bytes, damage: values.Damaged) -> None:
        if row not in self._damaged:
            self._damaged.add(row)
            _log.error("the name in row %s of %s counts as absent: %s", row.hex(), self._path, damage)

    def _unread(self, error: lmdb.Error) -> MillpondError:
        return self._closing() if self._closed else environment.unread(self._path, error)

    def _closing(self) -> NotReady:
        return NotReady("the names are closed: the server is stopping")
