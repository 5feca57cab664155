"""One model of a cache against every implementation: in memory, on disk, and two processes on one repository.

Whatever is put, found, read, bound, fetched, removed, damaged, whoever is killed in the middle of it and however often
it is opened again: no wrong byte, no name without its blobs, nothing lost that was acknowledged.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from property.cache_model import CacheModel
from property.cache_process import (
    QUOTA_BYTES,
    Clock,
    Driver,
    OtherProcess,
    Process,
    SegmentProcess,
    digest,
)

from millpond.names.memory import MemoryNames
from millpond.services.cache import Cache
from millpond.store.memory import MemoryStore

ALL = 12
BEGIN_MS = 1_700_000_000_000
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
BLOBS = st.integers(0, ALL - 1)
BATCHES = st.lists(BLOBS, min_size=1, max_size=6, unique=True)
CLOSURES = st.lists(BLOBS, min_size=1, max_size=4, unique=True)
NAMES_OF_ALL = ("ale", "bock", "cider")
NAMES = st.sampled_from(NAMES_OF_ALL)
PINS = st.sets(NAMES)
WHO = st.integers(0, 1)
EVICTIONS = st.sampled_from(
    [
        *({"older_than_ms": age_ms} for age_ms in (0, HOUR_MS, 3 * DAY_MS)),
        *({"to_bytes": size_bytes} for size_bytes in (500_000, 1_500_000, 3_000_000)),
        {"everything": True},
    ]
)


class CacheMachine(RuleBasedStateMachine):
    """Does anything with a cache through one or two processes, and holds the answers against the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = CacheModel(BEGIN_MS)
        self.filled = 100
        self.processes: list[Driver] = self.begin()

    def begin(self) -> list[Any]:
        raise NotImplementedError

    def next_ms(self) -> int:
        """No two things happen at once."""
        self.model.now_ms += 1
        return self.model.now_ms

    def ask(self, who: int, verb: str, *arguments: Any) -> Any:
        return self.processes[who % len(self.processes)].ask(self.next_ms(), verb, *arguments)

    # -- blobs ------------------------------------------------------------------------------------------------------

    @rule(who=WHO, blobs=BATCHES)
    def put(self, who: int, blobs: list[int]) -> None:
        assert self.ask(who, "put", *blobs) == [None] * len(blobs)
        self.model.stored(*blobs)

    @rule(who=WHO, blob=BLOBS)
    def upload(self, who: int, blob: int) -> None:
        assert self.ask(who, "upload", blob) is None
        self.model.stored(blob)

    @rule(who=WHO, blobs=BATCHES)
    def find(self, who: int, blobs: list[int]) -> None:
        self.model.found(blobs, self.ask(who, "find", *blobs))

    @rule(who=WHO, blobs=BATCHES)
    def read(self, who: int, blobs: list[int]) -> None:
        for blob, answer in zip(blobs, self.ask(who, "read", *blobs), strict=True):
            self.was_read(who, blob, answer)

    @rule(who=WHO, blob=BLOBS)
    def open(self, who: int, blob: int) -> None:
        self.was_read(who, blob, self.ask(who, "open", blob))

    reads_are_noted = True
    """Whether a read counts as use whatever happens next."""
    evicts_exactly = False

    def was_read(self, who: int, blob: int, answer: str | None) -> None:
        rotten = answer is None and blob in self.model.blobs
        self.model.read(blob, answer, noted=self.reads_are_noted)
        if rotten:
            assert self.ask(who, "forgets", blob)

    # -- names ------------------------------------------------------------------------------------------------------

    @rule(who=WHO, name=NAMES, blobs=CLOSURES, complete=st.booleans())
    def bind(self, who: int, name: str, blobs: list[int], complete: bool) -> None:
        if complete:
            self.put(who, blobs)
        self.model.bound(name, tuple(blobs), self.ask(who, "bind", name, *blobs))

    @rule(who=WHO, name=NAMES)
    def fetch(self, who: int, name: str) -> None:
        candidates = [blobs[0] for blobs in self.model.bindings_of(name)]
        self.model.fetched(name, self.ask(who, "fetch", name, *candidates))

    @rule(who=WHO, name=NAMES)
    def remove(self, who: int, name: str) -> None:
        removed = self.ask(who, "unbind", name)
        assert removed == (name in self.model.names) or self.model.perhaps.get(name)
        self.model.unbound(name)

    @rule(passes_ms=st.sampled_from([MINUTE_MS, 2 * HOUR_MS, 8 * DAY_MS]))
    def later(self, passes_ms: int) -> None:
        self.model.now_ms += passes_ms

    @rule(who=WHO, pick=BLOBS, share=st.floats(-0.2, 1), bit=st.integers(0, 7), look=st.booleans())
    def damage(self, who: int, pick: int, share: float, bit: int, look: bool) -> None:
        held = sorted(self.model.blobs)
        if held and (where := self.ask(who, "rot", blob := held[pick % len(held)], share, bit)):
            self.model.damaged(blob, where)
            if look:
                self.read(who, [blob])

    @rule(who=WHO)
    def look_at_everything(self, who: int) -> None:
        for name in NAMES_OF_ALL:
            self.fetch(who, name)
        self.read(who, list(range(ALL)))
        for blob in range(ALL):
            self.open(who, blob)
        for name in NAMES_OF_ALL:
            self.fetch(who, name)

    # -- eviction ---------------------------------------------------------------------------------------------------

    @rule(who=WHO)
    def fill(self, who: int) -> None:
        """Blobs that nobody will ever want again, so many that a segment is full."""
        self.filled += 6
        self.put(who, [6 * number + 3 for number in range(self.filled, self.filled + 6)])

    @rule(who=WHO, how=EVICTIONS, pinned=PINS)
    def evict(self, who: int, how: dict[str, Any], pinned: set[str]) -> None:
        how, self.model.pinned = self.concrete(how), pinned
        self.ask(who, "evict", sorted(self.model.pinned_blobs), how)
        self.see_what_is_left(who, how)
        for name in NAMES_OF_ALL:
            self.fetch(who, name)

    def concrete(self, how: dict[str, Any]) -> dict[str, Any]:
        """Ages become times."""
        return {what: self.model.now_ms - value if what == "older_than_ms" else value for what, value in how.items()}

    def see_what_is_left(self, who: int, how: dict[str, Any]) -> None:
        left = self.ask(who, "holds", *self.model.blobs)
        self.model.evicted(left, how, exact=self.evicts_exactly)


class MemoryProcess(Process):
    """The reference, with a way to damage it."""

    def __init__(self) -> None:
        clock = Clock()
        self.store = MemoryStore(QUOTA_BYTES, clock)
        super().__init__(Cache(self.store, self.store, MemoryNames(), clock, foreign=False), clock)

    def do_rot(self, blob: int, share: float, bit: int) -> str | None:
        held = self.store._blobs.get(digest(blob))
        if held is not None:
            at = int(abs(share) * (len(held.data) - 1))
            held.data = held.data[:at] + bytes([held.data[at] ^ 1 << bit]) + held.data[at + 1 :]
        return held and "data"

    def do_forgets(self, blob: int) -> bool:
        return not self.do_holds(blob)

    def do_evict(self, pinned: list[int], how: dict[str, Any]) -> None:
        self.store.pin(self.clock.now_ms, [digest(blob).key for blob in pinned])
        self.store.end_pins_before(self.clock.now_ms)
        self.store.evict(**how)


class MemoryMachine(CacheMachine):
    """The reference in memory."""

    evicts_exactly = True

    def begin(self) -> list[Any]:
        return [MemoryProcess()]


class DiskMachine(CacheMachine):
    """A repository on disk."""

    def begin(self) -> list[Any]:
        self.root = Path(tempfile.mkdtemp(prefix="millpond-stateful-"))
        self.moves = 0
        self.repo = self.root / "0"
        return [SegmentProcess(self.repo, self.next_ms())]

    def teardown(self) -> None:
        for process in self.processes:
            process.do_close()  # type: ignore[attr-defined]
        shutil.rmtree(self.root)

    @rule()
    def reopen(self) -> None:
        self.ask(0, "close")
        self.processes = [SegmentProcess(self.repo, self.next_ms())]
        self.look_at_everything(0)

    @rule()
    def power_loss(self) -> None:
        """The repository as it is on the disk goes on elsewhere, where nobody believes its index."""
        self.moves += 1
        self.repo = self.root / f"{self.moves}"
        (process,) = self.processes
        process.upkept.settled()  # type: ignore[attr-defined]
        process.repository.copy(self.repo)  # type: ignore[attr-defined]
        self.ask(0, "close")
        self.processes = [SegmentProcess(self.repo, self.next_ms())]
        self.model.rebuilt()
        self.look_at_everything(0)


class TwoProcessesMachine(CacheMachine):
    """Two processes on one repository; each may be killed at any moment."""

    reads_are_noted = False

    def begin(self) -> list[Any]:
        self.root = Path(tempfile.mkdtemp(prefix="millpond-stateful-"))
        return [self.process(), self.process()]

    def process(self) -> OtherProcess:
        return OtherProcess(self.root / "repo", self.next_ms())

    def teardown(self) -> None:
        for process in self.processes:
            process.end()  # type: ignore[attr-defined]
        shutil.rmtree(self.root)

    @rule(whom=st.sampled_from([[0], [1], [0, 1]]))
    def kill(self, whom: list[int]) -> None:
        for who in whom:
            self.processes[who].kill()  # type: ignore[attr-defined]
        for who in whom:
            self.processes[who] = self.process()
        self.look_at_everything(1 - whom[0])

    @rule(who=WHO, blobs=BATCHES, after_ms=st.integers(0, 5))
    def kill_while_putting(self, who: int, blobs: list[int], after_ms: int) -> None:
        self.begin_and_wait(who, after_ms, "put", *blobs)
        self.model.perhaps_stored(*blobs)
        self.kill([who])

    @rule(who=WHO, name=NAMES, blobs=CLOSURES, after_ms=st.integers(0, 10))
    def kill_while_binding(self, who: int, name: str, blobs: list[int], after_ms: int) -> None:
        self.put(1 - who, blobs)
        self.begin_and_wait(who, after_ms, "bind", name, *blobs)
        self.model.perhaps_bound(name, tuple(blobs))
        self.kill([who])

    @rule(who=WHO, how=EVICTIONS, pinned=PINS, after_ms=st.integers(0, 20))
    def kill_while_evicting(self, who: int, how: dict[str, Any], pinned: set[str], after_ms: int) -> None:
        how, self.model.pinned = self.concrete(how), pinned
        self.begin_and_wait(who, after_ms, "evict", sorted(self.model.pinned_blobs), how)
        self.processes[who].kill()  # type: ignore[attr-defined]
        self.fill(1 - who)  # what was committed and not yet to be seen is seen from the next write on
        self.see_what_is_left(1 - who, how)
        self.processes[who] = self.process()
        self.look_at_everything(who)

    def begin_and_wait(self, who: int, after_ms: int, verb: str, *arguments: Any) -> None:
        self.ask(who, "find")  # it is up
        self.processes[who].say(self.next_ms(), verb, *arguments)  # type: ignore[attr-defined]
        time.sleep(after_ms / 1000)  # the model takes either outcome


def machine_settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,  # the same verdict for the same commit
        phases=[Phase.generate],  # to find the shortest failure would take minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


TestMemory = MemoryMachine.TestCase
TestMemory.settings = machine_settings(60, 40)
TestDisk = DiskMachine.TestCase
TestDisk.settings = machine_settings(25, 30)
TestTwoProcesses = TwoProcessesMachine.TestCase
TestTwoProcesses.settings = machine_settings(5, 18)
