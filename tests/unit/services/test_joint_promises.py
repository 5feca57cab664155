"""Promises for pushes that are committed together."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import NotReady, WouldBlock
from millpond.services import joint_promises
from millpond.services.joint_promises import JointPromises
from millpond.store.interface import Footprint, Promised
from millpond.store.memory import MemoryStore

HELD, ALSO_HELD, VOLATILE, MISSING = (Digest.of(text) for text in (b"held", b"also held", b"volatile", b"missing"))
PLACES = {HELD: Footprint(((1, 1),)), ALSO_HELD: Footprint(((2, 1),))}


class Store(MemoryStore):
    """It knows where some blobs lie, and tells what it was asked."""

    def __init__(self) -> None:
        super().__init__(1 << 20, wall_clock)
        self.asked: list[list[Digest]] = []
        self.calls: list[int] = []
        self.fails: Exception | None = None
        self.busy = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def promise(self, closures: Sequence[Sequence[Digest]], *, leases: bool, wait: bool = True) -> list[Promised]:
        assert leases
        assert not wait
        self.busy.set()
        self.go.wait(10)
        self.asked += [list(digests) for digests in closures]
        self.calls.append(len(closures))
        if self.fails:
            raise self.fails
        missing = [[digest for digest in digests if digest is MISSING] for digests in closures]
        return [
            Promised(gone, PLACES.get(digests[0]) if digests else Footprint(()))
            for gone, digests in zip(missing, closures, strict=True)
        ]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def promises(store: Store) -> JointPromises:
    return JointPromises(store)


def test_what_waits_is_promised_at_once_and_only_once(store: Store, promises: JointPromises) -> None:
    one, other = promises.later([HELD]), promises.later([ALSO_HELD, HELD])
    assert store.asked == []
    assert one.footprint is None
    other.make()
    assert store.asked == [[HELD], [ALSO_HELD, HELD]]
    one.make()
    assert len(store.asked) == 2
    assert (one.footprint, other.footprint) == (PLACES[HELD], PLACES[ALSO_HELD])
    late = promises.later([HELD])
    late.make()
    assert store.asked[2:] == [[HELD]]


def test_so_much_is_promised_in_one_go_and_no_more(
    store: Store, promises: JointPromises, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody holds up eviction, and all others' commits, by pushes that refer to very much."""
    monkeypatch.setattr(joint_promises, "_AT_ONCE", 3)
    with pytest.raises(WouldBlock):
        promises.later([HELD] * 4)
    some = [promises.later([HELD] * size) for size in (2, 2, 3, 0, 1)]
    some[0].make()
    assert store.calls == [1]
    some[4].make()
    assert store.calls == [1, 1, 2, 1]
    assert None not in [late.footprint for late in some]


@pytest.mark.parametrize("more", [VOLATILE, MISSING])
def test_there_is_more_to_what_is_not_held_or_not_durable(promises: JointPromises, more: Digest) -> None:
    one, other = promises.later([HELD]), promises.later([more])
    with pytest.raises(WouldBlock):
        other.make()
    assert other.footprint is None
    one.make()
    assert one.footprint == PLACES[HELD]


@pytest.mark.parametrize("failure", [NotReady("the log"), WouldBlock(), ZeroDivisionError()])
def test_a_failure_is_that_of_all_who_waited_and_of_nobody_else(
    store: Store, promises: JointPromises, failure: Exception
) -> None:
    some = [promises.later([HELD]) for _ in range(3)]
    store.fails = failure
    for late in some:
        with pytest.raises(type(failure)):
            late.make()
        assert late.footprint is None
    assert len(store.asked) == 3
    store.fails = None
    after = promises.later([HELD])
    after.make()
    assert after.footprint


def test_who_is_promised_by_another_thread_waits_for_it(store: Store, promises: JointPromises) -> None:
    one, other = promises.later([HELD]), promises.later([ALSO_HELD])
    store.go.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one.make)
        assert store.busy.wait(10)
        second = threads.submit(other.make)
        assert not second.done()
        store.go.set()
        first.result()
        second.result()
    assert other.footprint == PLACES[ALSO_HELD]
    assert len(store.asked) == 2
