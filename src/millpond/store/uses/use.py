"""What is known of a use. Times are milliseconds since 1970; times only rise."""

from typing import NamedTuple


class Use(NamedTuple):
    """When a blob was last used, and until when it is leased (0: not at all); milliseconds since 1970."""

    time_ms: int
    lease_until_ms: int = 0
    grants: int = 0
    """How many clients were promised it within that lease: each push ends one of them."""


class NameUse(NamedTuple):
    """When a name was last used."""

    time_ms: int
    applied_ms: int = 0
    """All blobs of its closure have a time of use of at least this."""
    bound_ms: int = 0
    """When it was bound, as long as the leases of its closure have not been ended for that; else 0."""
