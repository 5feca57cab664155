"""What the ledger says of room: how full it is, what cannot go, and what can never fit."""

from typing import NamedTuple

from millpond.core.errors import NoSpace


class Pressure(NamedTuple):
    """How full it is. ``to_free_bytes`` above 0: evict now, so much."""

    limit_bytes: int
    """What segments, uploads and claims together may be, now."""
    used_bytes: int
    """Everything under the repository, in blocks."""
    claimed_bytes: int
    """Set aside and not written yet."""
    to_free_bytes: int
    wanted_bytes: int
    """What somebody waits for at this moment."""


class NeverFits(NoSpace):
    """Waiting is of no use."""


class Held(NamedTuple):
    """What cannot be evicted, and why."""

    pinned_bytes: int
    leased_bytes: int
    other_bytes: int
