"""How often the cache had what it was asked for: the sums of one process, in memory, and those of all.

The rule: counting costs a few additions per call, never fails a request and never waits.
"""

import struct
from typing import NamedTuple

HOUR_MS = 3_600_000


class Sums(NamedTuple):
    """What was counted. New ones are added at the end: the values are part of the format of touch logs."""

    names_found: int = 0
    """Names that were asked for and answered."""
    names_missed: int = 0
    """Names that were asked for and not bound, expired, or not whole."""
    blobs_present: int = 0
    """Blobs that somebody wanted to upload and need not."""
    blobs_absent: int = 0
    """Blobs that somebody asked about and must upload."""
    blobs_read: int = 0
    """Blobs that were asked for and served."""
    blobs_missed: int = 0
    """Blobs that were asked for and not here."""
    bytes_read: int = 0
    bytes_written: int = 0
    damaged: int = 0
    """Blobs that turned out to be damaged when somebody asked for them."""

    def plus(self, other: "Sums") -> "Sums":
        """Both together."""
        return Sums(*(one + more for one, more in zip(self, other, strict=True)))

    def encode(self) -> bytes:
        """8 bytes each."""
        return struct.pack(f"<{len(self)}Q", *self)

    @classmethod
    def decode(cls, encoded: bytes) -> "Sums":
        """The inverse of :meth:`encode`, also of that of a version that counted less, or more."""
        count = min(len(encoded) // 8, len(cls._fields))
        return cls(*struct.unpack_from(f"<{count}Q", encoded))


class Counts:
    """The running sums of one process. Plain integers that only grow: whoever adds needs no lock.

    Two threads that add at the same moment may lose one of the two; a rate does not show that.
    """

    __slots__ = ("_told", *Sums._fields)

    names_found: int
    names_missed: int
    blobs_present: int
    blobs_absent: int
    blobs_read: int
    blobs_missed: int
    bytes_read: int
    bytes_written: int
    damaged: int

    def __init__(self) -> None:
        self._told = Sums()
        for field in Sums._fields:
            setattr(self, field, 0)

    def sums(self) -> Sums:
        """All that was counted so far."""
        return Sums(*(getattr(self, field) for field in Sums._fields))

    def news(self) -> Sums | None:
        """What was counted since this was last asked; None when that is nothing."""
        now = self.sums()
        if now == self._told:
            return None
        news = Sums(*(later - before for later, before in zip(now, self._told, strict=True)))
        self._told = now
        return news


class Tallies(NamedTuple):
    """What a repository's processes have counted."""

    since_ms: int
    """When counting began; 0 when nothing was counted yet."""
    ever: Sums
    hours: dict[int, Sums]
    """Per hour since 1970, of the last week; hours without any are left out."""

    def of_last(self, hours: int, now_ms: int) -> Sums:
        """The sums of the last ``hours``, the one that runs included."""
        this = now_ms // HOUR_MS
        sums = Sums()
        for hour, counted in self.hours.items():
            if this - hours < hour <= this:
                sums = sums.plus(counted)
        return sums
