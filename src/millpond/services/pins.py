"""Pins: names that stay, with all that they need, whatever else must go.

A pin is a pattern over names, kept with the names because it is as precious. Upkeep turns it into marks on blobs
(``Pinned``), which eviction spares. The rule: marks are added as soon as a name is bound, and taken away only by
counting all of them anew in a new *epoch*, because blobs are shared. Pins hold at most their share of the quota: a
name that does not fit any more stays an ordinary name, and the log says so once.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from millpond.core.clock import Clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.names import Name, element_of, spoken
from millpond.core.patterns import matches
from millpond.names.binding import Binding
from millpond.names.interface import KeptNames
from millpond.names.notes import Pin, PinState
from millpond.services.careful import Careful, Unknown
from millpond.store.interface import BlobStore

log = logging.getLogger(__name__)
_STEP_SECONDS = 0.2
_SOON_SECONDS = 0.05
_IDLE_SECONDS = 0.25
_RECOUNT_SECONDS = 600.0
"""How soon marks of names that were displaced or removed are taken away: counting anew walks every pinned name."""
_BROKEN_SECONDS = 3600.0
_GROWN = 1.05
_BEYOND_KEPT = 1000


class Pinned(Protocol):
    """The marks."""

    def pin(self, epoch: int, keys: Iterable[bytes]) -> None:
        """Keep blobs."""

    def unpinned(self, epoch: int, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that are not marked in this epoch."""

    def end_pins_before(self, epoch: int) -> None:
        """Take away the marks of earlier epochs."""

    def pins_epoch(self) -> int:
        """The last epoch for which that was done, 0 before the first."""


class Chosen(NamedTuple):
    """A name that a pin keeps."""

    pin: Pin
    name: Name
    binding: Binding


def choose(names: Sequence[tuple[Name, Binding]], pins: Sequence[Pin], now_ms: int) -> list[Chosen]:
    """What ``pins`` keep of ``names``, in the order in which they come first: by pin, then by time of push.

    Of an element's names, those that are bound to one thing (BuildStream pushes a strong and a weak key) count as one.
    """
    kept: dict[Name, Chosen] = {}
    for pin in sorted(pins, key=lambda pin: (pin.made_at_ms, pin.pattern)):
        found = [one for one in names if pin.lasts(now_ms) and matches(pin.pattern, one[0])]
        newest = None if pin.newest is None else _newest(found, pin.newest)
        for name, binding in sorted(found, key=lambda one: (one[1].pushed_at_ms, one[0].row)):
            if newest is None or binding.digest in newest[element_of(name)]:
                kept.setdefault(name, Chosen(pin, name, binding))
    return list(kept.values())


def _newest(found: Iterable[tuple[Name, Binding]], count: int) -> dict[tuple[str, ...], set[Digest]]:
    """Per element, what its ``count`` newest names are bound to."""
    pushed: dict[tuple[str, ...], dict[Digest, int]] = {}
    for name, binding in found:
        times = pushed.setdefault(element_of(name), {})
        times[binding.digest] = max(binding.pushed_at_ms, times.get(binding.digest, 0))
    return {
        element: set(sorted(times, key=lambda digest: (times[digest], digest.key), reverse=True)[:count])
        for element, times in pushed.items()
    }


@dataclass(slots=True)
class _Epoch:
    """One count of everything that is pinned."""

    number: int
    position: int
    pins: list[Pin]
    held_bytes: int = 0
    done: dict[bytes, bytes] = field(default_factory=dict)
    """Rows of the names that a pin keeps, to the stamp of their binding."""
    stamps: set[bytes] = field(default_factory=set)
    """Of bindings whose blobs are marked."""
    beyond: dict[bytes, None] = field(default_factory=dict)
    """Rows of names that do not fit."""
    incomplete: bool = False
    """A name is broken or could not be read."""
    unknown: bool = False
    """A name could not be read: what was marked for it must stay."""


class PinDuty:
    """Keeps marks as pins and names would have them. Nothing to do costs one look at a number."""

    name = "pins"

    def __init__(
        self,
        names: KeptNames,
        blobs: BlobStore,
        pinned: Pinned,
        *,
        quota_bytes: Callable[[], int],
        share: float,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._careful = Careful(blobs)
        self._pinned = pinned
        self._quota_bytes = quota_bytes
        self._share = share
        self._clock = clock
        self._monotonic = monotonic
        self._current: _Epoch | None = None
        self._counting: tuple[_Epoch, Iterator[None]] | None = None
        self._version = -1
        self._counted_for_bytes = -1
        self._recount_at: float | None = float("-inf")
        self._said: set[bytes] = set()
        self._state: PinState | None = None

    def holds(self, row: bytes) -> bool:
        """Whether the name in ``row`` is pinned. Everything is, before the first count is through."""
        epoch = self._current
        return epoch is None or (row in epoch.done and row not in epoch.beyond)

    def run(self) -> float:
        """Catch up with names and pins, for a fraction of a second."""
        try:
            return self._run(self._monotonic() + _STEP_SECONDS)
        except BaseException:
            self._recount_at = float("-inf")  # marks only ever end with a count that is complete
            raise

    def _run(self, deadline: float) -> float:
        self._notice()
        if self._counting is not None:
            epoch, steps = self._counting
            for _ in steps:
                if self._monotonic() >= deadline:
                    return _SOON_SECONDS
            self._counting = None
            self._current = epoch
            self._tell(epoch)
            return _SOON_SECONDS  # names that were bound meanwhile
        return _IDLE_SECONDS

    def finish(self) -> None:
        """Run until everything is as it should be."""
        while self.run() < _IDLE_SECONDS:
            pass

    def _notice(self) -> None:
        """Begin to count anew where that is due; take in what was bound since."""
        version, now_ms = self._names.version(), self._clock()
        ended = self._current is not None and any(not pin.lasts(now_ms) for pin in self._current.pins)
        due = self._recount_at is not None and self._monotonic() >= self._recount_at
        if self._current is not None and self._fits_no_more(self._current):
            self._recount_later()
        if version == self._version and not ended and not due:
            return
        pins = self._lasting(now_ms)
        known = self._counting[0] if self._counting is not None else self._current
        if due or known is None or pins != known.pins:
            self._begin(pins, now_ms)
        elif self._counting is None:
            self._take_in_changes(known)
        else:
            return  # what changes while everything is counted is taken in after that
        self._version = version

    def _lasting(self, now_ms: int) -> list[Pin]:
        pins = self._names.pins.all()
        ended = [pin for pin in pins if not pin.lasts(now_ms)]
        for pin in ended:
            log.info("the pin %s has ended", pin.pattern)
        self._names.pins.remove([pin.pattern for pin in ended])
        return [pin for pin in pins if pin.lasts(now_ms)]

    def _begin(self, pins: list[Pin], now_ms: int) -> None:
        number = max(now_ms, self._pinned.pins_epoch() + 1)  # also if somebody set the clock back
        epoch = _Epoch(number, self._names.changes.position(), pins)
        self._counting = epoch, self._count(epoch)
        self._recount_at = None
        self._counted_for_bytes = self._quota_bytes()

    def _count(self, epoch: _Epoch) -> Iterator[None]:
        """Mark everything that is pinned; a step at a time."""
        found: list[tuple[Name, Binding]] = []
        for entry in self._names.names() if epoch.pins else ():
            if any(matches(pin.pattern, entry[0]) for pin in epoch.pins):
                found.append(entry)
            yield
        for one in choose(found, epoch.pins, self._clock()):
            self._take_in(epoch, one.name, one.binding)
            yield
        # Where nothing is known of pins nothing can be evicted: better to lose the name that cannot be read.
        if not epoch.unknown or not self._pinned.pins_epoch():
            self._pinned.end_pins_before(epoch.number)
        self._come_back_to(epoch)

    def _take_in_changes(self, epoch: _Epoch) -> None:
        if not epoch.pins and not epoch.done:
            epoch.position = self._names.changes.position()  # nobody asks whether a name that changed is pinned
            return
        changed = self._names.changes.since(epoch.position)
        if changed is None:
            self._begin(epoch.pins, self._clock())
            return
        epoch.position, rows = changed
        for row in rows:
            entry = self._names.entry(row)
            if row in epoch.done and (entry is None or entry[1].stamp != epoch.done[row]):
                self._recount_later()
            pin = None if entry is None else self._pin_of(epoch, entry[0])
            if entry is None or pin is None:
                continue
            self._take_in(epoch, *entry)  # what was just pushed is the newest of its element
            if pin.newest is not None:
                self._recount_later()  # and another may be so no more
        if rows:
            self._come_back_to(epoch)
            self._tell(epoch)

    def _pin_of(self, epoch: _Epoch, name: Name) -> Pin | None:
        return next((pin for pin in epoch.pins if pin.newest != 0 and matches(pin.pattern, name)), None)

    def _fits_no_more(self, epoch: _Epoch) -> bool:
        """Whether the quota changed so that pins must give way, or could take in more."""
        quota_bytes = self._quota_bytes()
        grown = bool(epoch.beyond) and quota_bytes > self._counted_for_bytes * _GROWN
        return grown or epoch.held_bytes > self._share * quota_bytes

    def _come_back_to(self, epoch: _Epoch) -> None:
        """What is broken may become whole again without being pushed by its name."""
        if epoch.unknown or epoch.incomplete:
            self._recount_later(_RECOUNT_SECONDS if epoch.unknown else _BROKEN_SECONDS)

    def _recount_later(self, seconds: float = _RECOUNT_SECONDS) -> None:
        self._recount_at = min(
            self._monotonic() + seconds, float("inf") if self._recount_at is None else self._recount_at
        )

    def _take_in(self, epoch: _Epoch, name: Name, binding: Binding) -> None:
        """Pin one name; its blobs, if it is whole and fits."""
        row = name.row
        if epoch.done.get(row) == binding.stamp:
            return
        epoch.done[row] = binding.stamp
        epoch.beyond.pop(row, None)
        if binding.foreign or binding.stamp in epoch.stamps:
            return
        try:
            found = self._careful.closure(name, binding)
        except Unknown as why:
            log.warning("%s may not be pinned: %s", spoken(name)[1], why)
            epoch.incomplete = epoch.unknown = True
            return
        if found is None:
            epoch.incomplete = True
        elif self._mark(epoch, found.digests):
            epoch.stamps.add(binding.stamp)
        else:
            self._say_beyond(epoch, name)

    def _mark(self, epoch: _Epoch, digests: Sequence[Digest]) -> bool:
        """Pin blobs, if all of them fit; those that are pinned already cost nothing."""
        sizes = {digest.key: digest.size_bytes for digest in digests if digest != EMPTY}
        fresh = self._pinned.unpinned(epoch.number, list(sizes))
        added = sum(sizes[key] for key in fresh)
        if epoch.held_bytes + added > self._share * self._quota_bytes():
            return False
        self._pinned.pin(epoch.number, fresh)
        epoch.held_bytes += added
        return True

    def _say_beyond(self, epoch: _Epoch, name: Name) -> None:
        row = name.row
        epoch.beyond[row] = None
        if row not in self._said:
            self._said.add(row)
            log.warning(
                "%s is not pinned: pins hold %d bytes and may hold %d: raise --pin-share or the quota, or unpin something",
                spoken(name)[1],
                epoch.held_bytes,
                int(self._share * self._quota_bytes()),
            )

    def _tell(self, epoch: _Epoch) -> None:
        """Note what was found, for the commands."""
        beyond = tuple(row.hex() for row in list(epoch.beyond)[:_BEYOND_KEPT])
        state = PinState(self._share, epoch.held_bytes, beyond)
        if state != self._state and (epoch.pins or self._share != self._known_share()):
            self._names.pins.set_state(state)
        self._state = state

    def _known_share(self) -> float | None:
        state = self._names.pins.state()
        return None if state is None else state.share
