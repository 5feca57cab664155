"""A bounded memory of blobs that found no room, shared by all processes.

A BuildStream client that was told "no room" for its blobs goes on to push their name. Without this memory such a name,
none of whose blobs is here, would look like one whose blobs live elsewhere on purpose.

The memory must work just when the disk is full. So its overflow, "everything counts as refused until …", is eight bytes
in a file that was written when the repository was made: writing them again needs no room.
"""

import functools
import itertools
import logging
import os
import struct
from collections.abc import Sequence

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.errors import MillpondError
from millpond.disk.blocks import pieces
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.index import Index

log = logging.getLogger(__name__)
_U64 = struct.Struct("<Q")
FILE_BYTES = 4096


def doubt_everything(path: str, until_ms: int) -> None:
    """Count everything as refused until then: promises were broken, and nobody keeps a list of which."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _U64.unpack(os.pread(descriptor, _U64.size, 0))[0] < until_ms:
            os.pwrite(descriptor, _U64.pack(until_ms), 0)
    finally:
        os.close(descriptor)


class Refusals:
    """Keys refused of late, in the index's ``refused`` table: key to "until" in ms."""

    def __init__(self, path: str, index: Index, index_writer: GroupWriter, clock: Clock) -> None:
        self._index = index
        self._index_writer = index_writer
        self._clock = clock
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def add(self, keys: Sequence[bytes]) -> None:
        """Remember; on disk before it returns, for the push that follows may reach another process."""
        until = self._clock() + limits.REFUSED_MS

        def apply(txn: Transaction, some: Sequence[bytes]) -> bool:
            db = self._index.refused
            if txn.stat(db)["entries"] + len(some) > limits.REFUSED_DIGESTS:
                self._forget_old(txn, 2 * len(some))
            if txn.stat(db)["entries"] + len(some) > limits.REFUSED_DIGESTS:
                return False
            for key in some:
                txn.put(key, _U64.pack(until), db=db)
            return True

        try:
            remembered = all(
                self._index_writer.run(functools.partial(apply, some=some), rows=3 * len(some))
                for some in pieces(keys, max(1, self._index.rows_at_once() // 3))
            )
        except MillpondError:
            remembered = False
        if not remembered:
            try:
                os.pwrite(self._descriptor, _U64.pack(until), 0)
            except OSError as failure:  # a disk that takes nothing at all takes no name either
                log.warning("what found no room could not be noted: %s", failure)

    def has(self, keys: Sequence[bytes]) -> bool:
        """Whether one of ``keys`` was refused of late, or nobody can tell."""
        now = self._clock()
        until = _U64.unpack(os.pread(self._descriptor, _U64.size, 0))[0]
        if now < until <= now + limits.REFUSED_MS:  # a flipped bit must not refuse for centuries
            return True
        with self._index.reading() as txn:
            return any(_U64.unpack(txn.get(key, bytes(8), db=self._index.refused))[0] > now for key in keys)

    def _forget_old(self, txn: Transaction, at_most: int) -> None:
        now = self._clock()
        old = (key for key, until in txn.cursor(self._index.refused) if _U64.unpack(until)[0] <= now)
        for key in list(itertools.islice(old, at_most)):
            txn.delete(key, db=self._index.refused)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)
