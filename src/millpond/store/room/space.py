"""Room: one ledger for all processes of a repository (I6, I10).

Kept in the index's ``space`` table, so that a claim, a spend and an index entry are one transaction:

===================  ===================================================================================
``used``             what all segments take, in bytes
``seg:NUMBER``       what one of them takes; high bit: it has no name any more and is still open somewhere
``going``            the sum of those that have no name any more
``upload:FILE``      what was set aside for a spool file, written or not; stays when its process dies
``claim:HOLDER``     what a process has set aside for appending, and not used yet
``announced:HOLDER``  what its running uploads have said they will bring, and was not set aside yet
``want:HOLDER``      what its threads wait for
``file:NAME``        how long a database's file may be (``store.room.databases``)
``held``             what stood in the way when upkeep could free nothing more, and when (monotonic ns)
===================  ===================================================================================

Everything else under the repository is measured (``store.room.taken``), and grows only where this ledger has room for it
(``store.room.growth``). The rule: what is written was claimed before, and what is charged is never less than what the file
system takes, so that ``du`` and ``df`` stay below the quota at every moment. Rows of processes that died return when room
is short; what they left in files is charged to these.

Two things are decided here. :meth:`Space.claim`: may so much be written? And :meth:`Space.pressure`: how much must go?
The latter counts what is really there and what somebody waits for, never what was only announced, so that a lie about a
size evicts nothing.
"""

import os
import struct
import time
from collections.abc import Mapping

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk import locks
from millpond.disk.group_writer import Transaction
from millpond.store.index import Index
from millpond.store.repository.layout import Layout
from millpond.store.room.costs import CLUSTER_BYTES
from millpond.store.room.databases import Databases
from millpond.store.room.holders import holder, lives
from millpond.store.room.ledger import Ledger
from millpond.store.room.pressure import Held, NeverFits, Pressure
from millpond.store.room.quota import StoredQuota
from millpond.store.room.taken import Taken, files_in
from millpond.store.segments.files import segment_name, segment_number

_NUMBER = struct.Struct(">I")
_HELD = struct.Struct("<QQQQ")
_USED, _GOING, _HELD_ROW = b"used", b"going", b"held"
_SEGMENT, _UPLOAD, _CLAIM, _ANNOUNCED, _WANT = b"seg:", b"upload:", b"claim:", b"announced:", b"want:"
_GONE = 1 << 63
SMALL_BYTES = 32 * limits.KIB
"""For what grows without asking, by a block at a time: directories, lock files, a marker on its way."""


class Space:
    """The ledger. Methods with ``txn`` run inside a write transaction of the index."""

    def __init__(
        self, index: Index, layout: Layout, *, reserve_bytes: int, head_room_max_bytes: int | None = None
    ) -> None:
        """Nobody has it yet.

        ``reserve_bytes``: free disk space that is left to others. With ``head_room_max_bytes``, nothing is evicted for its
        sake before less is free, and then until so much is.
        """
        self._db = index.space
        self._ledger = Ledger(index.space)
        self._index = index
        self._layout = layout
        self._quota = StoredQuota(layout)
        self._reserve_bytes = reserve_bytes
        self._head_room_max_bytes = head_room_max_bytes
        self._making_head_room = False
        self.databases = Databases(self._ledger)
        self._taken = Taken(layout)
        self._me = holder()

    # -- bounds -----------------------------------------------------------------------------------------------------

    @property
    def quota_bytes(self) -> int:
        """The most that the repository may take, as of a moment ago."""
        return self._quota.quota_bytes

    @property
    def segment_bytes(self) -> int:
        """The size of a segment."""
        return self._quota.segment_bytes

    @property
    def step_bytes(self) -> int:
        """How much a writer claims ahead."""
        return limits.claimed_ahead_bytes(self.quota_bytes)

    @property
    def largest_blob_bytes(self) -> int:
        """No blob above this can ever fit."""
        return max(
            0,
            self.quota_bytes - self.segment_bytes - self._growth_bytes() - self._taken.overhead_bytes() - CLUSTER_BYTES,
        )

    def _spare_bytes(self, txn: Transaction) -> int:
        """Claims leave so much free: a segment for moving, and what logs and databases take next."""
        growth_bytes = self._growth_bytes()
        return self.segment_bytes + max(growth_bytes, growth_bytes // 2 + self._ahead_bytes(txn))

    @property
    def kept_for_eviction_bytes(self) -> int:
        """What copies leave free, and names and logs half of it: what goes must be written down before it goes."""
        return limits.growth_bytes(self.quota_bytes) // 2

    def _growth_bytes(self) -> int:
        # Where blobs are small databases are large, and what is to go is written down in them before it goes.
        return max(limits.growth_bytes(self.quota_bytes), self._taken.overhead_bytes() // limits.GROWTH_SHARE)

    def _ahead_bytes(self, txn: Transaction) -> int:
        """What is taken beyond what was measured, soon and without asking any more."""
        return SMALL_BYTES + self.databases.ahead_bytes(txn, self._taken.measured().databases)

    def head_room_bytes(self) -> int:
        """Eviction begins so far below the limit, so that writers seldom wait for it. Small caches are used to the end."""
        if self.quota_bytes < limits.SMALL_QUOTA_BYTES:
            return 0
        return min(limits.HEAD_ROOM_MAX_BYTES, int(self.quota_bytes * limits.HEAD_ROOM_SHARE))

    # -- what a writer does -----------------------------------------------------------------------------------------

    def claim(self, txn: Transaction, size_bytes: int, *, for_moving: bool = False) -> None:
        """Set ``size_bytes`` aside for this process; ``for_moving``: also from what is kept free for that.

        Raises:
            NoSpace: they are not there.
        """
        if for_moving:
            self.must_hold(txn, size_bytes, leaving=self.kept_for_eviction_bytes)
        else:
            self._must_fit(txn, size_bytes)
        self._ledger.add(txn, _CLAIM + self._me, size_bytes)

    def give_back(self, txn: Transaction, size_bytes: int) -> None:
        """Let claimed bytes go, unused or because a segment takes them now."""
        self._ledger.add(txn, _CLAIM + self._me, -size_bytes)

    def takes(self, txn: Transaction, number: int, size_bytes: int) -> int:
        """Say what a segment takes from now on; by how much that is more than before."""
        before = self._ledger.get(txn, _SEGMENT + _NUMBER.pack(number)) & ~_GONE
        self._ledger.put(txn, _SEGMENT + _NUMBER.pack(number), size_bytes)
        self._ledger.add(txn, _USED, size_bytes - before)
        return size_bytes - before

    def announce(self, txn: Transaction, upload: str, size_bytes: int, *, is_new: bool = False) -> int:
        """Admit an upload that will take that much; what is set aside for it already, from an earlier part of it.

        The rest is set aside as its bytes come. ``is_new``: it has no earlier part, its file is empty.

        Raises:
            NeverFits: whatever is evicted.
            NoSpace: not beside what other uploads have announced, whatever is evicted.
        """
        if size_bytes > self._room(txn):
            raise NeverFits(f"the cache can never hold a blob that takes {size_bytes} bytes")
        row = _UPLOAD + upload.encode()
        if is_new:  # what stands there was set aside for a file that went, and whose bytes may be in a segment by now
            self._ledger.move(txn, row, row + b"-%d" % time.monotonic_ns())
        kept = self._ledger.get(txn, row)
        if not self._fits_beside_uploads(txn, size_bytes - kept):
            self._forget_the_dead(txn)
            if not self._fits_beside_uploads(txn, size_bytes - kept):
                raise NoSpace(f"the cache has no room for {size_bytes} bytes beside the uploads that are under way")
        if not self.keeper_lives():
            self._must_fit(txn, size_bytes - kept)
        self._ledger.add(txn, _ANNOUNCED + self._me, max(0, size_bytes - kept))
        return kept

    def _fits_beside_uploads(self, txn: Transaction, size_bytes: int) -> bool:
        return self._ledger.total(txn, _UPLOAD) + self._ledger.total(txn, _ANNOUNCED) + size_bytes <= self._room(txn)

    def claim_upload(self, txn: Transaction, upload: str, size_bytes: int) -> None:
        """Set ``size_bytes`` more aside for an announced upload.

        Raises:
            NoSpace: they are not there.
        """
        self._ledger.add(txn, _ANNOUNCED + self._me, -size_bytes)
        self._must_fit(txn, size_bytes)
        self._ledger.add(txn, _UPLOAD + upload.encode(), size_bytes)

    def end_upload(self, txn: Transaction, upload: str, *, announced_bytes: int, kept_bytes: int = 0) -> None:
        """An upload stopped: ``announced_bytes`` of it were not set aside, its file takes ``kept_bytes``."""
        self._ledger.add(txn, _ANNOUNCED + self._me, -announced_bytes)
        self._ledger.put(txn, _UPLOAD + upload.encode(), kept_bytes)

    def want(self, txn: Transaction, size_bytes: int) -> None:
        """A thread of this process waits for so much; negative: it does no longer."""
        self._ledger.add(txn, _WANT + self._me, size_bytes)

    def keeper_lives(self) -> bool:
        """Whether some process does upkeep, so that room may come."""
        return locks.is_held(self._layout.upkeeper_lock)

    def disk_is_brimful(self) -> bool:
        """Whether another program has filled the disk so far that even eviction may not be able to write."""
        return self._taken.is_brimful()

    def fits(self, txn: Transaction, size_bytes: int) -> bool:
        """Whether there is room for a claim of that size."""
        return size_bytes <= self.left_bytes(txn)

    def left_bytes(self, txn: Transaction) -> int:
        """How much can be claimed; negative when more is set aside than there is room for."""
        return self._room(txn) - self._set_aside(txn)

    def must_hold(self, txn: Transaction, size_bytes: int, *, leaving: int) -> None:
        """Make sure that the quota has room for so much more, and for ``leaving`` beside it, as of this very moment.

        Raises:
            NoSpace: it has not.
        """
        for may_tidy in (True, False):
            self._taken.forget()
            left_bytes = self.quota_bytes - self._taken.overhead_bytes() - self._set_aside(txn)
            ahead_bytes = self._ahead_bytes(txn)
            # So far beyond the quota is only one that was made smaller: then it is eviction's to bring it back.
            is_smaller = not leaving and left_bytes < -self.segment_bytes
            if size_bytes <= left_bytes - ahead_bytes - leaving or is_smaller:
                return
            if may_tidy:
                self._forget_the_dead(txn)
        raise NoSpace(
            f"the cache is full: its quota of {self.quota_bytes} bytes has no room for {size_bytes} bytes more"
        )

    def _set_aside(self, txn: Transaction) -> int:
        """What is in the ledger: what segments take, and what was claimed for more."""
        return self._ledger.get(txn, _USED) + self._ledger.total(txn, _CLAIM) + self._ledger.total(txn, _UPLOAD)

    def held(self, txn: Transaction) -> tuple[Held | None, int]:
        """What stood in the way when upkeep said last that it can free nothing more, and when that was (monotonic)."""
        value = txn.get(_HELD_ROW, db=self._db)
        if value is None:
            return None, 0
        said_ns, *held = _HELD.unpack(value)
        return Held(*held), said_ns

    # -- what upkeep does -------------------------------------------------------------------------------------------

    def pressure(self, *, lingering_bytes: int = 0) -> Pressure:
        """How full it is and what must go. In a read transaction of its own; may be called many times per second.

        What has no name any more will be free in a moment, so nothing else goes for it; but for ``lingering_bytes`` of it.
        """
        with self._index.reading() as txn:
            used, going = self._ledger.get(txn, _USED), max(0, self._ledger.get(txn, _GOING) - lingering_bytes)
            claims, uploads = self._ledger.total(txn, _CLAIM), self._ledger.total(txn, _UPLOAD)
            wanted = self._ledger.total(txn, _WANT, living=True)
            room_in_quota, room_on_disk = self._rooms(txn)
        written, room = self._taken.uploads_bytes(), min(room_in_quota, room_on_disk)
        starving_bytes = used - going + claims + uploads + wanted - room if wanted else 0
        if self._head_room_max_bytes is None:
            to_free = used - going + written - (room - self.head_room_bytes())
        else:
            free_now = self._taken.free_bytes()
            free = free_now + going
            if free < self._reserve_bytes or (wanted and starving_bytes > 0 and room_on_disk < room_in_quota):
                self._making_head_room = True
            elif free_now >= self._head_room_max_bytes:  # what is still on its way might be counted twice
                self._making_head_room = False
            to_free = used - going + written - (room_in_quota - self.head_room_bytes())
            if self._making_head_room:
                to_free = max(to_free, self._head_room_max_bytes - free)
        return Pressure(
            limit_bytes=max(0, room),
            used_bytes=used + written + self._taken.overhead_bytes(),
            claimed_bytes=claims + max(0, uploads - written),
            to_free_bytes=max(0, to_free, starving_bytes),
            wanted_bytes=wanted,
        )

    def cannot_free(self, txn: Transaction, held: Held) -> None:
        """Tell those who wait that nothing more can be freed now, and what stands in the way."""
        txn.put(_HELD_ROW, _HELD.pack(time.monotonic_ns(), *held), db=self._db)

    def going(self, txn: Transaction, number: int) -> None:
        """A segment's file has no name any more, but is still open somewhere: it takes its blocks until :meth:`free`."""
        key = _SEGMENT + _NUMBER.pack(number)
        size = self._ledger.get(txn, key)
        if size and not size & _GONE:
            self._ledger.put(txn, key, size | _GONE)
            self._ledger.add(txn, _GOING, size)

    def free(self, txn: Transaction, number: int) -> int:
        """The blocks of a segment have returned. How many bytes it had been charged."""
        key = _SEGMENT + _NUMBER.pack(number)
        size = self._ledger.get(txn, key)
        self._ledger.put(txn, key, 0)
        if size & _GONE:
            self._ledger.add(txn, _GOING, -(size & ~_GONE))
        self._ledger.add(txn, _USED, -(size & ~_GONE))
        return size & ~_GONE

    def segment_path(self, number: int) -> str:
        """Where a segment's file lies."""
        return os.path.join(self._layout.segments, segment_name(number))

    def going_segments(self, txn: Transaction) -> list[int]:
        """Those that have no name any more and were not freed: an earlier upkeeper's, when we have not done it."""
        return [
            _NUMBER.unpack(key.removeprefix(_SEGMENT))[0]
            for key, size in self._ledger.rows(txn, _SEGMENT)
            if size & _GONE
        ]

    def charges(self, txn: Transaction) -> dict[int, int]:
        """What each segment is charged that still has its name."""
        return {
            _NUMBER.unpack(key.removeprefix(_SEGMENT))[0]: size
            for key, size in self._ledger.rows(txn, _SEGMENT)
            if not size & _GONE
        }

    def used_bytes(self, txn: Transaction) -> int:
        """What all segments are charged together."""
        return self._ledger.get(txn, _USED)

    def add_up(self, txn: Transaction, *, change: bool = True) -> bool:
        """Make the sums fit what segments are charged; whether they did before."""
        rows = [size for _, size in self._ledger.rows(txn, _SEGMENT)]
        sums = {
            _USED: sum(size & ~_GONE for size in rows),
            _GOING: sum(size & ~_GONE for size in rows if size & _GONE),
        }
        fit = all(self._ledger.get(txn, key) == size for key, size in sums.items())
        if change:
            for key, size in sums.items():
                self._ledger.put(txn, key, size)
        return fit

    def count_anew(self, txn: Transaction, segments: Mapping[int, int], uploads: Mapping[str, int]) -> None:
        """Begin the ledger with what segments and spool files take. Nobody has claims."""
        self._ledger.clear(txn)
        for number, size_bytes in segments.items():
            self._ledger.put(txn, _SEGMENT + _NUMBER.pack(number), size_bytes)
        self._ledger.put(txn, _USED, sum(segments.values()))
        for upload, size_bytes in uploads.items():
            self._ledger.put(txn, _UPLOAD + upload.encode(), size_bytes)

    # -- the sums ---------------------------------------------------------------------------------------------------

    def _must_fit(self, txn: Transaction, size_bytes: int) -> None:
        self._taken.forget()  # in this transaction nothing else grows (``store.room.growth``)
        if self._fits_politely(txn, size_bytes):
            return
        self._forget_the_dead(txn)
        if not self._fits_politely(txn, size_bytes):
            raise NoSpace(
                f"the cache is full: {size_bytes} bytes more do not fit into its quota of {self.quota_bytes} bytes"
                " or on its disk"
            )

    def _fits_politely(self, txn: Transaction, size_bytes: int) -> bool:
        """While nothing can be evicted, what was announced is not taken away from under an upload."""
        if not self.fits(txn, size_bytes):
            return False
        announced = self._ledger.total(txn, _ANNOUNCED)
        return not announced or self.fits(txn, size_bytes + announced) or self.keeper_lives()

    def _room(self, txn: Transaction) -> int:
        return min(self._rooms(txn))

    def _rooms(self, txn: Transaction) -> tuple[int, int]:
        """What segments, uploads and claims may be together: by the quota, and by the disk."""
        in_quota = self.quota_bytes - self._taken.overhead_bytes() - self._spare_bytes(txn)
        # What uploads have written is set aside as well, so it must not be missed twice.
        ours = self._ledger.get(txn, _USED) + self._taken.uploads_bytes()
        on_disk = ours + self._taken.free_bytes() - self._reserve_bytes - self.segment_bytes
        if self._taken.lacks_inodes():  # nothing new can be made before something goes
            on_disk = min(on_disk, ours - 2 * self.segment_bytes)
        return in_quota, on_disk

    def _forget_the_dead(self, txn: Transaction) -> None:
        """Return what died with its process; what it had written and not listed is charged to its files."""
        dead = [
            key
            for prefix in (_CLAIM, _ANNOUNCED, _WANT)
            for key, _ in list(self._ledger.rows(txn, prefix))
            if not lives(key.removeprefix(prefix))
        ]
        for key in dead:
            txn.delete(key, db=self._db)
        if dead:
            self.charge_files(txn)

    def charge_files(self, txn: Transaction) -> None:
        """Charge segments what their files take, where that is more: of what was never listed nobody else says it."""
        for name, size_bytes in files_in(self._layout.segments):
            number = segment_number(name)
            if number is not None and size_bytes > self._ledger.get(txn, _SEGMENT + _NUMBER.pack(number)) & ~_GONE:
                self.takes(txn, number, size_bytes)
