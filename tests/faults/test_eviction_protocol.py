"""The real store and the real eviction, led through the orders of steps that matter (I2, I3, I5, I8).

What the model (``tests/property/promise_model``) says of every order is tried here with the real objects: two stores on
one repository and its upkeep, in one process, each in a thread that goes on only when it is its turn (``turns``). Pauses
are where the model's steps end, so the orders are the same; switches are few, for one run takes milliseconds, not
microseconds.
"""

from __future__ import annotations

import errno
import os
import time as real_time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from faults.turns import Choice, Pauses, Turns, orders
from unit.store.repositories import noise
from unit.store.upkept import Time, Upkept, upkept

from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, IncompleteClosure, NameNotFound, NotReady, WouldBlock
from millpond.core.names import Namespace
from millpond.core.outcome import Outcome
from millpond.disk import locks
from millpond.disk.locks import SharedLock
from millpond.names.interface import NameIndex
from millpond.names.lmdb_names import LmdbNames
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.store.care.check import Problem, StoreCheck
from millpond.store.eviction import chores, promise_lock, sweeping
from millpond.store.eviction import making_room as evicting_module
from millpond.store.eviction.chores import Abandoned
from millpond.store.eviction.counting import Counting
from millpond.store.eviction.forwarding import Forwarder, Moved
from millpond.store.eviction.promise_lock import PromiseLock
from millpond.store.eviction.sweeping import Sweeper
from millpond.store.index import Entry, SegmentRow
from millpond.store.room import departing
from millpond.store.room.departing import Departing
from millpond.store.segment_store import SegmentStore
from millpond.store.segments.durability import Durability
from millpond.store.segments.files import segment_name, segment_number
from millpond.store.segments.format import record_bytes
from millpond.store.segments.lookup import SegmentLookup
from millpond.store.segments.writer import SegmentWriter
from millpond.store.uses.merging import Merger
from millpond.store.uses.touch_log import Kind, _Log
from millpond.upkeep import eviction

DAY_MS = 86_400_000
QUOTA_BYTES = 64 << 20
BLOB_BYTES = 3000

Work = Callable[[], None]
Actors = Callable[["Site"], dict[str, Work]]


class FirstHere:
    """Names with a writer that only pushes have: their upkeeper, with whom it is shared here, is another process in truth."""

    def __init__(self, names: NameIndex) -> None:
        self._names = names

    def bind_later(self, bindings: Any, *, overwrite: bool, first: Work | None) -> Outcome[None]:
        if first is not None:
            first()
        return self._names.bind_later(bindings, overwrite=overwrite)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._names, name)


class Site:
    """A repository with two stores and its upkeep. Each run has blobs of its own: one cold, one used of late."""

    def __init__(self, one: Upkept, time: Time, pauses: Pauses) -> None:
        self.one, self.time, self.pauses = one, time, pauses
        opened = one.repository.opened
        assert opened
        self.other = SegmentStore(
            opened.layout, opened.index, reserve_bytes=0, take_numbers=one.repository.names.take_numbers, clock=time
        )
        self.stores = (one.store, self.other)
        self.caches = [Cache(store, store, one.repository.names, time) for store in self.stores]
        self.run = self.were_late = 0

    def close(self) -> None:
        self.other.close()

    def begin(self, *, more: int = 0) -> None:
        """A sealed segment with a cold blob and one that is to be kept, both of them all that name M needs.

        ``more``: other cold blobs beside them.
        """
        self.run += 1
        self.cold, self.kept, self.new = (noise(BLOB_BYTES, f"{self.run}/{what}") for what in ("cold", "kept", "new"))
        self.promised: dict[bytes, None] = {}
        self.acknowledged: dict[str, list[bytes]] = {}
        self.time.passes(days=100)
        self.horizon_ms = self.time() + DAY_MS
        store = self.stores[0]
        self.rest = [noise(BLOB_BYTES, f"{self.run}/rest/{i}") for i in range(more)]
        self.send(0, self.cold, self.kept, *self.rest)
        self.promised.clear()
        self.push(0, "M", [self.cold, self.kept])
        self.seal(store)
        self.acknowledged.clear()
        self.time.passes(days=2)
        assert store.read_many([Digest.of(self.kept)]) == [self.kept]
        store._touches.flush()
        self.note_closures()
        self.time.passes(days=8)
        self.victim = self.one.repository.entry(Digest.of(self.cold)).segment

    def note_closures(self) -> None:
        """Do what is done lazily."""
        for store in self.stores:
            store._index_writer.run(lambda txn: None)

    def seal(self, store: SegmentStore) -> None:
        """Close the segment that the store appends to, as if it were full."""
        writer = store._writer
        segment, writer._current = writer._current, None
        assert segment is not None
        store._sealer.seal(segment)
        store._sealer._thread.submit(lambda: None).result()

    # -- what clients do; what they are told is remembered -----------------------------------------------------------

    def ask(self, at: int, *contents: bytes) -> list[bytes]:
        """What of it is missing."""
        digests = {Digest.of(data): data for data in contents}
        missing = set(self.stores[at].find_missing(list(digests)))
        self.promised.update((data, None) for digest, data in digests.items() if digest not in missing)
        return [data for digest, data in digests.items() if digest in missing]

    def send(self, at: int, *contents: bytes) -> None:
        outcomes = self.stores[at].put_many([(Digest.of(data), data) for data in contents])
        assert outcomes == [None] * len(contents)
        self.promised.update((data, None) for data in contents)

    def push(self, at: int, uri: str, contents: Sequence[bytes]) -> None:
        digests = [Digest.of(data) for data in contents]
        request = assets.AssetPush([f"{uri}/{self.run}"], digests[0], blobs=digests)
        assets.push(self.caches[at], "", Namespace.ASSET_BLOB, request, pushed_by="")
        self.acknowledged[uri] = list(contents)

    def push_late(self, at: int, uri: str, contents: Sequence[bytes]) -> None:
        """What it needs is promised when it is committed, if that is possible."""
        digests = [Digest.of(data) for data in contents]
        request = assets.AssetPush([f"{uri}/{self.run}"], digests[0], blobs=digests)
        cache = replace(self.caches[at], names=cast(NameIndex, FirstHere(self.caches[at].names)))
        try:
            pending = assets.begin_push(cache, "", Namespace.ASSET_BLOB, request, pushed_by="", wait=False)
            pending.bound.result()
        except WouldBlock:
            self.push(at, uri, contents)
        else:
            assets.finish([pending])
            self.acknowledged[uri] = list(contents)
            self.were_late += 1

    def fetch(self, at: int, uri: str) -> bool:
        """Whether it is answered."""
        uris = [f"{uri}/{self.run}"]
        try:
            assets.fetch(self.caches[at], "", Namespace.ASSET_BLOB, uris, (), oldest_ms=None, wait=True)
        except NameNotFound:
            return False
        return True

    def read(self, at: int, *contents: bytes) -> None:
        """It is there, in both ways of reading."""
        digests = [Digest.of(data) for data in contents]
        assert self.stores[at].read_many(digests) == list(contents), "it cannot be read"
        for digest, data in zip(digests, contents, strict=True):
            with self.stores[at].open(digest) as blob:
                assert blob.chunk(0) == data

    # -- what upkeep does -------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """Everything that was not used since the horizon, by an upkeeper of its own."""
        with ExitStack() as opened:
            eviction(self.one.parts, opened).evict(older_than_ms=self.horizon_ms)

    def clear(self) -> None:
        """Leave nothing to the next run."""
        for store in self.stores:
            if store._writer._current is not None:
                self.seal(store)
        parts = self.one.parts
        Abandoned(parts.layout.segments, parts.index, parts.space, parts.sealer).run()
        parts.sealer._thread.submit(lambda: None).result()
        with ExitStack() as opened:
            eviction(parts, opened).evict(everything=True)
        for name, _ in list(parts.names.names()):
            parts.names.unbind(name)
        for row, _ in list(parts.uses.all_names()):
            parts.uses.set_name(row, None)

    def check(self) -> None:
        """What was promised is there, what was acknowledged is whole, and the store is as it should be."""
        self.note_closures()
        for at in range(2):
            self.read(at, *self.promised)
            for uri, contents in self.acknowledged.items():
                assert self.fetch(at, uri), uri
                self.read(at, *contents)
        problems: list[Problem] = []
        check = StoreCheck(self.one.index, self.one.layout, problems.append, repair=False, clock=self.time)
        for _ in (*check.segments(), *check.entries()):
            pass
        assert not problems
        rows = self.one.repository.rows()
        assert self.victim not in rows or rows[self.victim].holds, "it is half gone for ever"

    def explore(self, actors: dict[str, Work], *, switches: int, killable: str = "") -> int:
        """Lead ``actors`` through all orders with so many switches; how many there were."""
        runs = 0

        def run(prefix: Sequence[Choice]) -> Turns:
            turns = Turns(prefix, killable=killable)
            self.begin()
            for name, work in actors.items():
                turns.begin(name, work)
            for at, name in enumerate(list(actors)[:2]):
                turns.lend(self.stores[at]._index_writer._thread, name)
            self.pauses.turns = turns
            try:
                turns.run()
                self.pauses.turns = None
                if killable and any(decision.chosen.kill for decision in turns.decisions):
                    self.evict()  # the successor
                self.check()
            except BaseException as why:
                why.add_note("\n".join(turns.story))
                raise
            finally:
                self.pauses.turns = None
            return turns

        for _ in orders(run, switches=switches):
            runs += 1
            self.clear()
        return runs


def watch_entries(site: Site, patch: pytest.MonkeyPatch) -> None:
    """Whenever a segment goes, nothing is listed in it any more (I3)."""
    real = {"rename": os.rename, "unlink": os.unlink}

    def watched(name: str) -> Callable[..., None]:
        def goes(path: str | os.PathLike[str], *more: Any, **named: Any) -> None:
            number = segment_number(os.path.basename(path))
            if number is not None:
                index = site.one.index
                with index.reading() as txn:
                    listed = [key for key, value in txn.cursor(index.blobs) if Entry.decode(value).segment == number]
                assert not listed, "entries go before bytes do"
            real[name](path, *more, **named)

        return goes

    for name in real:
        patch.setattr(os, name, watched(name))


def watch_copies(patch: pytest.MonkeyPatch) -> None:
    """Whatever the index is made to point to was synced, with its directory (I2)."""
    synced: dict[str, int] = {}
    entered: set[str] = set()
    real = Forwarder.point

    def fdatasync(descriptor: int) -> None:
        synced[path_of(descriptor)] = os.fstat(descriptor).st_size

    def fsync(descriptor: int) -> None:
        if path_of(descriptor).endswith("segments"):
            entered.update(os.listdir(descriptor))

    def point(forwarder: Forwarder, moved: Sequence[Moved]) -> set[bytes]:
        for _, _, new in moved:
            path = os.path.join(forwarder._directory, segment_name(new.segment))
            assert synced.get(path, 0) >= new.offset + record_bytes(new.size_bytes), "copies are synced first"
            assert os.path.basename(path) in entered, "and their directory"
        return real(forwarder, moved)

    patch.setattr(os, "fdatasync", fdatasync)
    patch.setattr(os, "fsync", fsync)
    patch.setattr(Forwarder, "point", point)


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """Where the steps of the protocol end."""
    pauses = Pauses(monkeypatch)

    def lock(descriptor: int, *, exclusive: bool) -> None:
        while not locks.try_lock(descriptor, exclusive=exclusive):
            pauses.pause("waiting for a lock", waits=True)
            real_time.sleep(0.0001)

    monkeypatch.setattr(locks, "lock", lock)
    naps = SimpleNamespace(
        monotonic=real_time.monotonic, sleep=lambda _: pauses.pause("waiting for promise.lock", waits=True)
    )
    monkeypatch.setattr(sweeping, "time", naps)
    monkeypatch.setattr(promise_lock, "time", naps)
    monkeypatch.setattr(promise_lock, "_LOCK_SECONDS", 0)
    monkeypatch.setattr(chores, "_LEFT_ALONE_SECONDS", -DAY_MS)
    monkeypatch.setattr(SegmentStore, "_tick", lambda _: None)  # nothing happens by the clock
    pauses.after(SegmentLookup, "held", "having looked, with the lock")
    pauses.after(Durability, "intact", "having looked at the name, with the lock")
    pauses.after(SegmentWriter, "append", "having appended")
    pauses.after(SegmentStore, "_put", "having stored")
    pauses.after(Durability, "look", "knowing what to sync")
    pauses.after(Durability, "_sync", "having synced")
    pauses.before(LmdbNames, "bind_later", "before the name is written")
    pauses.before(SegmentStore, "remember", "before the closure is noted")
    pauses.after(SegmentLookup, "_look_up", "having looked up")
    pauses.after(PromiseLock, "fence", "having fenced")
    pauses.after(Merger, "merge", "having merged")
    pauses.after(Counting, "all", "having counted")
    pauses.after(Sweeper, "_sorted_out", "having sorted out")
    pauses.after(Forwarder, "copy", "having copied")
    pauses.after(Forwarder, "point", "having pointed")
    pauses.after(Sweeper, "_mark", "having marked")
    pauses.after(Sweeper, "_delete_listed", "having deleted")
    pauses.after(Departing, "depart", "having hidden it")
    return pauses


@pytest.fixture
def site(tmp_path: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    time = Time()
    monkeypatch.setattr(departing, "_PARTING_SECONDS", 0)  # nobody lets go of anything while others have their turn
    with upkept(tmp_path / "repo", quota_bytes=QUOTA_BYTES, clock=time) as one:
        site = Site(one, time, pauses)
        watch_entries(site, monkeypatch)
        watch_copies(monkeypatch)
        yield site
        site.close()


# -- every order -----------------------------------------------------------------------------------------------------


def asks(site: Site) -> dict[str, Work]:
    """One asks for what is to go, and reads what it was told is here."""

    def client() -> None:
        site.ask(0, site.cold, site.kept)
        site.read(0, *site.promised)

    return {"client": client, "upkeeper": site.evict}


def fetches(site: Site) -> dict[str, Work]:
    """One fetches a name that needs what is to go."""

    def client() -> None:
        if site.fetch(0, "M"):
            site.promised.update({site.cold: None, site.kept: None})
            site.read(0, site.cold, site.kept)

    return {"client": client, "upkeeper": site.evict}


def sends(site: Site) -> dict[str, Work]:
    """One sends what is to go, and something new, without asking."""

    def client() -> None:
        site.send(0, site.cold, site.new)
        site.read(0, site.cold, site.new)

    return {"client": client, "upkeeper": site.evict}


def pushes(site: Site) -> dict[str, Work]:
    """One does all that a push takes."""

    def client() -> None:
        missing = site.ask(0, site.cold, site.new)
        site.send(0, *missing)
        site.push(0, "N", [site.cold, site.new])

    return {"client": client, "upkeeper": site.evict}


def pushes_late(site: Site) -> dict[str, Work]:
    """One pushes a name of what is held, if it still is."""

    def client() -> None:
        try:
            site.push_late(0, "N", [site.cold, site.kept])
        except IncompleteClosure:
            row = site.one.repository.rows().get(site.victim)
            assert row is None or not row.holds  # it had gone before

    return {"client": client, "upkeeper": site.evict}


def pushes_and_fetches(site: Site) -> dict[str, Work]:
    """One pushes a name, another fetches one, at the other store."""

    def pusher() -> None:
        site.send(0, *site.ask(0, site.cold))
        site.push(0, "N", [site.cold])

    def fetcher() -> None:
        if site.fetch(1, "M"):
            site.promised.update({site.cold: None, site.kept: None})
            site.read(1, site.cold, site.kept)

    return {"pusher": pusher, "fetcher": fetcher, "upkeeper": site.evict}


def reads(site: Site) -> dict[str, Work]:
    """One reads what nobody promised: it may be gone, but not in the middle."""

    def client() -> None:
        try:
            opened = site.stores[0].open(Digest.of(site.cold))
        except BlobNotFound:
            return
        with opened as blob:
            site.pauses.pause("having begun to read")
            assert blob.chunk(0) == site.cold

    return {"client": client, "upkeeper": site.evict}


def streams(site: Site) -> dict[str, Work]:
    """One streams what is to go; it may be told to try again, but not that it is stored when it is not."""

    def client() -> None:
        digest = Digest.of(site.cold)
        for _ in range(2):
            upload = site.stores[0].begin_upload(digest, f"uploads/{site.run}", offset=0)
            upload.write(site.cold)
            try:
                upload.finish()
            except NotReady:
                continue
            site.promised[site.cold] = None
            site.read(0, site.cold)

    return {"client": client, "upkeeper": site.evict}


@pytest.mark.parametrize("actors", [asks, fetches, sends, streams, pushes, reads])
def test_no_order_breaks_a_promise(site: Site, pauses: Pauses, actors: Actors) -> None:
    if actors in (asks, fetches):  # who needs no turn of the index writer
        pauses.after(Sweeper, "_is_in_use", "having read the logs, with both locks")
    assert site.explore(actors(site), switches=2) > 50


def test_no_order_breaks_a_promise_that_is_made_with_the_commit(site: Site) -> None:
    site.caches = [replace(cache, foreign=False) for cache in site.caches]
    assert site.explore(pushes_late(site), switches=2) > 20
    assert site.were_late > 20


def test_no_order_breaks_a_promise_when_each_is_noted_in_a_log_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Log, "has_room", lambda log, size_bytes: not log.end and size_bytes <= log.capacity)
    assert site.explore(asks(site), switches=2) > 50


def test_what_everything_takes_leaves_no_name_with_a_hole(site: Site) -> None:
    """Whoever evicts everything takes promised blobs, too; what is broken by that is a miss."""
    site.caches = [replace(cache, foreign=False) for cache in site.caches]

    def pushes() -> None:
        try:
            site.send(0, *site.ask(0, site.cold, site.new))
            site.push(0, "N", [site.new])  # which lies in a segment that is still written
        except (AssertionError, IncompleteClosure):
            pass  # "try again", or the push is refused

    def takes_everything() -> None:
        with ExitStack() as opened:
            eviction(site.one.parts, opened).evict(everything=True)

    def check() -> None:
        site.note_closures()
        for at in range(2):
            for uri, contents in (("M", [site.cold, site.kept]), ("N", [site.new])):
                if site.fetch(at, uri):
                    site.read(at, *contents)

    site.check = check  # type: ignore[method-assign]
    assert site.explore({"client": pushes, "upkeeper": takes_everything}, switches=2) > 50


def test_no_order_of_three_breaks_a_promise(site: Site) -> None:
    assert site.explore(pushes_and_fetches(site), switches=1) > 50


@pytest.mark.parametrize("actors", [fetches, pushes])
def test_an_upkeeper_may_be_killed_at_each_step(site: Site, actors: Actors) -> None:
    assert site.explore(actors(site), switches=1, killable="upkeeper") > 20


def test_a_worker_may_be_killed_at_each_step(site: Site) -> None:
    assert site.explore(pushes_and_fetches(site), switches=1, killable="fetcher") > 50


# -- and these orders would find it ----------------------------------------------------------------------------------


def no_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SharedLock, "shared", lambda _, *, wait: nullcontext())


def no_look_at_the_logs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sweeper, "_is_in_use", lambda *_: False)


def no_look_at_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sweeper, "_concerns", lambda *_: False)


def no_look_after_storing(patch: pytest.MonkeyPatch) -> None:
    def put(store: SegmentStore, blobs: Sequence[tuple[Digest, bytes]]) -> dict[Digest, Exception]:
        refused: dict[Digest, Exception] = dict(store._put(blobs))
        store._touches.append(Kind.LEASED, [digest.key for digest, _ in blobs])
        return refused

    patch.setattr(SegmentStore, "_put_and_promise", put)


def sweeping_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SegmentRow, "holds", property(lambda row: not row.suspect))


def moving_leaves_the_incarnation(patch: pytest.MonkeyPatch) -> None:
    real = Forwarder.point

    def point(forwarder: Forwarder, moved: Sequence[Moved]) -> set[bytes]:
        pointed = real(forwarder, moved)
        index = forwarder._index
        with index.env.begin(write=True) as txn:
            for number in {one.old.segment for one in moved}:
                row = index.segment(txn, number)
                assert row
                index.put_segment(txn, number, row._replace(incarnation=row.incarnation - 1))
        return pointed

    patch.setattr(Forwarder, "point", point)


def nothing_is_finished(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Sweeper, "finish", lambda _: 0)


def bytes_go_first(patch: pytest.MonkeyPatch) -> None:
    real = Sweeper._delete

    def delete(sweeper: Sweeper, marked: Mapping[int, Any]) -> None:
        for number in marked:
            os.unlink(sweeper._path(number))
        real(sweeper, marked)

    patch.setattr(Sweeper, "_delete", delete)


def copies_are_not_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Forwarder, "_sync", lambda _: None)


@pytest.mark.parametrize(
    ("break_it", "actors"),
    [
        (no_lock, asks),
        (no_look_at_the_logs, asks),
        (no_look_at_names, fetches),
        (no_look_after_storing, sends),
        (sweeping_counts, asks),
        (nothing_is_finished, pushes),
        (bytes_go_first, asks),
        (copies_are_not_synced, asks),
    ],
)
def test_these_orders_find_what_is_broken(
    site: Site, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, break_it: Callable[..., None], actors: Actors
) -> None:
    break_it(monkeypatch)
    if break_it is no_lock:
        pauses.after(Sweeper, "_is_in_use", "having read the logs, with both locks")
    with pytest.raises(AssertionError, match=r"it cannot be read|half gone|before bytes|are synced"):
        site.explore(actors(site), switches=2, killable="upkeeper" if break_it is nothing_is_finished else "")


# -- one order each --------------------------------------------------------------------------------------------------


def seal_abandoned(site: Site) -> None:
    """What a killed upkeeper was moving to can be chosen from now on."""
    parts = site.one.parts
    Abandoned(parts.layout.segments, parts.index, parts.space, parts.sealer).run()
    parts.sealer._thread.submit(lambda: None).result()


def lose_what_was_moved(site: Site) -> None:
    """The victim is let go, because a client asks for what is in it; what was moved out of it goes later."""
    turns = Turns([Choice("upkeeper")] * 7 + [Choice("client")] * 2)
    site.begin(more=8)
    turns.begin("upkeeper", site.evict)
    turns.begin("client", lambda: site.ask(0, site.cold, *site.rest))
    site.pauses.turns = turns
    turns.run()
    site.pauses.turns = None
    assert site.one.repository.entry(Digest.of(site.cold)).segment == site.victim, turns.story
    assert site.one.repository.entry(Digest.of(site.kept)).segment != site.victim, turns.story
    seal_abandoned(site)
    site.horizon_ms += 5 * DAY_MS
    site.evict()
    assert not site.stores[1].holds_any([Digest.of(site.kept)])
    assert site.one.repository.entry(Digest.of(site.cold)).segment == site.victim


def test_a_name_whose_blobs_were_moved_and_then_went_is_a_miss(site: Site) -> None:
    lose_what_was_moved(site)
    assert not site.fetch(0, "M")


def test_that_would_not_be_seen_without_a_new_incarnation(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    moving_leaves_the_incarnation(monkeypatch)
    lose_what_was_moved(site)
    assert site.fetch(0, "M")


def succeed(site: Site, *, steps: int) -> bool:
    """A client has looked at a name and not noted it yet; an upkeeper is killed ``steps`` later, and has a successor that
    may choose what the first one moved. Whether the first one came as far as that.
    """
    clear = [Choice("upkeeper"), Choice("client"), *[Choice("upkeeper")] * steps, Choice("upkeeper", kill=True)]
    turns = Turns([*clear, Choice("successor")], killable="upkeeper")
    site.begin()

    def client() -> None:
        if site.fetch(0, "M"):
            site.promised.update({site.cold: None, site.kept: None})

    def successor() -> None:
        seal_abandoned(site)
        site.horizon_ms += 5 * DAY_MS
        site.evict()

    for name, work in (("client", client), ("upkeeper", site.evict), ("successor", successor)):
        turns.begin(name, work)
    site.pauses.turns = turns
    turns.run()
    site.pauses.turns = None
    site.check()
    site.clear()
    return any("killed having pointed" in step for step in turns.story)


def succeed_at_each_step(site: Site) -> list[bool]:
    return [succeed(site, steps=steps) for steps in range(7)]


def test_a_successor_waits_for_promises_that_are_being_made(site: Site) -> None:
    assert any(succeed_at_each_step(site))


def test_without_its_fence_it_would_break_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromiseLock, "fence", lambda _: site.pauses.pause("without having fenced"))
    with pytest.raises(AssertionError, match="it cannot be read"):
        succeed_at_each_step(site)


@pytest.mark.parametrize("step", ["_delete", "_hide"])
def test_what_could_not_be_finished_is_finished_by_the_next_round(
    site: Site, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    site.begin()
    with ExitStack() as opened:
        evicting = eviction(site.one.parts, opened)
        evicting.run()
        with monkeypatch.context() as bad_disk:
            bad_disk.setattr(Sweeper, step, refuse)
            with pytest.raises(OSError, match="bad disk"):
                evicting.evict(older_than_ms=site.horizon_ms)
        assert not site.one.repository.row(site.victim).holds
        evicting.run()
        assert site.victim not in site.one.repository.rows()
    assert not site.one.repository.segment(site.victim).exists()
    site.read(0, site.kept)


def test_what_a_killed_command_was_removing_is_removed_by_upkeep(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """``millpond evict`` takes a turn of its own between the rounds of an upkeep process that goes on after it."""
    now = real_time.monotonic()
    monkeypatch.setattr(evicting_module, "time", SimpleNamespace(monotonic=lambda: now))
    site.begin()
    with ExitStack() as opened:
        upkeep = eviction(site.one.parts, opened)
        upkeep.run()
        with monkeypatch.context() as killing:
            killing.setattr(Sweeper, "_hide", refuse)
            with pytest.raises(OSError, match="bad disk"):
                site.evict()
        now += 60
        upkeep.run()
        assert site.victim not in site.one.repository.rows()


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, "bad disk")


def test_a_writer_goes_on_elsewhere_when_its_segment_was_given_up(site: Site) -> None:
    """A sync failed, so what the segment holds is not trusted and goes, its writer none the wiser."""
    site.begin()
    store = site.stores[1]
    site.send(1, site.new)
    number = site.one.repository.entry(Digest.of(site.new)).segment
    store._sealer.suspect(number, OSError(errno.EIO, "bad disk"))
    site.promised.clear()
    for _ in range(2):
        with ExitStack() as opened:
            eviction(site.one.parts, opened).evict(everything=True)
        site.send(1, site.new, noise(BLOB_BYTES, f"{site.run}/more"))
        site.read(0, *site.promised)
        site.read(1, *site.promised)


def test_a_push_by_another_ends_no_promise(site: Site) -> None:
    """Two clients need the same blob; what the first was told is here waits for the first one's push."""
    site.begin()
    assert site.ask(0, site.cold) == []
    site.time.passes(ms=1000)
    assert site.ask(1, site.cold) == []
    site.push(1, "O", [site.cold])
    site.time.passes(ms=300_000)
    site.horizon_ms = site.time()
    site.evict()
    site.check()
    site.push(0, "N", [site.cold])
    site.time.passes(ms=300_000)
    site.horizon_ms = site.time()
    seal_abandoned(site)
    site.evict()
    assert not site.stores[0].holds_any([Digest.of(site.cold)])  # and then for nobody


@pytest.mark.parametrize("cold", range(11, 16))
def test_what_is_chosen_can_go(site: Site, monkeypatch: pytest.MonkeyPatch, cold: int) -> None:
    """Around a quarter that is cold: whoever chooses counts no more generously than whoever copies, or the same segment
    is chosen for ever and nothing goes.
    """
    ends: list[sweeping.End] = []
    real = Sweeper.sweep

    def sweep(sweeper: Sweeper, number: int, rule: sweeping.Rule, touches: Any) -> sweeping.Swept:
        swept = real(sweeper, number, rule, touches)
        ends.append(swept.end)
        return swept

    monkeypatch.setattr(Sweeper, "sweep", sweep)
    contents = [noise(4753, f"{cold}/{i}") for i in range(54)]
    site.begin()
    site.send(0, *contents)
    site.seal(site.stores[0])
    site.push(1, "whole", contents)
    site.time.passes(days=1)
    assert site.stores[0].read_many([Digest.of(data) for data in contents[cold:]]) == contents[cold:]
    site.stores[0]._touches.flush()
    site.time.passes(days=1)
    site.horizon_ms = site.time() - DAY_MS
    site.evict()
    assert set(ends) <= {sweeping.End.GONE}
