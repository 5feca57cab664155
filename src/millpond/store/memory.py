"""The reference store: what every promise of the interface means, in as few lines as it can be said.

It is the model that tests hold the real store against, and serves unit tests of the layers above. Bounded by its
quota like the real one. Like the real one without its upkeep process it makes no room by itself: :meth:`evict` does.

The rule of eviction: what is pinned stays; what is leased stays (unless everything is to go); of the rest the least
recently used goes first. Bytes are looked at before they leave, so what a test has damaged is a miss (I4).
"""

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from millpond.core import limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, DigestMismatch, InvalidRequest, MillpondError, NoSpace
from millpond.store.interface import Bytes, Footprint, KnownClosure, Promised


@dataclass(slots=True)
class _Held:
    """A blob and what is known of its use. ``number`` tells it from an earlier copy of the same blob."""

    number: int
    data: bytes
    used_ms: int
    leased_until_ms: int


class MemoryStore:
    """Blobs in a dict. Keeps the promises of ``BlobStore`` and ``Closures``; forgets all when it is closed."""

    def __init__(self, quota_bytes: int, clock: Clock = wall_clock) -> None:
        self._quota_bytes = quota_bytes
        self._clock = clock
        self._lock = threading.RLock()
        self._blobs: dict[Digest, _Held] = {}
        self._pins: dict[bytes, int] = {}
        self._numbers = itertools.count()
        self._uploads: dict[str, bytearray] = {}
        self._claimed_bytes = 0
        self._intact: dict[bytes, tuple[bytes, Footprint]] = {}
        self._refused: dict[Digest, int] = {}

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:  # noqa: ARG002
        """Those that are not held; the others are leased."""
        with self._lock:
            self._lease(digests)
            return [digest for digest in digests if digest not in self._blobs and digest != EMPTY]

    def _lease(self, digests: Iterable[Digest]) -> None:
        now = self._clock()
        for digest in digests:
            if held := self._blobs.get(digest):
                held.used_ms, held.leased_until_ms = now, now + limits.LEASE_MS

    def put_many(self, blobs: Sequence[tuple[Digest, Bytes]]) -> list[MillpondError | None]:
        """Store each that is what it says it is and fits."""
        return [self._put(digest, data) for digest, data in blobs]

    def _put(self, digest: Digest, data: Bytes) -> MillpondError | None:
        if not digest.matches(data):
            return DigestMismatch(f"the bytes sent for blob {digest} are not that blob")
        with self._lock:
            if digest not in self._blobs and digest != EMPTY:
                if digest.size_bytes > self._room_bytes():
                    return NoSpace(f"the cache has no room for blob {digest}")
                self._blobs[digest] = _Held(next(self._numbers), bytes(data), 0, 0)
            self._lease([digest])
        return None

    def _room_bytes(self) -> int:
        return self._quota_bytes - self._claimed_bytes - sum(len(held.data) for held in self._blobs.values())

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:  # noqa: ARG002
        """The bytes, or None."""
        return [self._read(digest) for digest in digests]

    def _read(self, digest: Digest) -> bytes | None:
        if digest == EMPTY:
            return b""
        with self._lock:
            held = self._blobs.get(digest)
            if held is None:
                return None
            if not digest.matches(held.data):
                del self._blobs[digest]
                return None
            held.used_ms = self._clock()
            return held.data

    @contextmanager
    def open(self, digest: Digest, *, wait: bool = True) -> Iterator["_OpenBytes"]:  # noqa: ARG002
        """One blob, in chunks."""
        data = self._read(digest)
        if data is None:
            raise BlobNotFound(f"blob {digest} is not in this cache")
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

    def promise(
        self,
        closures: Sequence[Sequence[Digest]],
        *,
        leases: bool,
        wait: bool = True,  # noqa: ARG002
    ) -> list[Promised]:
        """Each wholly or not at all."""
        return [self._promise(digests, leases=leases) for digests in closures]

    def _promise(self, digests: Sequence[Digest], *, leases: bool) -> Promised:
        wanted = [digest for digest in dict.fromkeys(digests) if digest != EMPTY]
        with self._lock:
            missing = [digest for digest in wanted if digest not in self._blobs]
            if not missing and leases:
                self._lease(wanted)
            elif not missing:
                for digest in wanted:
                    self._blobs[digest].used_ms = self._clock()
        return Promised(missing, None)

    def settle(self, digests: Sequence[Digest], *, wait: bool = True) -> Footprint:  # noqa: ARG002
        """Memory is as durable as this store gets; only look."""
        with self._lock:
            wanted = dict.fromkeys(digest for digest in digests if digest != EMPTY)
            for digest in wanted:
                if digest not in self._blobs:
                    raise BlobNotFound(f"blob {digest} is not in this cache")
            return Footprint(tuple(sorted((self._blobs[digest].number, 0) for digest in wanted)))

    def remember(self, closures: Sequence[KnownClosure], *, ends_leases: bool = False) -> None:
        """Note them, and end the leases if that is what it is."""
        with self._lock:
            for row, stamp, footprint, _ in closures:  # every promise is noted at once here
                self._intact[row] = (stamp, footprint)
                for held in self._at(footprint):
                    held.leased_until_ms = 0 if ends_leases else held.leased_until_ms

    def intact(self, row: bytes, stamp: bytes, *, wait: bool = True) -> bool:  # noqa: ARG002
        """Whether the same binding was noted, and all of it is still the very same."""
        with self._lock:
            noted, footprint = self._intact.get(row, (b"", Footprint(())))
            held = self._at(footprint)
            if noted != stamp or len(held) < len(footprint.places):
                return False
            for one in held:
                one.used_ms = self._clock()
            return True

    def _at(self, footprint: Footprint) -> list[_Held]:
        numbers = {number for number, _ in footprint.places}
        return [held for held in self._blobs.values() if held.number in numbers]

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
        return any(digest in self._blobs or digest == EMPTY for digest in digests)

    # -- upkeep -----------------------------------------------------------------------------------------------------

    def pin(self, epoch: int, keys: Iterable[bytes]) -> None:
        """Keep these until a later epoch ends the pins before it."""
        self._pins.update(dict.fromkeys(keys, epoch))

    def end_pins_before(self, epoch: int) -> None:
        """Keep no longer what was not pinned again."""
        self._pins = {key: since for key, since in self._pins.items() if since >= epoch}

    def evict(
        self, *, older_than_ms: int | None = None, to_bytes: int | None = None, everything: bool = False
    ) -> list[Digest]:
        """Let go of what was last used before ``older_than_ms``, or of as much as it takes to hold ``to_bytes``.

        Those that went, the least recently used first.
        """
        with self._lock:
            now = self._clock()
            gone: list[Digest] = []
            left = sum(len(held.data) for held in self._blobs.values())
            for digest, held in sorted(self._blobs.items(), key=lambda item: item[1].used_ms):
                if digest.key in self._pins or (held.leased_until_ms > now and not everything):
                    continue
                old = older_than_ms is not None and held.used_ms < older_than_ms
                if everything or old or (to_bytes is not None and left > to_bytes):
                    left -= len(held.data)
                    gone.append(digest)
            for digest in gone:
                del self._blobs[digest]
            return gone

    # -- life -------------------------------------------------------------------------------------------------------

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
