"""What a cache promises, in sets and times: what must be held, what must not be, and what may be either.

The model is told what was done and what was answered. It objects to a wrong answer, and learns from a true one where
it could not know: whether a write went through whose process was killed, or what exactly eviction took.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from millpond.core import limits


@dataclass(slots=True)
class Held:
    """A blob that is held, for certain or perhaps. Times in ms."""

    used_ms: int
    """It was used then, or later."""
    leased_until_ms: int = 0
    """It is kept until then at the least."""
    sure: bool = True
    rotten: bool = False
    """Its bytes were damaged; whoever reads it gets nothing."""


@dataclass(slots=True)
class CacheModel:
    """Blobs are numbers, names are words, a binding is the numbers that it needs."""

    now_ms: int
    blobs: dict[int, Held] = field(default_factory=dict)
    names: dict[str, tuple[int, ...]] = field(default_factory=dict)
    perhaps: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    """What a name may stand for instead, soon: the processes that were to bind it were killed, in this order."""
    pinned: set[str] = field(default_factory=set)
    once_damaged: set[int] = field(default_factory=set)
    """Bad copies of these may lie about."""
    once_evicted: set[int] = field(default_factory=set)
    header_damaged: bool = False
    may_surface: set[int] = field(default_factory=set)
    """Whose writer was killed. A writer of LMDB that dies between its meta page and the word that tells readers of it
    leaves a transaction that nobody sees until the next one begins: such a blob may be missing first and held later."""

    # -- blobs ------------------------------------------------------------------------------------------------------

    def stored(self, *blobs: int) -> None:
        """They were taken: held and leased."""
        for blob in blobs:
            before = self.blobs.get(blob)
            rotten = before is not None and before.rotten  # it may have been listed still, and was not taken anew
            self.blobs[blob] = Held(self.now_ms, self.now_ms + limits.LEASE_MS, rotten=rotten)

    def perhaps_stored(self, *blobs: int) -> None:
        """Who was to take them was killed."""
        for blob in blobs:
            self.may_surface.add(blob)
            if blob not in self.blobs:
                self.blobs[blob] = Held(self.now_ms, sure=False)

    def found(self, asked: list[int], missing: list[int]) -> None:
        """``missing`` was the answer to "which of these are not here"; the others are leased."""
        for blob in asked:
            self._learn(blob, held=blob not in missing)
            if blob not in missing:
                self.stored(blob)

    def seen(self, blob: int, *, held: bool) -> None:
        """It was looked for without being promised."""
        self._learn(blob, held=held)

    def read(self, blob: int, answer: str | None, *, noted: bool) -> None:
        """``answer``: "right", "wrong" or None. ``noted``: nobody can be killed before he has noted that it was used."""
        assert answer in (None, "right"), f"blob {blob} came with wrong bytes"
        held = self.blobs.get(blob)
        if answer is None:
            assert held is None or not held.sure or held.rotten, f"blob {blob} is held and was not given"
            self.blobs.pop(blob, None)
        else:
            held = self._held(blob)
            held.sure, held.rotten = True, False
            if noted:
                held.used_ms = self.now_ms

    def damaged(self, blob: int, where: str) -> None:
        """Bits of it were flipped on the disk: in its "data", or in the "header" of its record."""
        self.blobs[blob].rotten = True
        self.once_damaged.add(blob)
        self.header_damaged |= where == "header"

    def rebuilt(self) -> None:
        """What is listed was made anew from what lies about: a bad copy may be listed again, but hides no good one.

        Behind a record whose header is damaged nothing is found in a segment that was not sealed: where the next record
        begins is in the header.
        """
        for blob in self.once_damaged - self.blobs.keys():
            self.blobs[blob] = Held(self.now_ms, sure=False, rotten=True)
        self.may_surface |= self.once_evicted  # from the dead space of a segment that is still written
        for held in self.blobs.values():
            held.used_ms = held.leased_until_ms = 0  # the table of uses is lost with the index
        if self.header_damaged:
            for blob, held in self.blobs.items():
                held.sure, held.rotten = False, blob in self.once_damaged

    def _learn(self, blob: int, *, held: bool) -> None:
        known = self.blobs.get(blob)
        if not held:
            assert known is None or not known.sure or known.rotten, f"blob {blob} was lost"
            self.blobs.pop(blob, None)
        else:
            self._held(blob).sure = True

    def _held(self, blob: int) -> Held:
        """What is known of a blob that was found to be held."""
        if blob in self.may_surface:
            self.blobs.setdefault(blob, Held(self.now_ms))
        assert blob in self.blobs, f"blob {blob} cannot be held"
        return self.blobs[blob]

    def whole(self, blobs: tuple[int, ...]) -> bool | None:
        """Whether all of them are held; None: nobody can know."""
        if any(blob not in self.blobs and blob not in self.may_surface for blob in blobs):
            return False
        held = [self.blobs.get(blob) for blob in blobs]
        if all(one is not None and one.sure and not one.rotten for one in held):
            return True
        return None

    # -- names ------------------------------------------------------------------------------------------------------

    def bound(self, name: str, blobs: tuple[int, ...], refusal: str | None) -> None:
        """A push was answered."""
        whole = self.whole(blobs)
        if refusal is None:
            assert whole is not False, f"{name} was bound without all of its blobs"
            self.names[name] = blobs
            self.perhaps.pop(name, None)
            for blob in blobs:
                held = self._held(blob)
                held.used_ms, held.leased_until_ms, held.sure = self.now_ms, 0, True
        else:
            assert refusal == "IncompleteClosure", f"{name} was refused: {refusal}"
            assert whole is not True, f"{name} was refused, and all of its blobs are held"

    def perhaps_bound(self, name: str, blobs: tuple[int, ...]) -> None:
        """Who was to bind it was killed."""
        if self.whole(blobs) is not False:
            self.perhaps.setdefault(name, []).append(blobs)
        for blob in blobs:
            if blob in self.blobs:
                self.blobs[blob].leased_until_ms = 0

    def fetched(self, name: str, answer: int | None) -> None:
        """``answer``: the first blob of what it is bound to; None: a miss."""
        before, after = self.names.get(name), self.perhaps.get(name, [])
        sure = before is not None and not after and self.whole(before)
        if answer is None:
            assert not sure, f"{name} is bound to {before}, all of it held, and was a miss"
            return
        found = next((blobs for blobs in self.bindings_of(name) if blobs[0] == answer), None)
        assert found is not None, f"{name} was answered with blob {answer}, but is bound to {before}"
        assert self.whole(found) is not False, f"{name} was answered without all of its blobs"
        if found != before:
            self.names[name] = found
            self.perhaps[name] = after[after.index(found) + 1 :]
        for blob in found:
            held = self._held(blob)
            held.used_ms, held.sure = self.now_ms, True

    def bindings_of(self, name: str) -> list[tuple[int, ...]]:
        """All that it may be bound to."""
        return [blobs for blobs in (self.names.get(name), *self.perhaps.get(name, [])) if blobs]

    def unbound(self, name: str) -> None:
        """It was removed."""
        self.names.pop(name, None)
        self.perhaps.pop(name, None)
        self.pinned.discard(name)

    # -- eviction ---------------------------------------------------------------------------------------------------

    @property
    def pinned_blobs(self) -> set[int]:
        """All that pinned names need."""
        return {blob for name in self.pinned for blobs in self.bindings_of(name) for blob in blobs}

    def evicted(self, left: list[int], how: dict[str, Any], *, exact: bool) -> None:
        """Of all blobs only ``left`` are still held. ``how``: what eviction was asked for.

        ``exact``: blobs go one by one; not in segments, where what is young may lie in the way of what is old.
        """
        pinned, everything = self.pinned_blobs, how.get("everything", False)
        gone = [blob for blob in self.blobs if blob not in left]
        for blob in gone:
            held = self.blobs.pop(blob)
            self.once_evicted.add(blob)
            if not held.sure or held.rotten:
                continue
            assert blob not in pinned, f"blob {blob} is pinned and was evicted"
            assert everything or held.leased_until_ms <= self.now_ms, f"blob {blob} is leased and was evicted"
            older_than_ms = how.get("older_than_ms")
            assert older_than_ms is None or held.used_ms < older_than_ms, f"blob {blob} is too young to be evicted"
            for other in self.blobs if exact and not everything else ():
                another = self.blobs[other]
                free = other not in pinned and another.leased_until_ms <= self.now_ms and another.sure
                assert other in gone or not free or another.used_ms >= held.used_ms, (
                    f"blob {blob} was evicted, and {other} was not, which is older"
                )
