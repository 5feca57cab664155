"""What pushes need, promised as they are committed: together.

A promise costs a lock which all processes share and a write to a log, for one closure as for fifty. Pushes that come at
the same time wait for one commit anyway, so what they need is promised in one go, just before it.

The rule is that of every push: what a name needs is promised, and found held and durable, before the name is written.
"""

import threading
from collections import deque
from collections.abc import Sequence

from millpond.core.digest import Digest
from millpond.core.errors import WouldBlock
from millpond.store.interface import Closures, Footprint

_AT_ONCE = 1000
"""Blobs. To look for so many takes about a millisecond, in which eviction and whoever else commits must wait."""


class LatePromise:
    """A closure that is to be promised. Its fields are :class:`JointPromises`' own."""

    __slots__ = ("digests", "found", "joint")

    def __init__(self, joint: "JointPromises", digests: Sequence[Digest]) -> None:
        self.joint = joint
        self.digests = digests
        self.found: Footprint | Exception | None = None

    def make(self) -> None:
        """Promise it, with all others that wait for that.

        Raises:
            WouldBlock: there is more to it: something is missing or not durable yet, or there is a lock to wait for.
            NotReady: it could not be noted.
        """
        self.joint.make(self)
        if isinstance(self.found, Exception):
            raise self.found

    @property
    def footprint(self) -> Footprint | None:
        """Where it lies; None as long as it is not promised."""
        return self.found if isinstance(self.found, Footprint) else None


class JointPromises:
    """Those of one cache. Methods may be called from any thread, and wait for nothing but each other."""

    def __init__(self, closures: Closures) -> None:
        self._closures = closures
        self._waiting: deque[LatePromise] = deque()
        self._making = threading.Lock()

    def later(self, digests: Sequence[Digest]) -> LatePromise:
        """All of ``digests``, to be promised in the end by :meth:`LatePromise.make`.

        Raises:
            WouldBlock: they are so many that others would wait for it.
        """
        if len(digests) > _AT_ONCE:
            raise WouldBlock
        late = LatePromise(self, digests)
        self._waiting.append(late)
        return late

    def make(self, late: LatePromise) -> None:
        """Promise what waits, in the order in which it came, until ``late`` is promised."""
        with self._making:
            while late.found is None:
                self._make(self._next())

    def _next(self) -> list[LatePromise]:
        some = [self._waiting.popleft()]
        left = _AT_ONCE - len(some[0].digests)
        while self._waiting and (left := left - len(self._waiting[0].digests)) >= 0:
            some.append(self._waiting.popleft())
        return some

    def _make(self, some: Sequence[LatePromise]) -> None:
        try:
            promised = self._closures.promise([late.digests for late in some], leases=True, wait=False)
            for late, one in zip(some, promised, strict=True):
                late.found = WouldBlock() if one.footprint is None else one.footprint
        except Exception as failure:
            for late in some:
                late.found = failure
