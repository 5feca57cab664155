"""What people and upkeep note beside names, as values.

The rule: times are milliseconds since 1970 (UTC), sizes are bytes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pin:
    """Keep what a pattern matches, now and later."""

    pattern: str
    made_at_ms: int
    newest: int | None = None
    """Of each element only so many, the newest; None is all."""
    until_ms: int | None = None
    """The pin ends then; None is never."""

    def lasts(self, now_ms: int) -> bool:
        """Whether it has not ended."""
        return self.until_ms is None or now_ms < self.until_ms


@dataclass(frozen=True, slots=True)
class PinState:
    """What upkeep last found: how much pins hold, and what they could not take in."""

    share: float
    """Of the quota, what pins may hold: what the server was started with."""
    held_bytes: int = 0
    beyond: tuple[str, ...] = ()
    """Rows (hex) of names that match and found no room in the share."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A name that is not whole: since when, and which binding of it (``Binding.stamp`` in hex)."""

    since_ms: int
    stamp: str
