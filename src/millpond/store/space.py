"""Room: one ledger for all processes of a repository (I6, I10).

Kept in the index's ``space`` table: what segments take, what processes have claimed and not used yet, what suspended
uploads take. A claim is made before the first byte is accepted; claims of processes that died return. Everything else
under the repository (both environments, logs) is measured when a claim is made.
"""

import os
import struct
import time
from contextlib import suppress

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk.group_writer import Transaction
from millpond.store.index import Index

_U64 = struct.Struct("<Q")
_USED = b"used"
_CLAIM = b"claim:"
_UPLOAD = b"upload:"
_MEASURE_SECONDS = 1.0
FOOTER_ENTRY_BYTES = 52
"""What a blob adds to its segment's footer."""


def holder() -> bytes:
    """Our process, told apart from a later one with the same pid."""
    return f"{os.getpid()}:{_start_time(os.getpid())}".encode()


class Space:
    """The ledger. Methods with ``txn`` run inside a write transaction of the index."""

    def __init__(self, index: Index, repository: str, *, quota_bytes: int, reserve_bytes: int) -> None:
        self._index = index
        self._repository = repository
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._mine = _CLAIM + holder()
        self._measured = (0.0, 0)

    @property
    def step_bytes(self) -> int:
        """How much a writer claims ahead."""
        return self._quota_bytes // 1024

    @property
    def largest_blob_bytes(self) -> int:
        """No blob above this can ever fit."""
        return self._quota_bytes - limits.segment_bytes(self._quota_bytes)

    def claim(self, txn: Transaction, size_bytes: int) -> None:
        """Set ``size_bytes`` aside for this process.

        Raises:
            NoSpace: they are not there.
        """
        if not self._fits(txn, size_bytes):
            self._return_claims_of_the_dead(txn)
            if not self._fits(txn, size_bytes):
                raise NoSpace(
                    f"the cache is full: {size_bytes} bytes more do not fit into its quota of {self._quota_bytes} bytes"
                    " or on its disk"
                )
        self._add(txn, self._mine, size_bytes)

    def spend(self, txn: Transaction, size_bytes: int) -> None:
        """Turn claimed bytes into used ones."""
        self._add(txn, self._mine, -size_bytes)
        self._add(txn, _USED, size_bytes)

    def give_back(self, txn: Transaction, size_bytes: int) -> None:
        """Let claimed bytes go."""
        self._add(txn, self._mine, -size_bytes)

    def free(self, txn: Transaction, size_bytes: int) -> None:
        """A segment of that size was removed."""
        self._add(txn, _USED, -size_bytes)

    def count_anew(self, txn: Transaction, used_bytes: int, suspended: dict[str, int]) -> None:
        """Begin the ledger with what segments and suspended uploads take. Nobody has claims."""
        txn.drop(self._index.space, delete=False)
        txn.put(_USED, _U64.pack(used_bytes), db=self._index.space)
        for upload, size_bytes in suspended.items():
            self.set_suspended(txn, upload, size_bytes)

    def set_suspended(self, txn: Transaction, upload: str, size_bytes: int) -> None:
        """What a suspended upload takes; 0 when it is gone."""
        key = _UPLOAD + upload.encode()
        if size_bytes:
            txn.put(key, _U64.pack(size_bytes), db=self._index.space)
        else:
            txn.delete(key, db=self._index.space)

    def total(self, txn: Transaction) -> int:
        """Used, claimed and suspended bytes."""
        return sum(_U64.unpack(value)[0] for _, value in txn.cursor(self._index.space))

    def _fits(self, txn: Transaction, size_bytes: int) -> bool:
        total = self.total(txn)
        used = _U64.unpack(txn.get(_USED, _U64.pack(0), db=self._index.space))[0]
        # What uploads have written is claimed as well, so it must not be missed twice.
        spooled = _blocks(os.path.join(self._repository, "uploads"))
        disk = os.statvfs(self._repository)
        on_disk: int = used + spooled + disk.f_bavail * disk.f_frsize - self._reserve_bytes
        spare = limits.segment_bytes(self._quota_bytes) + self._overhead()
        return total + size_bytes <= min(self._quota_bytes - spare, on_disk)

    def _overhead(self) -> int:
        measured_at, size = self._measured
        if time.monotonic() - measured_at > _MEASURE_SECONDS:
            size = sum(_blocks(os.path.join(self._repository, part)) for part in ("index", "names", "touch"))
            self._measured = (time.monotonic(), size)
        return size

    def _return_claims_of_the_dead(self, txn: Transaction) -> None:
        for key, _ in list(txn.cursor(self._index.space)):
            if key.startswith(_CLAIM) and not _lives(key.removeprefix(_CLAIM)):
                txn.delete(key, db=self._index.space)

    def _add(self, txn: Transaction, key: bytes, size_bytes: int) -> None:
        held = _U64.unpack(txn.get(key, _U64.pack(0), db=self._index.space))[0]
        txn.put(key, _U64.pack(max(0, held + size_bytes)), db=self._index.space)


def _lives(who: bytes) -> bool:
    pid, _, started = who.decode().partition(":")
    return _start_time(int(pid)) == started


def _start_time(pid: int) -> str:
    # proc(5): field 22 of stat; the name in field 2 may contain anything, but ends with the last ')'.
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _blocks(directory: str) -> int:
    size = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process renamed or removed it
                size += entry.stat(follow_symlinks=False).st_blocks * 512
    return size
