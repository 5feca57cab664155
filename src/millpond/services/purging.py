"""Removing names and what only they held.

The rule: what another name leads to stays, also if that name was bound a moment ago; what was begun is finished by
whoever comes next (``PurgeDuty``), and until then it is still true that nobody else needs it, or it is left out.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from millpond.core.digest import Digest
from millpond.core.names import Name
from millpond.names.binding import Binding
from millpond.names.interface import KeptNames
from millpond.services.reach import only_reached_by, still_needed
from millpond.store.interface import BlobStore

log = logging.getLogger(__name__)
_IDLE_SECONDS = 60.0

Entry = tuple[Name, Binding]


class Eraser(Protocol):
    """Makes blobs unreadable and overwrites them."""

    def pending(self) -> set[Digest]:
        """What was begun and not finished."""

    def begin(self, digests: Iterable[Digest]) -> None:
        """Note what is to go."""

    def finish(self, digests: Iterable[Digest]) -> int:
        """Let it go; the bytes that were overwritten."""


class Purged(NamedTuple):
    """What became of a purge."""

    blobs: int
    erased_bytes: int
    """Of all records of these blobs, older copies too."""
    shared: set[Digest]
    """What the names led to and others need."""


class Plan(NamedTuple):
    """What a purge would do, as of a moment."""

    removed: Sequence[Entry]
    alone: set[Digest]
    shared: set[Digest]
    position: int
    """Of the changes of names: what was bound since is looked at again."""


def plan(names: KeptNames, blobs: BlobStore, removed: Sequence[Entry]) -> Plan:
    """Follow every name to see what only ``removed`` lead to. Takes long, and needs no lock.

    ``blobs`` promises nothing and notes no use.
    """
    gone = {name for name, _ in removed}
    position = names.changes.position()
    others = (entry for entry in names.names() if entry[0] not in gone)
    return Plan(removed, *only_reached_by(removed, others, blobs), position)


def purge(names: KeptNames, blobs: BlobStore, eraser: Eraser, planned: Plan) -> Purged:
    """Carry out a plan. The caller holds ``upkeep.lock``.

    Raises:
        NoSpace, NotReady, OSError: it is not done; the next purge, or upkeep, finishes it.
    """
    alone = planned.alone | eraser.pending()
    eraser.begin(alone)
    names.unbind_many(planned.removed)
    alone, needed = still_needed(alone, _bound_since(names, planned.position), blobs)
    erased = eraser.finish(alone)
    return Purged(len(alone), erased, planned.shared | needed)


class PurgeDuty:
    """Finishes what a purge that was cut off had begun."""

    name = "purge"

    def __init__(self, names: KeptNames, blobs: BlobStore, eraser: Eraser) -> None:
        self._names = names
        self._blobs = blobs
        self._eraser = eraser

    def run(self) -> float:
        """Look whether there is something to finish."""
        pending = self._eraser.pending()
        if pending:
            alone, _ = still_needed(pending, self._names.names(), self._blobs)
            erased = self._eraser.finish(alone)
            log.warning("finished a purge that was cut off: %d bytes were overwritten", erased)
        return _IDLE_SECONDS


def _bound_since(names: KeptNames, position: int) -> Iterable[Entry]:
    changed = names.changes.since(position)
    if changed is None:
        return names.names()
    # A name that was removed and bound anew meanwhile is somebody's new name.
    return [entry for row in changed[1] if (entry := names.entry(row)) is not None]
