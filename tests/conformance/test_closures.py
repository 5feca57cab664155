"""What every store promises to names; an implementation is one that passes this.

A new one adopts it by a factory in ``PLACES``.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from unit.store.repositories import QUOTA_BYTES, OtherProcess, Repository, blob, noise

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, WouldBlock
from millpond.store.interface import BlobStore, Closures, Footprint, KnownClosure
from millpond.store.memory import MemoryStore

ROW, OTHER_ROW = b"r" * 32, b"o" * 32
STAMP, LATER_STAMP = b"s" * 16, b"l" * 16
BEGIN_MS = 1_700_000_000_000


class Store(BlobStore, Closures, Protocol):
    """Every implementation plays both roles."""


class Clock:
    def __init__(self) -> None:
        self.now_ms = BEGIN_MS

    def __call__(self) -> int:
        return self.now_ms


class Place(Protocol):
    """Where closures outlive the store that noted them."""

    def open(self) -> Store: ...

    def elsewhere(self) -> Any:
        """One more store over the same closures, on the machine's clock."""

    def leave(self) -> None: ...


class MemoryPlace:
    def __init__(self, _: Path, clock: Clock) -> None:
        self.store = MemoryStore(QUOTA_BYTES, clock)

    def open(self) -> MemoryStore:
        return self.store

    def elsewhere(self) -> MemoryStore:
        return self.store

    def leave(self) -> None:
        self.store.close()


class SegmentPlace:
    def __init__(self, path: Path, clock: Clock) -> None:
        self.repository = Repository(path / "repo", clock=clock)
        self.others: list[OtherProcess] = []

    def open(self) -> Store:
        return self.repository.open()

    def elsewhere(self) -> OtherProcess:
        self.others.append(OtherProcess(self.repository.path))
        return self.others[-1]

    def leave(self) -> None:
        for other in self.others:
            other.end()
        self.repository.close()


PLACES: dict[str, Callable[[Path, Clock], Place]] = {"memory": MemoryPlace, "segments": SegmentPlace}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Place]:
    place = PLACES[request.param](tmp_path, clock)
    yield place
    place.leave()


@pytest.fixture
def store(place: Place) -> Store:
    return place.open()


def put(store: Any, *data: bytes) -> list[Digest]:
    digests = [Digest.of(one) for one in data]
    assert store.put_many(list(zip(digests, data, strict=True))) == [None] * len(data)
    return digests


def soon_intact(store: Any, row: bytes = ROW, stamp: bytes = STAMP) -> bool:
    """``remember`` is not waited for."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if store.intact(row, stamp):
            return True
        time.sleep(0.001)
    return False


# -- promise ------------------------------------------------------------------------------------------------------


def test_a_promise_says_where_a_closure_lies_only_when_there_is_nothing_to_settle(store: Store) -> None:
    digests = put(store, b"one", b"two", noise(300_000))
    assert store.promise([[*digests, A]], leases=True) == [([A], None)]
    ((missing, footprint),) = store.promise([digests], leases=True)
    assert missing == []
    assert footprint in (None, store.settle(digests))
    settled = store.settle(digests)
    assert store.promise([[*digests, EMPTY]], leases=True) in ([([], settled)], [([], None)])
    added = put(store, b"three")
    assert store.promise([digests + added], leases=True) == [([], None)]  # what came last is not durable yet


# -- settle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [1, 300_000, 5 * limits.MIB])
def test_what_is_held_settles(store: Store, size_bytes: int) -> None:
    held = put(store, noise(size_bytes), b"small")
    for _ in range(2):
        assert isinstance(store.settle(held), Footprint)
    assert store.settle(held + held) == store.settle(held)


def test_nothing_and_the_empty_blob_settle(store: Store) -> None:
    store.settle([])
    store.settle([EMPTY])
    store.settle([EMPTY, *put(store, b"held"), EMPTY])


@pytest.mark.parametrize("where", [0, 1, 2])
def test_what_is_not_held_does_not_settle(store: Store, where: int) -> None:
    digests = put(store, b"a", b"b")
    digests.insert(where, Digest.of(b"never"))
    with pytest.raises(BlobNotFound):
        store.settle(digests)


def test_a_held_hash_with_another_size_does_not_settle(store: Store) -> None:
    (held,) = put(store, b"held")
    with pytest.raises(BlobNotFound):
        store.settle([held._replace(size_bytes=5)])
    with pytest.raises(BlobNotFound):
        store.settle([EMPTY._replace(size_bytes=5)])


# -- remember, intact ---------------------------------------------------------------------------------------------


def test_what_was_never_remembered_must_be_walked(store: Store) -> None:
    assert not store.intact(ROW, STAMP)
    store.settle(put(store, b"held"))
    assert not store.intact(ROW, STAMP)


def test_what_was_remembered_is_intact(store: Store) -> None:
    store.remember([KnownClosure(ROW, STAMP, store.settle(put(store, b"held", noise(300_000))))])
    assert soon_intact(store)
    assert store.intact(ROW, STAMP)


def test_a_closure_of_nothing_is_intact(store: Store) -> None:
    store.remember([KnownClosure(ROW, STAMP, store.settle([EMPTY]))])
    assert soon_intact(store)


def test_another_name_and_another_binding_must_be_walked(store: Store) -> None:
    store.remember([KnownClosure(ROW, STAMP, store.settle(put(store, b"held")))])
    assert soon_intact(store)
    assert not store.intact(OTHER_ROW, STAMP)
    assert not store.intact(ROW, LATER_STAMP)


def test_the_last_binding_that_was_remembered_counts(store: Store) -> None:
    footprint = store.settle(put(store, b"held"))
    store.remember([KnownClosure(ROW, STAMP, footprint)])
    store.remember([KnownClosure(OTHER_ROW, STAMP, footprint)])
    store.remember([KnownClosure(ROW, LATER_STAMP, footprint)])
    assert soon_intact(store, ROW, LATER_STAMP)
    assert not store.intact(ROW, STAMP)
    assert soon_intact(store, OTHER_ROW, STAMP)


def test_storing_more_breaks_nothing(store: Store) -> None:
    store.remember([KnownClosure(ROW, STAMP, store.settle(put(store, b"held")))])
    assert soon_intact(store)
    for i in range(20):
        put(store, noise(200_000, str(i)))
    assert store.intact(ROW, STAMP)


def test_without_waiting_intact_is_right_or_withheld(store: Store) -> None:
    store.remember([KnownClosure(ROW, STAMP, store.settle(put(store, b"held")))])
    assert soon_intact(store)
    for _ in range(20):
        try:
            assert store.intact(ROW, STAMP, wait=False)
            assert not store.intact(ROW, LATER_STAMP, wait=False)
        except WouldBlock:
            continue


# -- refuse, was_refused ------------------------------------------------------------------------------------------

A, B, C = (Digest.of(text) for text in (b"a", b"b", b"c"))


def test_what_was_refused_is_remembered_for_an_hour(store: Store, clock: Clock) -> None:
    assert not store.was_refused([A])
    store.refuse([A, B])
    assert store.was_refused([C, A])
    assert store.was_refused([B])
    assert not store.was_refused([C])
    assert not store.was_refused([])
    clock.now_ms += limits.REFUSED_MS - 1
    assert store.was_refused([A])
    clock.now_ms += 1
    assert not store.was_refused([A, B])


def test_what_is_refused_again_is_remembered_anew(store: Store, clock: Clock) -> None:
    store.refuse([A])
    clock.now_ms += limits.REFUSED_MS // 2
    store.refuse([A])
    clock.now_ms += limits.REFUSED_MS - 1
    assert store.was_refused([A])


def test_refusing_nothing_is_nothing(store: Store) -> None:
    store.refuse([])
    assert not store.was_refused([A])


@pytest.mark.parametrize("at_once", [500, 100_000])
def test_when_too_many_were_refused_everything_counts_as_refused(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(limits, "REFUSED_DIGESTS", 1000)
    refused = [Digest.of(b"%d" % i) for i in range(1001)]
    store.refuse(refused[:1000])
    assert not store.was_refused([A])
    assert store.was_refused([refused[0]])
    for start in range(1000, 1001, at_once):
        store.refuse(refused[start : start + at_once])
    assert store.was_refused([A])
    assert store.was_refused([refused[1000]])
    clock.now_ms += limits.REFUSED_MS
    assert not store.was_refused([A, refused[0], refused[1000]])
    store.refuse([B])
    assert store.was_refused([B])
    assert not store.was_refused([A])


# -- holds_any ----------------------------------------------------------------------------------------------------


def test_one_that_is_held_is_enough(store: Store) -> None:
    (held,) = put(store, b"held")
    assert not store.holds_any([])
    assert not store.holds_any([A, B])
    assert not store.holds_any([held._replace(size_bytes=1)])
    assert store.holds_any([A, held, B])
    assert store.holds_any([EMPTY])


# -- two stores, and what stays ------------------------------------------------------------------------------------


def test_two_stores_share_what_they_know_of_names(place: Place, store: Store, clock: Clock) -> None:
    clock.now_ms = time.time_ns() // 1_000_000
    other = place.elsewhere()
    digest, data = blob("here")
    put(store, data)
    footprint = other.settle([digest])
    other.remember([KnownClosure(ROW, STAMP, footprint)])
    assert soon_intact(store)
    store.remember([KnownClosure(OTHER_ROW, STAMP, store.settle([digest]))])
    assert soon_intact(other, OTHER_ROW)
    store.refuse([A])
    assert other.was_refused([A])
    other.refuse([B])
    assert store.was_refused([B])


def test_what_was_remembered_stays(place: Place, store: Store) -> None:
    store.remember([KnownClosure(ROW, STAMP, store.settle(put(store, b"held")))])
    store.refuse([A])
    assert soon_intact(store)
    store = place.open()
    assert store.intact(ROW, STAMP)
    assert store.was_refused([A])
    assert not store.was_refused([B])
    store.settle([Digest.of(b"held")])
