"""Bringing blobs of an old store into a cache: verified, in bounded memory, and only while there is room.

The rule: nothing is evicted for what moves in. When something does not fit beside what is here, the quota is reached, and
nothing comes any more: what follows was used earlier.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import DigestMismatch, MillpondError, NoSpace
from millpond.importing.interface import Left, OldStore, Reason
from millpond.services.both_stores import IS_ANOTHER, BothStores, Lack
from millpond.store.interface import BlobStore

_BATCH_BLOBS = 2048
_SAME_TIME_MS = 60_000
"""Blobs without a name that were used within so long of each other are noted with one time."""


class Room(Protocol):
    """What is known of the room here (``store.room.spare``)."""

    def fits(self, blobs: Sequence[Digest]) -> bool:
        """Whether these find room without anything being evicted."""
        ...

    def could_fit(self, blobs: Sequence[Digest]) -> bool:
        """Whether they would in an empty cache."""
        ...


class BlobMover:
    """Blobs on their way. For one thread."""

    def __init__(
        self,
        old: OldStore,
        here: BlobStore,
        looking: BlobStore,
        both: BothStores,
        room: Room,
        step: Callable[[int], None],
    ) -> None:
        """``looking``: what ``here`` holds, with nothing promised or noted. ``step`` is told that a moment passed."""
        self.full = False
        """Whether the quota is reached."""
        self.blobs = 0
        self.size_bytes = 0
        self._old = old
        self._here = here
        self._looking = looking
        self._both = both
        self._room = room
        self._step = step

    def store_all(self, digests: Sequence[Digest]) -> bool:
        """Store what is not here yet; False when something of it cannot be had, which is noted in ``both``.

        Raises:
            Left: there is no room for it.
            MillpondError: this cache cannot be written to.
        """
        wanted = self.missing(digests)
        if wanted:
            self._check_room(wanted)
        return all(map(self._store, _batches(wanted)))

    def store_some(self, digests: Sequence[Digest]) -> Iterator[tuple[Digest, Lack]]:
        """Store those that can be had; the others, and why.

        Raises:
            MillpondError: as :meth:`store_all`.
        """
        wanted = self.missing(digests)
        why = Lack(Reason.VANISHED, "")
        try:
            if wanted:
                self._check_room(wanted)
            for batch in _batches(wanted):
                self._store(batch)
        except Left as left:
            why = Lack(left.reason, left.detail)
        for digest in self.missing(wanted):
            yield digest, self._both.damaged.get(digest, why)

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Those that are not here."""
        return self._looking.find_missing([digest for digest in digests if digest != EMPTY])

    def no_room(self, why: str = "") -> Left:
        """Nothing comes any more."""
        self.full = True
        return Left(Reason.NO_ROOM, why)

    def _check_room(self, wanted: Sequence[Digest]) -> None:
        if self.full:
            raise Left(Reason.NO_ROOM)
        if self._room.fits(wanted):
            return
        if not self._room.could_fit(wanted):
            raise Left(Reason.NO_ROOM, "it is larger than the quota")
        raise self.no_room()

    def _store(self, batch: Sequence[Digest]) -> bool:
        """Store a batch; whether all of it could be had."""
        self._step(0)
        if batch[0].size_bytes > limits.IN_MEMORY_UPLOAD_BYTES:
            return self._stream(batch[0])
        blobs = [(digest, content) for digest in batch if (content := self._both.unverified(digest)) is not None]
        outcomes = self._here.put_many(blobs)
        stored = [self._is_stored(blob[0], failure) for blob, failure in zip(blobs, outcomes, strict=True)]
        return len(blobs) == len(batch) and all(stored)

    def _stream(self, digest: Digest) -> bool:
        try:
            upload = self._here.begin_upload(digest, f"import/{digest}", offset=0)
        except NoSpace as why:
            return self._is_stored(digest, why)
        try:
            for piece in self._old.chunks(digest):
                self._step(0)
                upload.write(piece)
            upload.finish()
        except Left as why:
            self._both.note(digest, why.reason, why.detail)
            return False
        except MillpondError as why:
            return self._is_stored(digest, why)
        finally:
            upload.abandon()  # does nothing where it is finished
        return self._is_stored(digest, None)

    def _is_stored(self, digest: Digest, failure: MillpondError | None) -> bool:
        if failure is None:
            self.blobs += 1
            self.size_bytes += digest.size_bytes
            return True
        if isinstance(failure, DigestMismatch):
            self._both.note(digest, Reason.DAMAGED, IS_ANOTHER)
            return False
        if isinstance(failure, NoSpace):
            raise self.no_room(str(failure))
        raise failure


def _batches(wanted: Sequence[Digest]) -> Iterator[list[Digest]]:
    """In pieces that fit in memory; a large blob by itself."""
    batch: list[Digest] = []
    size = 0
    for digest in wanted:
        if digest.size_bytes > limits.IN_MEMORY_UPLOAD_BYTES:
            yield [digest]
            continue
        if size + digest.size_bytes > limits.BATCH_BYTES or len(batch) == _BATCH_BLOBS:
            yield batch
            batch, size = [], 0
        batch.append(digest)
        size += digest.size_bytes
    if batch:
        yield batch


def bursts(listed: Iterable[tuple[Digest, int]]) -> Iterator[tuple[int, list[Digest]]]:
    """Blobs that were used at about the same time, newest first, with the earliest of their times."""
    burst: list[Digest] = []
    begun_ms = last_ms = 0
    for digest, time_ms in sorted(listed, key=lambda one: -one[1]):
        if burst and (begun_ms - time_ms > _SAME_TIME_MS or len(burst) == _BATCH_BLOBS):
            yield last_ms, burst
            burst = []
        if not burst:
            begun_ms = time_ms
        burst.append(digest)
        last_ms = time_ms
    if burst:
        yield last_ms, burst
