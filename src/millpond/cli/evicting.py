"""What ``millpond evict`` does: takes upkeep's place for a moment and evicts.

The rule: it is the same eviction that makes room when the cache is full, under the same lock, so running servers notice
nothing but misses.
"""

import logging
from contextlib import ExitStack
from pathlib import Path

from millpond.cli.progress import several
from millpond.config.ages import format_age
from millpond.config.settings import Settings
from millpond.config.sizes import format_size
from millpond.core.clock import wall_clock
from millpond.core.errors import MillpondError, RefusedToStart
from millpond.services.upkeep import turn
from millpond.store.eviction.evicted import Evicted
from millpond.store.eviction.making_room import Eviction
from millpond.store.repository.opening import open_existing
from millpond.store.room.pressure import Pressure
from millpond.upkeep import Parts, count_pins, eviction, parts

_TURN_SECONDS = 120.0


def run(path: Path, *, older_than_ms: int | None, to_bytes: int | None) -> int:
    """Evict what was last used so long ago, or down to so many bytes, or everything; the exit status.

    Raises:
        RefusedToStart: it cannot be done here, or not now.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # what went is told below
    with ExitStack() as stack:
        repository = open_existing(path)
        stack.callback(repository.close)
        if repository.read_only:
            raise RefusedToStart(f"{path} can only be read here: evict where it can be written")
        work = parts(Settings(repo=path, listeners=()), repository, stack, wait_seconds=_TURN_SECONDS)
        if not stack.enter_context(turn(repository.layout, wait_seconds=_TURN_SECONDS)):
            raise RefusedToStart(f"{path} is busy: another command is at work on it; try again when that has ended")
        try:
            return _evict(path, work, stack, older_than_ms=older_than_ms, to_bytes=to_bytes)
        except MillpondError as failure:
            raise RefusedToStart(f"{path}: {failure}") from None


def _evict(path: Path, work: Parts, stack: ExitStack, *, older_than_ms: int | None, to_bytes: int | None) -> int:
    evicting: Eviction = eviction(work, stack)
    count_pins(work)  # those that were made while no server ran, too
    before = work.clock()
    evicted = evicting.evict(
        older_than_ms=None if older_than_ms is None else before - older_than_ms,
        to_bytes=to_bytes,
        everything=older_than_ms is None and to_bytes is None,
    )
    left = work.space.pressure()
    print(_told(evicted))
    print(f"{path}: {format_size(left.used_bytes)} of its {format_size(work.space.quota_bytes)} are taken now")
    return _verdict(left, to_bytes)


def _told(evicted: Evicted) -> str:
    if not evicted.segments and not evicted.blobs:
        return "nothing had to go"
    words = f"evicted {format_size(evicted.freed_bytes)}: {several(evicted.blobs, 'blob')}"
    if evicted.youngest_ms:
        words += f", last used {format_age(max(0, wall_clock() - evicted.youngest_ms))} ago or longer"
    if not evicted.segments:  # all of it lay in segments that are still written
        words += "; its room returns when servers go on to other files"
    return f"{words}; {several(evicted.names, 'name')} became incomplete"


def _verdict(left: Pressure, to_bytes: int | None) -> int:
    if to_bytes is None or left.used_bytes <= to_bytes:
        return 0
    over = format_size(left.used_bytes - to_bytes)
    print(f"that is {over} more than asked for: the rest is pinned, in use, or what the repository itself needs")
    return 1
