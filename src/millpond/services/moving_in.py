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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, InvalidRequest, NameNotFound, NoSpace, TooMuch
from millpond.core.names import Name, Namespace, asset_key
from millpond.importing.interface import Entry, Left, OldName, OldStore, Reason
from millpond.names.binding import Binding
from millpond.services import assets, closure
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.both_stores import BothStores, references
from millpond.services.cache import Cache
from millpond.services.moving_blobs import BlobMover, Room, bursts
from millpond.store.interface import BlobStore

PUSHED_BY = "import"
"""The principal of what moved in."""
_TRIES = 8
"""How often one name is begun again, because something of it was found to be damaged, or went."""
_NAMES_AT_ONCE = 64
_BYTES_AT_ONCE = 64 * limits.MIB
"""So many names are bound together, or fewer when their blobs come to so much: each sync then serves all of them."""


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
    left: Counter[Reason] = field(default_factory=Counter)


class _Ready(NamedTuple):
    """A name all of whose blobs are here."""

    entry: Entry
    old: OldName
    name: Name
    push: AssetPush


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
        rehearsal: bool,
        names_fit: Callable[[], bool],
    ) -> None:
        """``clock`` is that of ``cache`` and of its store. ``looking``: the same blobs, with nothing promised or noted.

        ``rehearsal``: no name is bound (``services.rehearsing``). ``names_fit``: whether one more name has none of the others removed.
        """
        self.moved = Moved()
        self._old = old
        self._cache = cache
        self._clock = clock
        self._watch = watch
        self._instance = instance
        self._overwrite = overwrite
        self._rehearsal = rehearsal
        self._names_fit = names_fit
        self._both = BothStores(looking, old)
        self.mover = BlobMover(old, cache.blobs, looking, self._both, room, watch.step)
        self._ready: dict[Name, _Ready] = {}
        self._ready_from_bytes = 0

    def listed(self) -> list[Entry]:
        """Every name of the old store, in the order in which they come."""
        return sorted(self._old.entries(), key=lambda entry: (-entry.used_ms, entry.path))

    def bring(self, entries: Iterable[Entry]) -> None:
        """Bring names.

        Raises:
            MillpondError: this cache cannot be written to. What was brought stays.
        """
        try:
            for entry in entries:
                self._bring_one(entry)
                self._watch.step(1)
                brought_bytes = self.mover.size_bytes - self._ready_from_bytes
                if len(self._ready) >= _NAMES_AT_ONCE or brought_bytes >= _BYTES_AT_ONCE:
                    self._bind()
        finally:
            self._bind()

    def bring_blobs(self, listed: Iterable[tuple[Digest, int]]) -> None:
        """Bring blobs whether a name needs them or not, each with the time of its last use, the newest first.

        Raises:
            MillpondError: as :meth:`bring`.
        """
        for time_ms, digests in bursts(listed):
            self._clock.stand_at(time_ms)
            for digest, why in self.mover.store_some(digests):
                self._leave(f"blob {digest}", Left(*why))
            self._watch.step(len(digests))

    def _leave(self, path: str, why: Left, uri: str = "") -> None:
        self.moved.left[why.reason] += 1
        self._watch.left(LeftBehind(path, uri, why.reason, why.detail))

    # -- a name -----------------------------------------------------------------------------------------------------

    def _bring_one(self, entry: Entry) -> None:
        uri = ""
        try:
            if entry.trouble is not None:
                raise Left(entry.trouble)
            self._clock.stand_at(entry.used_ms)
            old = self._old.read(entry)
            uri = old.uri
            self._bring(old, entry)
        except Left as why:
            self._leave(entry.path, why, uri)

    def _bring(self, old: OldName, entry: Entry) -> None:
        try:
            assets.check_request([old.uri], old.qualifiers)
        except InvalidRequest as why:
            raise Left(Reason.UNUSABLE, str(why)) from None
        if old.expires_at_ms is not None and old.expires_at_ms <= self._clock.now():
            raise Left(Reason.EXPIRED)
        name = Name(self._instance, old.namespace, asset_key(old.uri, old.qualifiers))
        if name in self._ready:
            self._bind()  # the same name twice: the later use was first
        if self._is_here(name, old):
            self.moved.here += 1
            return
        if self.mover.full:
            raise Left(Reason.NO_ROOM)
        if not self._names_fit():
            raise self.mover.no_room("names hold all that the quota leaves them")
        self._both.hand_over(old)
        for _ in range(_TRIES):
            push = self._request(old)
            if self.mover.store_all(self._walked(name, push)):
                self._ready[name] = _Ready(entry, old, name, push)
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
            message=old.message or b"" if old.namespace is Namespace.ASSET_DIRECTORY else b"",
            foreign=False,
            overwrite=self._overwrite,
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
                raise Left(*self._both.trouble) from None
            raise Left(Reason.INCOMPLETE, str(why).partition(" of this name")[0]) from None
        except (InvalidRequest, TooMuch) as why:
            raise Left(Reason.GARBAGE, str(why)) from None

    # -- binding ----------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Bind what is ready. Where something of it was evicted meanwhile, there is no room for it."""
        waiting, self._ready = self._ready, {}
        self._ready_from_bytes = self.mover.size_bytes
        if self._rehearsal:
            self.moved.names += len(waiting)
            return
        begun: list[tuple[_Ready, PendingPush]] = []
        for ready in waiting.values():
            self._clock.stand_at(ready.entry.used_ms)
            try:
                if self._is_here(ready.name, ready.old):  # a client has pushed it a moment ago
                    self.moved.here += 1
                else:
                    push = assets.begin_push(
                        self._cache, self._instance, ready.old.namespace, ready.push, pushed_by=PUSHED_BY
                    )
                    begun.append((ready, push))
            except (IncompleteClosure, NoSpace) as why:
                self._leave(ready.entry.path, self.mover.no_room(str(why)), ready.old.uri)
            except Left as why:
                self._leave(ready.entry.path, why, ready.old.uri)
        for ready, pending in begun:
            self._clock.stand_at(ready.entry.used_ms)
            try:
                pending.bound.result()
            except NoSpace as why:
                self._leave(ready.entry.path, self.mover.no_room(str(why)), ready.old.uri)
                continue
            assets.finish([pending])
            self.moved.names += 1
