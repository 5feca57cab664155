"""The other place that knows parts: it opens a repository for upkeep and says which duties there are.

The rule: no gRPC here. Upkeep is a process of its own so that eviction does not take turns with requests; it is as
small as it can be, and gives way to those that serve (``nice``).
"""

import asyncio
import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from millpond.config.settings import Settings
from millpond.config.sizes import explicit_quota_bytes
from millpond.core import limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import RefusedToStart
from millpond.disk.environment import heed
from millpond.disk.group_writer import GroupWriter
from millpond.names.backups import BackupDuty
from millpond.names.lmdb_names import LmdbNames
from millpond.opening_names import open_names
from millpond.services.applying import NameUses
from millpond.services.expiry import ExpiryDuty
from millpond.services.pins import PinDuty
from millpond.services.purging import PurgeDuty
from millpond.services.upkeep import Duty, Upkeep, turn
from millpond.store.care.purge import Purge
from millpond.store.care.quarantine import quarantine
from millpond.store.care.scrub import ScrubDuty
from millpond.store.eviction.chores import Abandoned, MergeLogs, ReaderSlots
from millpond.store.eviction.forwarding import Forwarder
from millpond.store.eviction.making_room import Eviction
from millpond.store.eviction.promise_lock import PromiseLock
from millpond.store.eviction.sweeping import Sweeper
from millpond.store.failures import is_full, told
from millpond.store.index import Entry, Index
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository import filesystem
from millpond.store.repository.layout import Layout
from millpond.store.repository.opening import OpenRepository, open_repository
from millpond.store.room.ballast import Ballast
from millpond.store.room.departing import Departing
from millpond.store.room.growth import Growth
from millpond.store.room.leftovers import Leftovers
from millpond.store.room.space import Space
from millpond.store.segments.durability import intact
from millpond.store.segments.sealing import Sealer
from millpond.store.uses.merging import Merger
from millpond.store.uses.table import Uses

log = logging.getLogger(__name__)
_NICE = 2
"""A little behind those that serve, and no more: what it frees is what they wait for."""
_TURN_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What duties work on."""

    settings: Settings
    repository: OpenRepository
    names: LmdbNames
    uses: Uses
    index_writer: GroupWriter
    space: Space
    sealer: Sealer
    looking: ReadOnlyStore
    """Looks at blobs without promising anything and without counting as use. One for all duties: what it has open of
    segments that are gone is closed by eviction."""
    clock: Clock

    @property
    def layout(self) -> Layout:
        """Where things lie."""
        return self.repository.layout

    @property
    def index(self) -> Index:
        """Where blobs lie."""
        return self.repository.index

    @property
    def merger(self) -> Merger:
        """Brings the touch logs into the table of uses."""
        return Merger(self.layout.touch, self.uses, self.clock)


def parts(
    settings: Settings,
    repository: OpenRepository,
    opened: ExitStack,
    *,
    wait_seconds: float = _TURN_SECONDS,
    clock: Clock = wall_clock,
) -> Parts:
    """What duties and commands work on, for a repository that is open; ``opened`` takes them apart again.

    The table of uses is opened in a turn of upkeep, for which ``wait_seconds`` are waited at most.

    Raises:
        RefusedToStart: the names cannot be used, or somebody else's turn does not end.
    """
    layout, index = repository.layout, repository.index
    names = open_names(layout)
    opened.callback(names.close)
    space = Space(
        index,
        layout,
        reserve_bytes=settings.reserve_bytes(filesystem.size_bytes(layout.root)),
        head_room_max_bytes=settings.head_room_max_bytes,
    )
    growth = Growth(index, space, for_eviction=True)  # nothing goes before it is written that it goes
    opened.callback(growth.begin(layout))
    with turn(layout, wait_seconds=wait_seconds) as mine:
        if not mine:
            raise RefusedToStart(
                f"{layout.root} is busy: another command is at work on it; try again when that has ended"
            )
        uses = Uses(layout.uses)
    opened.callback(uses.close)
    index_writer = GroupWriter(
        index.writing, "index-writer", told=lambda failure: told(failure, layout.root), most_rows=index.rows_at_once
    )
    opened.callback(index_writer.close)
    sealer = Sealer(layout.segments, index, index_writer, space)
    opened.callback(sealer.close)
    looking = ReadOnlyStore(layout, index)
    opened.callback(looking.close)
    return Parts(settings, repository, names, uses, index_writer, space, sealer, looking, clock)


def eviction(parts: Parts, opened: ExitStack) -> Eviction:
    """Eviction as a duty, or for a command that holds ``upkeep.lock``."""
    layout, index, space = parts.layout, parts.index, parts.space
    departing = Departing(layout.segments, space, index)
    opened.callback(departing.close)
    promises = PromiseLock(layout.promise_lock)
    opened.callback(promises.close)

    def forwarder() -> Forwarder:
        return Forwarder(
            layout.segments, index, space, parts.sealer, take_numbers=parts.names.take_numbers, clock=parts.clock
        )

    sweeper = Sweeper(layout, index, parts.uses, departing, promises, (forwarder(), forwarder()), clock=parts.clock)
    opened.callback(sweeper.close)
    evicting = Eviction(
        layout,
        index,
        parts.uses,
        space,
        departing,
        promises,
        sweeper,
        apply_names=NameUses(parts.looking, parts.names, parts.uses).apply,
        let_go=parts.looking.drop_departed,
        clock=parts.clock,
        warn_age_ms=parts.settings.warn_age_ms,
    )
    opened.callback(evicting.close)
    return evicting


def pins(parts: Parts, opened: ExitStack) -> PinDuty:  # noqa: ARG001 - as its siblings
    """Pins as a duty. Comes before eviction."""
    return _pins(parts, parts.settings.pin_share)


def count_pins(parts: Parts) -> None:
    """Mark what is pinned, for a command that holds ``upkeep.lock``; in the share that the last server gave to pins."""
    state = parts.names.pins.state()
    _pins(parts, parts.settings.pin_share if state is None else state.share).finish()


def _pins(parts: Parts, share: float) -> PinDuty:
    return PinDuty(
        parts.names,
        parts.looking,
        parts.uses,
        quota_bytes=lambda: parts.space.quota_bytes,
        share=share,
        clock=parts.clock,
    )


def expiry(parts: Parts, pinning: PinDuty) -> ExpiryDuty:
    """Removing names whose time is over."""

    def last_used_ms(row: bytes) -> int | None:
        use = parts.uses.name(row)
        return None if use is None else use.time_ms

    def known_whole(row: bytes, stamp: bytes) -> bool:
        return parts.settings.index_only or intact(parts.index, row, stamp)  # blobs that live elsewhere are not missed

    return ExpiryDuty(
        parts.names,
        parts.looking,
        intact=known_whole,
        last_used_ms=last_used_ms,
        pinned=pinning.holds,
        limit_bytes=lambda: limits.names_bytes(parts.space.quota_bytes),
        clock=parts.clock,
    )


def eraser(parts: Parts) -> Purge:
    """Overwriting what is to be forgotten."""
    return Purge(parts.layout, parts.index, parts.index_writer, parts.space, clock=parts.clock)


def purging(parts: Parts) -> PurgeDuty:
    """Finishing purges that were cut off."""
    return PurgeDuty(parts.names, parts.looking, eraser(parts))


def backups(parts: Parts) -> BackupDuty:
    """Copying names."""

    @contextmanager
    def holding(size_bytes: int) -> Iterator[None]:
        # Without waiting: who would make room is this very process.
        parts.index_writer.run(lambda txn: parts.space.claim(txn, size_bytes))
        try:
            yield
        finally:
            parts.index_writer.submit_lazily(lambda txn: parts.space.give_back(txn, size_bytes), insist=True)
            parts.index_writer.flush()

    return BackupDuty(parts.names, Path(parts.layout.backup), clock=parts.clock, hold_room=holding)


def scrub(parts: Parts) -> ScrubDuty:
    """Verifying everything from time to time."""
    index, segments = parts.index, parts.layout.segments

    def take_off(digest: Digest, entry: Entry) -> int:
        return parts.index_writer.run(lambda txn: quarantine(index, segments, txn, digest.key, entry))

    return ScrubDuty(
        index,
        parts.layout,
        take_off,
        days=parts.settings.scrub_days,
        rate_bytes=parts.settings.scrub_rate_bytes,
        clock=parts.clock,
    )


def duties(parts: Parts, opened: ExitStack) -> list[Duty]:
    """All duties, in the order in which they are done; ``opened`` takes apart what they need."""
    pinning = pins(parts, opened)
    return [
        MergeLogs(parts.merger, parts.space),
        pinning,
        purging(parts),
        Leftovers(parts.layout, parts.index, parts.index_writer, parts.space, parts.clock),
        eviction(parts, opened),
        expiry(parts, pinning),
        backups(parts),
        scrub(parts),
        Abandoned(parts.layout.segments, parts.index, parts.space, parts.sealer),
        ReaderSlots([parts.index.env.reader_check, parts.names.free_dead_readers, parts.uses.env.reader_check]),
    ]


async def keep_up(settings: Settings, *, worker: int, ready: Callable[[str], None], stop: asyncio.Event) -> None:  # noqa: ARG001
    """Do upkeep until ``stop``.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    with suppress(OSError):
        os.nice(_NICE)
    ended = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(_keep_up, settings, ready, ended))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    ended.set()
    stopped.cancel()
    await work


def _keep_up(settings: Settings, ready: Callable[[str], None], ended: threading.Event) -> None:
    with ExitStack() as opened:
        repository = open_repository(settings.repo, quota_bytes=functools.partial(explicit_quota_bytes, settings.quota))
        opened.callback(repository.close)
        if repository.read_only:  # what may only be read needs no upkeep
            ready("")
            ended.wait()
            return
        made = parts(settings, repository, opened)
        layout, ballast = repository.layout, Ballast(repository.layout, Growth(repository.index, made.space))

        def relieve(failure: Exception) -> bool:
            heed(failure)
            return is_full(failure, layout.root) and ballast.give_up()

        upkeep = Upkeep(layout, [ballast, *duties(made, opened)], relieve=relieve)
        ready("")
        upkeep.run(ended)
