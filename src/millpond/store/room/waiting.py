"""Waiting for room, in the thread that needs it.

The rule: who waits has said so in the ledger, where upkeep sees it, and waits neither on the event loop nor in the thread
that writes the index, which upkeep's writers' commits need (I11). It ends at the latest after ``limits.ROOM_SECONDS``,
and within a moment when upkeep says that it can free nothing more, or when there is no upkeep.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

import lmdb

from millpond.core import limits
from millpond.core.errors import MillpondError, NoSpace
from millpond.core.wording import format_size
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.failures import is_the_disks
from millpond.store.index import Index
from millpond.store.room.pressure import Held, NeverFits
from millpond.store.room.space import Space

T = TypeVar("T")
_LOOK_SECONDS = 0.01
_QUEUE_SECONDS = 0.05
_PLACES = 4
_FULL_SECONDS = 1.0
_NAMES_SECONDS = 10.0
NEVER = -1.0
_DISK_TRIES = 6
"""A disk that refuses what the ledger allows (a user's quota on it, say) is asked so often, twice as long apart each time."""


class Outlook(NamedTuple):
    """How things stand for those who wait."""

    left_bytes: int
    held: Held | None
    """What upkeep said last that stands in the way."""
    held_ns: int
    """When it said so, monotonic."""
    keeper_lives: bool
    disk_is_brimful: bool


class Wish:
    """Room that one thread waits for."""

    def __init__(self, room: "Room", size_bytes: int) -> None:
        self._room = room
        self._size_bytes = size_bytes
        self._begun_ns = time.monotonic_ns()
        self._ends = time.monotonic() + limits.ROOM_SECONDS
        self._refused_by_disk = 0
        self._full_since = self._alone_since = float("inf")
        self.refusal = NoSpace("the cache is full: try again")

    def failed(self, refusals: Iterable[Exception]) -> None:
        """It was tried, and refused so."""
        for refusal in refusals:
            if is_the_disks(refusal):
                self._refused_by_disk += 1
                self.refusal = NoSpace(str(refusal))
                break

    def comes_true(self) -> bool:
        """Wait until there seems to be room: try it then, and ask again if somebody was quicker.

        False when it is hopeless; :attr:`refusal` says why.
        """
        while not self._room.closing.wait(_LOOK_SECONDS * 2**self._refused_by_disk):
            if self._refused_by_disk >= _DISK_TRIES:
                return False
            outlook = self._room.outlook()
            if self._size_bytes <= outlook.left_bytes and time.monotonic() <= self._ends:
                return True
            held = outlook.held if outlook.held_ns >= self._begun_ns else None
            if held is not None or self._upkeep_stays_away(outlook):
                self.refusal = refusal(self._room.space.quota_bytes, held)
                return False
            if self._disk_stays_full(outlook):
                self.refusal = NoSpace("the cache's disk is full")
                return False
            if time.monotonic() > self._ends:
                self.refusal = NoSpace(
                    f"the cache is full and made no room within {limits.ROOM_SECONDS} s: try again, or raise its quota"
                )
                return False
        return False

    def _upkeep_stays_away(self, outlook: Outlook) -> bool:
        """Whether nobody does upkeep; one that died is started again within a moment."""
        if outlook.keeper_lives:
            self._alone_since = float("inf")
            return False
        self._alone_since = min(self._alone_since, time.monotonic())
        return time.monotonic() - self._alone_since >= self._room.upkeep_seconds

    def _disk_stays_full(self, outlook: Outlook) -> bool:
        """Whether another program takes whatever is freed."""
        if not outlook.disk_is_brimful:
            self._full_since = float("inf")
            return False
        self._full_since = min(self._full_since, time.monotonic())
        return time.monotonic() - self._full_since > _FULL_SECONDS


class Room:
    """Hands out wishes for the threads of one process."""

    def __init__(
        self,
        space: Space,
        index: Index,
        index_writer: GroupWriter,
        closing: threading.Event,
        *,
        upkeep_seconds: float = 0.0,
    ) -> None:
        """``upkeep_seconds``: how long to wait for an upkeep process to appear where there is none.

        ``NEVER``: wait for nobody and press on nobody, so that nothing is evicted for what is written here.
        """
        self.upkeep_seconds = upkeep_seconds
        self.space = space
        self.closing = closing
        self._index = index
        self._index_writer = index_writer
        self._places = threading.Semaphore(_PLACES)
        self._looking = threading.Lock()
        self._looked_at = 0.0
        self._outlook: Outlook | None = None

    def may_come(self) -> bool:
        """Whether it is worth waiting at all."""
        return self.upkeep_seconds != NEVER and (self.upkeep_seconds > 0 or self.space.keeper_lives())

    def outlook(self) -> Outlook:
        """How things stand; looked at once for all who wait, or many of them would keep a core busy."""
        with self._looking:
            if self._outlook is None or time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                with self._index.reading() as txn:
                    left_bytes = self.space.left_bytes(txn)
                    held, held_ns = self.space.held(txn)
                brimful = self.space.disk_is_brimful()
                self._outlook = Outlook(left_bytes, held, held_ns, self.space.keeper_lives(), brimful)
                self._looked_at = time.monotonic()
            return self._outlook

    def claim(self, size_bytes: int, claim: Callable[[Transaction], T]) -> T:
        """Have ``claim`` done as soon as there is room for ``size_bytes``; what it returns.

        Raises:
            NoSpace: there will be none.
        """
        try:
            return self._index_writer.run(claim)
        except NoSpace:
            if not self.may_come():
                raise
        with self.wish(size_bytes) as wish:
            while wish.comes_true():
                try:
                    return self._index_writer.run(claim)
                except NoSpace as refusal:
                    wish.failed([refusal])
        raise wish.refusal

    def comes(self, size_bytes: int) -> bool:
        """Wait a moment for so much room, without claiming it; whether there seems to be some.

        For the thread that writes names. The one that writes the index may be waiting for it, so it must not be waited for.
        """
        if not self.may_come():
            return False
        begun_ns, until = time.monotonic_ns(), time.monotonic() + _NAMES_SECONDS
        said = False
        # As in :meth:`wish`: where it cannot be said, room may come all the same.
        with suppress(MillpondError, lmdb.Error):
            with self._index.writing() as txn:
                self.space.want(txn, size_bytes)
            said = True
        try:
            while not self.closing.wait(_LOOK_SECONDS) and time.monotonic() < until:
                outlook = self.outlook()
                if outlook.left_bytes >= size_bytes:
                    return True
                if outlook.held is not None and outlook.held_ns >= begun_ns:
                    return False
            return False
        finally:
            if said:
                self._index_writer.submit_lazily(lambda txn: self.space.want(txn, -size_bytes), insist=True)
                self._index_writer.flush()

    def admit(self, admit: Callable[[Transaction], T]) -> T:
        """Have an upload admitted, waiting for others to end where all of them do not fit at once.

        Nothing is evicted for that: what an upload says of itself may be a lie. Only a few wait; the threads of others are
        needed by those which they would wait for.

        Raises:
            NoSpace: others are still under way, or nothing can be evicted for its bytes when they come.
        """
        begun = time.monotonic()
        with self._queue() as place:
            while True:
                try:
                    return self._index_writer.run(admit)
                except NoSpace as refusal:
                    waited = time.monotonic() - begun
                    patience = limits.ROOM_SECONDS if self.space.keeper_lives() else self.upkeep_seconds
                    for_good = isinstance(refusal, NeverFits) or is_the_disks(refusal)
                    if for_good or not place or waited >= patience:
                        raise
                    if self.closing.wait(_QUEUE_SECONDS):
                        raise

    @contextmanager
    def _queue(self) -> Iterator[bool]:
        """Whether there is a place in the queue."""
        place = self._places.acquire(blocking=False)
        try:
            yield place
        finally:
            if place:
                self._places.release()

    @contextmanager
    def wish(self, size_bytes: int) -> Iterator[Wish]:
        """Say that this thread waits for so much, until the block ends."""
        wish = Wish(self, size_bytes)
        said = False
        # On a full disk it may not be possible to say it; upkeep sees such a disk by itself.
        with suppress(MillpondError):
            self._index_writer.run(lambda txn: self.space.want(txn, size_bytes))
            said = True
        try:
            yield wish
        finally:
            if said:
                try:
                    self._index_writer.run(lambda txn: self.space.want(txn, -size_bytes))
                except MillpondError:  # upkeep would make room for it as long as we live
                    self._index_writer.submit_lazily(lambda txn: self.space.want(txn, -size_bytes), insist=True)


def refusal(quota_bytes: int, held: Held | None) -> NoSpace:
    """What a full cache tells whoever wants to write."""
    if held is None:
        return NoSpace(f"the cache is full: its quota of {format_size(quota_bytes)} is used up")
    holds = [
        f"{format_size(size)} {what}"
        for size, what in (
            (held.pinned_bytes, "are pinned"),
            (held.leased_bytes, "are promised to clients that push"),
            (held.other_bytes, "are being written or too new to go"),
        )
        if size
    ]
    return NoSpace(
        f"the cache is full and can free nothing now: of its quota of {format_size(quota_bytes)},"
        f" {' and '.join(holds) or 'nothing may go'}; push again later, unpin something or raise the quota"
    )
