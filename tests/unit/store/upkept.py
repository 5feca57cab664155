"""A repository with its upkeep in the same process, at a time that the test says."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic_ns, sleep

from unit.store.repositories import Repository, noise

from millpond.config.settings import Settings
from millpond.core import limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace
from millpond.disk.group_writer import GroupWriter
from millpond.names.binding import Binding
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.store.eviction.making_room import Eviction
from millpond.store.index import Entry
from millpond.store.read_only import ReadOnlyStore
from millpond.store.room.growth import Growth
from millpond.store.room.space import Space
from millpond.store.segments.sealing import Sealer
from millpond.store.uses.table import Uses
from millpond.upkeep import Parts, eviction

KIB, MIB = limits.KIB, limits.MIB
NOW_MS = 1_700_000_000_000
_PATIENCE_NS = 30 * 10**9
"""A server waits as long for room."""


class Time:
    """A clock that only the test moves."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def passes(self, *, ms: int = 0, hours: float = 0, days: float = 0) -> None:
        self.now_ms += ms + int(hours * 3_600_000 + days * 86_400_000)


class Upkept:
    """The store, its upkeep, and a cache over both."""

    def __init__(self, path: Path, *, quota_bytes: int, clock: Clock = wall_clock, warn_age_ms: int = 0) -> None:
        self.repository = Repository(path, quota_bytes=quota_bytes, clock=clock)
        self.clock = clock
        self.warn_age_ms = warn_age_ms
        self._opened = ExitStack()
        self.open()

    def open(self) -> None:
        repository = self.repository
        self.store = repository.open()
        assert repository.opened
        layout, index = repository.opened.layout, repository.opened.index
        self.layout, self.index = layout, index
        self.space = Space(index, layout, reserve_bytes=0)
        self._opened.callback(Growth(index, self.space, for_eviction=True).begin(layout))
        self.uses = Uses(layout.uses)
        self._opened.callback(self.uses.close)
        writer = GroupWriter(index.writing, "upkeep-index-writer")
        self._opened.callback(writer.close)
        sealer = Sealer(layout.segments, index, writer, self.space)
        self._opened.callback(sealer.close)
        settings = Settings(repo=repository.path, listeners=(), warn_age_ms=self.warn_age_ms)
        looking = ReadOnlyStore(layout, index)
        self._opened.callback(looking.close)
        self.parts = Parts(
            settings, repository.opened, repository.names, self.uses, writer, self.space, sealer, looking, self.clock
        )
        self.uses.end_pins_before(0)
        self.eviction: Eviction = eviction(self.parts, self._opened)
        self.cache = Cache(self.store, self.store, repository.names, self.clock)

    def close(self) -> None:
        self._opened.close()
        self.repository.close()

    # -- what a client does -----------------------------------------------------------------------------------------

    def put(self, sizes: Sequence[int], seed: str) -> list[Digest]:
        """Store noise, as many blobs as there are sizes; they must find room, and make it if they do not."""
        blobs = [(Digest.of(data), data) for i, size in enumerate(sizes) for data in [noise(size, f"{seed}/{i}")]]
        for start in range(0, len(blobs), 16):
            waiting = blobs[start : start + 16]
            until, outcomes = monotonic_ns() + _PATIENCE_NS, []
            while waiting and monotonic_ns() < until:
                outcomes = self.store.put_many(waiting)
                waiting = [blob for blob, why in zip(waiting, outcomes, strict=True) if why]
                self.make_room(for_bytes=sum(len(data) + 8 * KIB for _, data in waiting))
            assert not waiting, outcomes
        return [digest for digest, _ in blobs]

    def push(self, uri: str, sizes: Sequence[int]) -> list[Digest]:
        """Upload an artifact and bind its name."""
        digests = self.put(sizes, uri)
        request = assets.AssetPush([uri], digests[0], blobs=digests)
        assets.push(self.cache, "", Namespace.ASSET_BLOB, request, pushed_by="")
        return digests

    def fetch(self, uri: str) -> Binding:
        return assets.fetch(self.cache, "", Namespace.ASSET_BLOB, [uri], (), oldest_ms=None, wait=True).binding

    def is_whole(self, digests: Sequence[Digest]) -> bool:
        """Whether all are held; promises nothing."""
        return len(self.index.entries([digest.key for digest in digests])) == len(set(digests))

    def everything(self) -> list[tuple[bytes, Entry]]:
        """All that the index lists."""
        with self.index.reading() as txn:
            return [(key, Entry.decode(value)) for key, value in txn.cursor(self.index.blobs)]

    # -- what upkeep does -------------------------------------------------------------------------------------------

    def make_room(self, *, for_bytes: int = 0) -> None:
        """Rounds of eviction until nothing has to go, or nothing can; ``for_bytes``: what somebody waits for."""
        self.settled()
        if for_bytes:
            self.parts.index_writer.run(lambda txn: self.space.want(txn, for_bytes))
        since = monotonic_ns()
        while self.space.pressure().to_free_bytes or len(self.eviction._departing):
            sleep(min(0.05, self.eviction.run()))
            self.settled()
            with self.index.reading() as txn:
                if self.space.held(txn)[1] >= since:
                    break
        if for_bytes:
            self.parts.index_writer.run(lambda txn: self.space.want(txn, -for_bytes))

    def settled(self) -> None:
        """Uses are in the log, and what is full is sealed."""
        self.store._touches.flush()
        self.store._sealer._thread.submit(lambda: None).result()

    def taken_bytes(self) -> int:
        """What ``du`` says."""
        return sum(
            (Path(parent) / name).lstat().st_blocks * 512
            for parent, _, names in os.walk(self.repository.path)
            for name in names
        )


@contextmanager
def upkept(path: Path, *, quota_bytes: int, clock: Clock = wall_clock, warn_age_ms: int = 0) -> Iterator[Upkept]:
    """Opened, and closed at the end."""
    one = Upkept(path, quota_bytes=quota_bytes, clock=clock, warn_age_ms=warn_age_ms)
    try:
        yield one
    finally:
        one.close()


def name_of(uri: str) -> Name:
    return Name("", Namespace.ASSET_BLOB, uri)


MakeUpkept = Callable[..., Upkept]
