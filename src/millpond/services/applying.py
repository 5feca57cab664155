"""Carrying the use of a name over to all that it needs.

A fetch notes one line, however many files its artifact has. Before upkeep chooses what to evict, it walks the closures
of the names that were used, and notes for each of their blobs that it is as young as the name: so an artifact that is
fetched daily is whole, however long ago it was walked. Only names are walked whose blobs could go by their own times,
which in a cache that keeps things for weeks are few.

The rule: what was applied is noted after the blobs' times, so a kill between only means doing it again.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from millpond.core.errors import InvalidRequest, TooMuch
from millpond.core.names import Name
from millpond.names.binding import Binding
from millpond.services import closure
from millpond.store.interface import BlobStore
from millpond.store.uses.use import NameUse

log = logging.getLogger(__name__)


class NamesByRow(Protocol):
    """What is asked of names here."""

    def entry(self, row: bytes) -> tuple[Name, Binding] | None:
        """The name with this ``Name.row`` and its binding; None when it is not bound."""
        ...


class UsesOfAll(Protocol):
    """What is written here of the table of uses (``store.uses.table.Uses``)."""

    def all_names(self) -> Iterator[tuple[bytes, NameUse]]:
        """All names of which a use is known."""
        ...

    def set_name(self, row: bytes, use: NameUse | None) -> None:
        """Write what is known of a name; None forgets it."""

    def used(self, keys: Iterable[bytes], time_ms: int) -> None:
        """Note a use of blobs."""

    def unlease(self, keys: Sequence[bytes], granted_by_ms: int) -> None:
        """End the leases that were granted until then."""


class NameUses:
    """Applies names' uses to their closures. Used by whoever holds ``upkeep.lock``."""

    def __init__(self, blobs: BlobStore, names: NamesByRow, uses: UsesOfAll) -> None:
        """``blobs`` promises nothing and notes nothing: to look at a closure is not to use it."""
        self._blobs = blobs
        self._names = names
        self._uses = uses

    def apply(self, horizon_ms: int, *, end_leases: bool) -> list[bytes]:
        """Note, for the blobs of every name that was used since ``horizon_ms``, a use that is no older.

        With ``end_leases``, the leases of what was bound end too. The rows of the names that this concerned.
        """
        applied: list[bytes] = []
        ended: set[bytes] = set()  # a push of several URIs binds several names, and ends each lease once
        for row, use in list(self._waiting(horizon_ms, end_leases=end_leases)):
            entry = self._names.entry(row)
            if entry is None:
                self._uses.set_name(row, None)
                continue
            stamp = entry[1].stamp
            self._apply(*entry, use, end_leases=end_leases, ends_first=stamp not in ended)
            if end_leases and use.bound_ms:
                ended.add(stamp)
            applied.append(row)
        return applied

    def _waiting(self, horizon_ms: int, *, end_leases: bool) -> Iterator[tuple[bytes, NameUse]]:
        for row, use in self._uses.all_names():
            if use.applied_ms < horizon_ms <= use.time_ms or (end_leases and use.bound_ms):
                yield row, use

    def _apply(self, name: Name, binding: Binding, use: NameUse, *, end_leases: bool, ends_first: bool) -> None:
        keys: list[bytes] = []
        try:
            if not binding.foreign:
                found = closure.remains(self._blobs, name.namespace, name.key, binding)
                keys = [digest.key for digest in found]
        except (InvalidRequest, TooMuch) as why:
            log.debug("name %.200r cannot be walked: %s", name.key, why)  # nothing is kept for its sake
        self._uses.used(keys, use.time_ms)
        if use.bound_ms and end_leases and ends_first:
            self._uses.unlease(keys, use.bound_ms)
        self._uses.set_name(name.row, NameUse(use.time_ms, use.time_ms, 0 if end_leases else use.bound_ms))
