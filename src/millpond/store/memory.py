"""The reference store: what every promise of the interface means, in as few lines as it can be said.

It is the model that tests hold the real store against, and serves unit tests of the layers above. Bounded by its
quota like the real one; it evicts nothing.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from millpond.core import limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, DigestMismatch, InvalidRequest, MillpondError, NoSpace
from millpond.store.interface import Bytes, Footprint


class MemoryStore:
    """Blobs in a dict. Keeps the promises of ``BlobStore`` and ``Closures``; forgets all when it is closed."""

    def __init__(self, quota_bytes: int, clock: Clock = wall_clock) -> None:
        self._quota_bytes = quota_bytes
        self._clock = clock
        self._lock = threading.RLock()
        self._blobs: dict[Digest, bytes] = {EMPTY: b""}
        self._uploads: dict[str, bytearray] = {}
        self._claimed_bytes = 0
        self._intact: dict[bytes, tuple[bytes, Footprint]] = {}
        self._refused: dict[Digest, int] = {}

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:  # noqa: ARG002
        """Those that are not held. Nothing is ever evicted here, so all promises hold."""
        return [digest for digest in digests if digest not in self._blobs]

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Store each that is what it says it is and fits."""
        return [self._put(digest, data) for digest, data in blobs]

    def _put(self, digest: Digest, data: Bytes) -> MillpondError | None:
        if not digest.matches(data):
            return DigestMismatch(f"the bytes sent for blob {digest} are not that blob")
        with self._lock:
            if digest in self._blobs:
                return None
            if digest.size_bytes > self._room_bytes():
                return NoSpace(f"the cache has no room for blob {digest}")
            self._blobs[digest] = bytes(data)
        return None

    def _room_bytes(self) -> int:
        return self._quota_bytes - self._claimed_bytes - sum(map(len, self._blobs.values()))

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:  # noqa: ARG002
        """The bytes, or None."""
        return [self._blobs.get(digest) for digest in digests]

    @contextmanager
    def open(self, digest: Digest, *, wait: bool = True) -> Iterator["_OpenBytes"]:  # noqa: ARG002
        """One blob, in chunks."""
        try:
            data = self._blobs[digest]
        except KeyError:
            raise BlobNotFound(f"blob {digest} is not in this cache") from None
        yield _OpenBytes(data)

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> "_MemoryUpload":
        """Begin or go on."""
        with self._lock:
            if offset and len(self._uploads.get(session, b"")) != offset:
                raise InvalidRequest(f"upload of blob {digest} cannot go on at {offset}: begin again at 0")
            if digest.size_bytes > self._room_bytes():
                raise NoSpace(f"the cache has no room for blob {digest}")
            self._claimed_bytes += digest.size_bytes
            held = self._uploads.pop(session, bytearray())
        return _MemoryUpload(self, digest, session, held if offset else bytearray())

    def upload_offset(self, session: str) -> int:
        """Where a suspended upload would go on."""
        return len(self._uploads.get(session, b""))

    def end_upload(self, digest: Digest, session: str, kept: bytearray) -> None:
        """Give an upload's room back, and keep the bytes of a broken one."""
        with self._lock:
            self._claimed_bytes -= digest.size_bytes
            if kept:
                self._uploads[session] = kept

    def settle(self, digests: Sequence[Digest], *, wait: bool = True) -> Footprint:  # noqa: ARG002
        """Memory is as durable as this store gets; only look."""
        for digest in self.find_missing(digests):
            raise BlobNotFound(f"blob {digest} is not in this cache")
        return Footprint(())

    def remember(self, row: bytes, stamp: bytes, footprint: Footprint) -> None:
        """Note it."""
        self._intact[row] = (stamp, footprint)

    def intact(self, row: bytes, stamp: bytes, *, wait: bool = True) -> bool:  # noqa: ARG002
        """Whether the same binding was noted."""
        return self._intact.get(row, (b"", None))[0] == stamp

    def refuse(self, digests: Iterable[Digest]) -> None:
        """Remember."""
        now = self._clock()
        self._refused.update((digest, now + limits.REFUSED_MS) for digest in digests)

    def was_refused(self, digests: Iterable[Digest]) -> bool:
        """Whether one was."""
        now = self._clock()
        if sum(until > now for until in self._refused.values()) > limits.REFUSED_DIGESTS:
            return True
        return any(self._refused.get(digest, 0) > now for digest in digests)

    def holds_any(self, digests: Sequence[Digest]) -> bool:
        """Whether one is held."""
        return any(digest in self._blobs for digest in digests)

    def close(self) -> None:
        """Nothing to let go of."""


class _OpenBytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def chunk(self, index: int, *, wait: bool = True) -> bytes:  # noqa: ARG002
        return self._data[index * limits.CHUNK_BYTES : (index + 1) * limits.CHUNK_BYTES]


class _MemoryUpload:
    def __init__(self, store: MemoryStore, digest: Digest, session: str, held: bytearray) -> None:
        self._store, self._digest, self._session, self._held = store, digest, session, held

    @property
    def committed_bytes(self) -> int:
        return len(self._held)

    def write(self, data: Bytes) -> None:
        if len(self._held) + len(data) > self._digest.size_bytes:
            raise DigestMismatch(f"more bytes were sent than blob {self._digest} has")
        self._held += data

    def finish(self) -> None:
        self.abandon()
        (failure,) = self._store.put_many([(self._digest, self._held)])
        if failure:
            raise failure

    def suspend(self) -> None:
        self._store.end_upload(self._digest, self._session, self._held)

    def abandon(self) -> None:
        self._store.end_upload(self._digest, self._session, bytearray())
