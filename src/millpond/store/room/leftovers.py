"""Interrupted uploads that nobody goes on with; a duty of upkeep.

The rule: whoever lost a connection finds what it had sent, as long as nobody needs the room. What can never be gone on
with is removed at once; the rest goes after a day. When room is needed, it goes before any blob does if nothing came for
``limits.SUSPENDED_SECONDS``, and the oldest go first of whatever is more than ``limits.SUSPENDED_SHARE`` of the quota: a
cache in which connections break must not become a cache of halves.

The ledger is put right with it: a killed process leaves more set aside than its file takes, and, if it died between
making a segment of a file and listing it, a row without a file.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.disk import locks
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.index import Index
from millpond.store.repository.layout import Layout
from millpond.store.room import holders
from millpond.store.room.space import Space
from millpond.store.room.taken import BLOCK_BYTES

log = logging.getLogger(__name__)
_ROW = b"upload:"
"""What a row of the ledger begins with that belongs to an upload (``store.room.space``)."""
_LOOK_SECONDS = 0.5
_ALL_SECONDS = 20.0
_QUIET_SECONDS = 2.0
"""What grew within this time is being written, or its client is just coming back; it is not looked at."""


class _Suspended(NamedTuple):
    """A spool file that nobody writes."""

    idle_seconds: float
    name: str
    size_bytes: int

    @property
    def private(self) -> bool:
        """Of an upload that cannot be gone on with, because another of the same name was being written."""
        return "-" in self.name


class Leftovers:
    """The duty."""

    name = "interrupted uploads"

    def __init__(self, layout: Layout, index: Index, index_writer: GroupWriter, space: Space, clock: Clock) -> None:
        self._directory = layout.uploads
        self._index = index
        self._index_writer = index_writer
        self._space = space
        self._clock = clock
        self._due_ms = 0
        self._without_file: set[str] = set()

    def run(self) -> float:
        """Look at once when room is needed, else now and then."""
        now = self._clock()
        due = now >= self._due_ms
        needed = self._space.pressure().to_free_bytes > 0
        if needed or due:
            self._let_go(self._suspended(now), needed=needed)
        if due:
            self._due_ms = now + int(1000 * _ALL_SECONDS)
            self._forget_rows_without_file()
        return _LOOK_SECONDS

    def _suspended(self, now_ms: int) -> list[_Suspended]:
        """The longest idle first."""
        found: list[_Suspended] = []
        for entry in os.scandir(self._directory):
            with suppress(FileNotFoundError):
                status = entry.stat()
                idle_seconds = now_ms / 1000 - status.st_mtime
                if idle_seconds > _QUIET_SECONDS:
                    with self._locked(entry.name) as file:
                        if file is not None:
                            found.append(_Suspended(idle_seconds, entry.name, file.st_blocks * BLOCK_BYTES))
        return sorted(found, reverse=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[os.stat_result | None]:
        """The file, if nobody writes it, and nobody can begin to for as long as we hold it."""
        path = os.path.join(self._directory, name)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ours = locks.try_lock(descriptor, exclusive=True)
            file = os.fstat(descriptor)
            # The name may have gone (renamed, abandoned) between opening and locking.
            yield file if ours and os.stat(path).st_ino == file.st_ino else None
        finally:
            os.close(descriptor)

    def _let_go(self, found: list[_Suspended], *, needed: bool) -> None:
        kept_bytes = sum(upload.size_bytes for upload in found)
        most_bytes = int(limits.SUSPENDED_SHARE * self._space.quota_bytes)
        noted, removed = self._noted(), 0
        for upload in found:
            cold = upload.idle_seconds > limits.SUSPENDED_SECONDS or kept_bytes > most_bytes
            goes = upload.private or upload.idle_seconds > limits.KEPT_UPLOAD_SECONDS or (needed and cold)
            with suppress(FileNotFoundError), self._locked(upload.name) as file:
                if file is None:
                    continue
                row, size_bytes = holders.upload(upload.name, file.st_ino), file.st_blocks * BLOCK_BYTES
                if goes:
                    os.unlink(os.path.join(self._directory, upload.name))
                    self._note(row, 0)
                    kept_bytes -= upload.size_bytes
                    removed += 1
                elif noted.get(row, 0) != size_bytes:
                    self._note(row, size_bytes)
        if removed:
            log.info("%d interrupted uploads were removed", removed)

    def _note(self, row: str, size_bytes: int, *, renamed: bool = False) -> None:
        """Have the ledger say what it takes; ``renamed``: it may be a segment that was never listed."""

        def apply(txn: Transaction) -> None:
            if renamed:
                self._space.charge_files(txn)
            self._space.end_upload(txn, row, announced_bytes=0, kept_bytes=size_bytes)

        self._index_writer.run(apply)

    def _noted(self) -> dict[str, int]:
        with self._index.reading() as txn, txn.cursor(self._index.space) as cursor:
            rows = list(cursor.iternext()) if cursor.set_range(_ROW) else []
        return {
            key.removeprefix(_ROW).decode(): int.from_bytes(value, "little")
            for key, value in rows
            if key.startswith(_ROW)
        }

    def _forget_rows_without_file(self) -> None:
        """Of those that had none the last time either: in between, a segment may have been made of it."""
        noted = set(self._noted())  # first: a file is there before its row is
        without = noted - set(self._rows_with_file())
        for row in without & self._without_file:
            self._note(row, 0, renamed=True)
        self._without_file = without

    def _rows_with_file(self) -> Iterator[str]:
        for entry in os.scandir(self._directory):
            with suppress(FileNotFoundError):
                yield holders.upload(entry.name, entry.stat().st_ino)
