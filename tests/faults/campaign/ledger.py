"""What was acknowledged, and what may therefore be expected.

The rule: a name that was pushed or fetched is expected to be there, whole, until ``safe_bytes`` of other things were
used: without eviction that is for ever; with a quota it is a part of it that no eviction of the least recently used can
reach. A name beyond that may be a miss; it may never be broken.

Time is the order in which uses began and ended, not what a clock says, so nothing depends on how fast the machine is.
Whatever was in use after a moment counts as used since; whatever is judged counts from when its last use began.
"""

from __future__ import annotations

import random
import threading
from collections import Counter

RECENT = 60


class Ledger:
    """Shared by all threads of a campaign."""

    def __init__(self, *, safe_bytes: float) -> None:
        self.safe_bytes = safe_bytes
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._guard = threading.Lock()
        self._moment = 0
        self._touched: dict[str, tuple[int, int]] = {}
        """What was used in whatever way: when last, and its size in bytes."""
        self._used_at: dict[str, int] = {}
        """For each acknowledged key, when its last use that was answered began."""
        self._keys: list[str] = []
        self._attempted: list[str] = []

    # -- what happened ----------------------------------------------------------------------------------------------

    def touch(self, key: str, size_bytes: int) -> int:
        """To be called before and after something is used; the moment."""
        with self._guard:
            self._moment += 1
            self._touched[key] = (self._moment, size_bytes)
            return self._moment

    def attempted(self, key: str) -> None:
        """A push is sent that may or may not take place."""
        with self._guard:
            self._attempted.append(key)

    def acknowledged(self, key: str, began: int) -> None:
        """A push that began at ``began`` was acknowledged."""
        with self._guard:
            if key not in self._used_at:
                self._keys.append(key)
            self._used_at[key] = max(began, self._used_at.get(key, 0))
            self.counts["names acknowledged"] += 1

    def fetched(self, key: str, began: int) -> None:
        """A fetch that began at ``began`` was answered."""
        with self._guard:
            if key in self._used_at:
                self._used_at[key] = max(began, self._used_at[key])

    def count(self, what: str, number: int = 1) -> None:
        with self._guard:
            self.counts[what] += number

    def refused(self, text: str) -> None:
        """The words in which room was refused."""
        with self._guard:
            self.refusals[text] += 1

    def found(self, finding: str) -> None:
        """Something that must not be."""
        with self._guard:
            self.findings.append(finding)

    # -- what may be expected ---------------------------------------------------------------------------------------

    def used_at(self, key: str) -> int | None:
        """To be asked before a question, and given to :meth:`expected` with its answer."""
        return self._used_at.get(key)

    def expected(self, used_at: int | None) -> bool:
        """Whether what was used then had to be there until now."""
        return used_at is not None and self.used_since(used_at) <= self.safe_bytes

    def used_since(self, moment: int) -> int:
        """The bytes of all that was in use at that moment or later, each once."""
        with self._guard:
            return sum(size for last, size in self._touched.values() if last >= moment)

    @property
    def keys(self) -> list[str]:
        """All acknowledged."""
        with self._guard:
            return list(self._keys)

    def recent(self, chance: random.Random) -> str | None:
        """One of the last that were acknowledged."""
        with self._guard:
            return chance.choice(self._keys[-RECENT:]) if self._keys else None

    def any(self, chance: random.Random) -> str | None:
        """Any that was ever pushed or tried to be."""
        with self._guard:
            return chance.choice(self._attempted) if self._attempted else None

    def sample(self, chance: random.Random) -> list[str]:
        """The last ones, and a few of all."""
        with self._guard:
            newest, rest = self._keys[-RECENT // 2 :], self._keys[: -RECENT // 2]
            return newest + chance.sample(rest, min(RECENT // 4, len(rest)))
