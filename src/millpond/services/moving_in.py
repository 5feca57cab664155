"""Moving in: bringing what another server's store holds into a cache, name by name.

A name is brought as if a client pushed it: its blobs are verified and stored, its closure is walked and made durable, then
it is bound (``services.assets``), so a name that lacks something is left where it is. Three things differ:

* Names come in the order of their last use, the newest first, and each is noted as used *then*: the clock of the cache
  stands still at that time. So the next eviction takes what the old server would have taken.
* Nothing is evicted for what moves in. When the next name does not fit beside what is here, the quota is reached: all
  that follows was used earlier.
* A name that is bound here stays as it is, unless it may be overwritten.

The rule: done again, it goes on where it was, and brings what came since. What is here already costs a look-up.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import (
    DigestMismatch,
    IncompleteClosure,
    InvalidRequest,
    MillpondError,
    NameNotFound,
    NoSpace,
    TooMuch,
)
from millpond.core.names import SOURCE_URN, Name, Namespace, asset_key
from millpond.importing.interface import Entry, Left, OldName, OldStore, Reason
from millpond.names.binding import Binding
from millpond.services import assets, closure
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.both_stores import BothStores, references
from millpond.services.cache import Cache
from millpond.services.messages import begin_source
from millpond.services.writing import Writer
from millpond.store.interface import BlobStore

PUSHED_BY = "import"
"""The principal of what moved in."""
_TRIES = 8
"""How often one name is begun again, because something of it was found to be damaged, or went."""
_BATCH_BLOBS = 2048
_SAME_TIME_MS = 60_000
"""Blobs without a name that were used within so long of each other are noted with one time."""


class StandingClock:
    """Stands still at the time of what is being brought. Give it to the store that is written to."""

    def __init__(self, now: Clock) -> None:
        self._now = now
        self._at_ms = now()

    def __call__(self) -> int:
        """The time at which it stands."""
        return self._at_ms

    def stand_at(self, time_ms: int) -> None:
        """Stand at a time; not at one that is still to come, which an old server's clock may have noted."""
        self._at_ms = min(max(time_ms, 1), self._now())

    def now(self) -> int:
        """The time that it really is."""
        return self._now()


class Room(Protocol):
    """What is known of the room here (``store.room.spare``)."""

    def fits(self, blobs: Sequence[Digest]) -> bool:
        """Whether these find room without anything being evicted."""
        ...

    def could_fit(self, blobs: Sequence[Digest]) -> bool:
        """Whether they would in an empty cache."""
        ...


class LeftBehind(NamedTuple):
    """Something that was not brought."""

    path: str
    """Where it lies in the old store."""
    uri: str
    """What it is called, where that could be read."""
    reason: Reason
    detail: str


class Watch(Protocol):
    """Told how far it has come."""

    def step(self, names: int) -> None:
        """A moment passed, in which so many names were done with."""

    def left(self, left: LeftBehind) -> None:
        """Something was not brought."""


@dataclass(slots=True)
class Moved:
    """What was done so far."""

    names: int = 0
    """Brought."""
    here: int = 0
    """Names that were here before."""
    blobs: int = 0
    size_bytes: int = 0
    left: Counter[Reason] = field(default_factory=Counter)


class MovingIn:
    """One old store on its way into one cache. For one thread."""

    def __init__(
        self,
        old: OldStore,
        cache: Cache,
        looking: BlobStore,
        clock: StandingClock,
        room: Room,
        watch: Watch,
        *,
        instance: str,
        overwrite: bool,
        names_fit: Callable[[], bool],
    ) -> None:
        """``clock`` is that of ``cache`` and of its store. ``looking``: the same blobs, with nothing promised or noted.

        ``names_fit``: whether one more name has none of the others removed.
        """
        self.moved = Moved()
        self._old = old
        self._cache = cache
        self._looking = looking
        self._clock = clock
        self._room = room
        self._watch = watch
        self._instance = instance
        self._overwrite = overwrite
        self._names_fit = names_fit
        self._both = BothStores(looking, old)
        self._full = False

    def listed(self) -> list[Entry]:
        """Every name of the old store, in the order in which they come."""
        return sorted(self._old.entries(), key=lambda entry: (-entry.used_ms, entry.path))

    def bring(self, entries: Iterable[Entry]) -> None:
        """Bring names.

        Raises:
            MillpondError: this cache cannot be written to. What was brought stays.
        """
        for entry in entries:
            uri = ""
            try:
                if entry.trouble is not None:
                    raise Left(entry.trouble)
                self._clock.stand_at(entry.used_ms)
                old = self._old.read(entry)
                uri = old.uri
                self._bring(old)
            except Left as why:
                self._leave(entry.path, why, uri)
            self._watch.step(1)

    def _leave(self, path: str, why: Left, uri: str = "") -> None:
        self.moved.left[why.reason] += 1
        self._watch.left(LeftBehind(path, uri, why.reason, why.detail))

    # -- a name -----------------------------------------------------------------------------------------------------

    def _bring(self, old: OldName) -> None:
        try:
            assets.check_request([old.uri], old.qualifiers)
        except InvalidRequest as why:
            raise Left(Reason.UNUSABLE, str(why)) from None
        if old.expires_at_ms is not None and old.expires_at_ms <= self._clock.now():
            raise Left(Reason.EXPIRED)
        name = Name(self._instance, old.namespace, asset_key(old.uri, old.qualifiers))
        if self._is_here(name, old):
            self.moved.here += 1
            return
        if not self._full and not self._names_fit():
            self._full = True
            raise Left(Reason.NO_ROOM, "names hold all that the quota leaves them")
        if self._full:
            raise Left(Reason.NO_ROOM)
        self._both.hand_over(old)
        for _ in range(_TRIES):
            push = self._request(old)
            if self._store_all(self._walked(name, push)) and self._bound(name, old, push):
                self.moved.names += 1
                return
        raise Left(Reason.INCOMPLETE, "something of it went again and again while it came")

    def _is_here(self, name: Name, old: OldName) -> bool:
        """Whether the name stands for the same thing here, and all of that is held. If so it counts as used.

        Raises:
            Left: it stands for something else.
        """
        try:
            binding = self._cache.names.resolve(name)
        except NameNotFound:
            return False
        if binding.digest != old.digest:
            if not self._overwrite:
                raise Left(Reason.BOUND)
            return False
        try:
            assets.fetch(
                self._cache, self._instance, old.namespace, [old.uri], old.qualifiers, oldest_ms=None, wait=True
            )
        except NameNotFound:
            return False
        return True

    def _request(self, old: OldName) -> AssetPush:
        try:
            blobs, directories = references(self._both, old)
        except InvalidRequest as why:
            raise Left(Reason.GARBAGE, str(why)) from None
        return AssetPush(
            [old.uri],
            old.digest,
            qualifiers=old.qualifiers,
            blobs=blobs,
            directories=directories,
            expires_at_ms=old.expires_at_ms,
            foreign=False,
        )

    def _walked(self, name: Name, push: AssetPush) -> list[Digest]:
        """All that the name needs, here or there.

        Raises:
            Left: something is missing.
        """
        binding = Binding(push.digest, self._clock(), blobs=tuple(push.blobs), directories=tuple(push.directories))
        self._both.trouble = None
        try:
            return closure.walk(self._both, name.namespace, name.key, binding).digests  # type: ignore[arg-type]  # reads only
        except IncompleteClosure as why:
            if self._both.trouble is not None:
                raise self._both.trouble from None
            raise Left(Reason.INCOMPLETE, str(why).partition(" of this name")[0]) from None
        except (InvalidRequest, TooMuch) as why:
            raise Left(Reason.GARBAGE, str(why)) from None

    def _bound(self, name: Name, old: OldName, push: AssetPush) -> bool:
        """Bind the name; False when something of it went meanwhile.

        Raises:
            Left: somebody else bound it meanwhile, or there is no room for names.
        """
        if self._is_here(name, old):  # a client has pushed it a moment ago
            return True
        try:
            pending = self._begun(name, old, push)
            pending.bound.result()
        except IncompleteClosure:
            return False
        except NoSpace as why:
            self._full = True
            raise Left(Reason.NO_ROOM, str(why)) from None
        pending.finish()
        return True

    def _begun(self, name: Name, old: OldName, push: AssetPush) -> PendingPush:
        if old.message is not None and old.namespace is Namespace.ASSET_DIRECTORY:
            writer = Writer(self._cache, self._instance, PUSHED_BY)
            return begin_source(writer, old.uri.removeprefix(SOURCE_URN), old.message)
        return assets.begin_push(self._cache, self._instance, name.namespace, push, pushed_by=PUSHED_BY)

    # -- blobs ------------------------------------------------------------------------------------------------------

    def bring_blobs(self, listed: Iterable[tuple[Digest, int]]) -> None:
        """Bring blobs whether a name needs them or not, each with the time of its last use, the newest first.

        Raises:
            MillpondError: as :meth:`bring`.
        """
        for time_ms, digests in _bursts(listed):
            self._clock.stand_at(time_ms)
            wanted = self._looking.find_missing([digest for digest in digests if digest != EMPTY])
            gone = Left(Reason.VANISHED)
            try:
                if self._full:
                    raise Left(Reason.NO_ROOM)
                self._check_room(wanted)
                for batch in self._batches(wanted):
                    self._store(batch)
            except Left as why:
                gone = why
            for digest in self._looking.find_missing(wanted):
                self._leave(f"blob {digest}", self._both.damaged.get(digest, gone))
            self._watch.step(len(digests))

    def _store_all(self, digests: Sequence[Digest]) -> bool:
        """Store what is not here yet; False when something of it cannot be had, which the next walk will judge.

        Raises:
            Left: there is no room for it.
        """
        wanted = self._looking.find_missing([digest for digest in digests if digest != EMPTY])
        if not wanted:
            return True
        self._check_room(wanted)
        return all(map(self._store, self._batches(wanted)))

    def _check_room(self, wanted: Sequence[Digest]) -> None:
        if self._room.fits(wanted):
            return
        if not self._room.could_fit(wanted):
            raise Left(Reason.NO_ROOM, "it is larger than the quota")
        self._full = True
        raise Left(Reason.NO_ROOM)

    def _batches(self, wanted: Sequence[Digest]) -> Iterator[list[Digest]]:
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

    def _store(self, batch: Sequence[Digest]) -> bool:
        """Store a batch; whether all of it could be had.

        Raises:
            Left: there is no room for it.
        """
        self._watch.step(0)
        if batch[0].size_bytes > limits.IN_MEMORY_UPLOAD_BYTES:
            return self._stream(batch[0])
        blobs = [(digest, content) for digest in batch if (content := self._both.unverified(digest)) is not None]
        outcomes = self._cache.blobs.put_many(blobs)
        stored = [self._is_stored(blob[0], failure) for blob, failure in zip(blobs, outcomes, strict=True)]
        return len(blobs) == len(batch) and all(stored)

    def _stream(self, digest: Digest) -> bool:
        try:
            upload = self._cache.blobs.begin_upload(digest, f"import/{digest}", offset=0)
        except NoSpace as why:
            return self._is_stored(digest, why)
        try:
            for piece in self._old.chunks(digest):
                upload.write(piece)
            upload.finish()
        except Left as why:
            upload.abandon()
            self._both.note(digest, why)
            return False
        except MillpondError as why:
            upload.abandon()
            return self._is_stored(digest, why)
        return self._is_stored(digest, None)

    def _is_stored(self, digest: Digest, failure: MillpondError | None) -> bool:
        if failure is None:
            self.moved.blobs += 1
            self.moved.size_bytes += digest.size_bytes
            return True
        if isinstance(failure, DigestMismatch):
            self._both.note(digest, Left(Reason.DAMAGED, f"blob {digest} is not what its name says"))
            return False
        if isinstance(failure, NoSpace):
            self._full = True
            raise Left(Reason.NO_ROOM, str(failure))
        raise failure


def _bursts(listed: Iterable[tuple[Digest, int]]) -> Iterator[tuple[int, list[Digest]]]:
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
