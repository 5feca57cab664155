"""One process that has a cache open, as the stateful tests drive it: directly, or in an interpreter of its own.

Blobs are numbers here, so that a question and its answer fit into a line and every process knows the right bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from unit.store.repositories import flip, noise, read_chunks, soon
from unit.store.upkept import Upkept

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, MillpondError, NameNotFound
from millpond.core.names import Name, Namespace, asset_key
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.services.upkeep import turn
from millpond.store.segments.format import RECORD_HEADER_BYTES

QUOTA_BYTES = 64 * limits.SEGMENT_MIN_BYTES
"""Segments of 256 KiB: what is above 64 KiB has one of its own."""
SIZES = (1, 900, 20_000, 45_000, 100_000, 300_000)
BLOB = Namespace.ASSET_BLOB
_LOOKED_AT = [*range(8, 16), *range(24, 56)]
"""In a record's header: the size and the hash. Its magic, its offset and its checksum are for rebuilding."""


@lru_cache(512)
def content(blob: int) -> bytes:
    """The bytes of a blob."""
    return noise(SIZES[blob % len(SIZES)], f"{blob}")


@lru_cache(4096)
def digest(blob: int) -> Digest:
    return Digest.of(content(blob))


class Clock:
    """Told from outside."""

    now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


class Driver(Protocol):
    """What the machine speaks to."""

    def ask(self, now_ms: int, verb: str, *arguments: Any) -> Any: ...


class Process:
    """A cache and all that can be asked of it."""

    def __init__(self, cache: Cache, clock: Clock) -> None:
        self.cache = cache
        self.clock = clock

    def ask(self, now_ms: int, verb: str, *arguments: Any) -> Any:
        self.clock.now_ms = now_ms
        return getattr(self, f"do_{verb}")(*arguments)

    def do_put(self, *blobs: int) -> list[str | None]:
        outcomes = self.cache.blobs.put_many([(digest(blob), content(blob)) for blob in blobs])
        return [None if why is None else type(why).__name__ for why in outcomes]

    def do_upload(self, blob: int) -> str | None:
        data = content(blob)
        try:
            stream = self.cache.blobs.begin_upload(digest(blob), f"session/{blob}", offset=0)
            for at in range(0, len(data), 70_000):
                stream.write(data[at : at + 70_000])
            stream.finish()
        except MillpondError as why:
            return type(why).__name__
        return None

    def do_find(self, *blobs: int) -> list[int]:
        missing = set(self.cache.blobs.find_missing([digest(blob) for blob in blobs]))
        return [blob for blob in blobs if digest(blob) in missing]

    def do_holds(self, *blobs: int) -> list[int]:
        """Those that are held; nothing is promised."""
        return [blob for blob in blobs if self.cache.closures.holds_any([digest(blob)])]

    def do_read(self, *blobs: int) -> list[str | None]:
        answers = self.cache.blobs.read_many([digest(blob) for blob in blobs])
        return [verdict(blob, data) for blob, data in zip(blobs, answers, strict=True)]

    def do_open(self, blob: int) -> str | None:
        with suppress(BlobNotFound):
            return verdict(blob, read_chunks(self.cache.blobs, digest(blob)))
        return None

    def do_bind(self, name: str, *blobs: int) -> str | None:
        named = [digest(blob) for blob in blobs]
        try:
            request = assets.AssetPush([name], named[0], blobs=named[1:])
            assets.push(self.cache, "", BLOB, request, pushed_by="")
        except MillpondError as why:
            return type(why).__name__
        return None

    def do_fetch(self, name: str, *candidates: int) -> int | None:
        """Which of ``candidates`` it is bound to; -1: something else."""
        try:
            found = assets.fetch(self.cache, "", BLOB, [name], (), oldest_ms=None, wait=True).binding.digest
        except NameNotFound:
            return None
        return next((blob for blob in candidates if digest(blob) == found), -1)

    def do_unbind(self, name: str) -> bool:
        return self.cache.names.unbind(Name("", BLOB, asset_key(name)))


def verdict(blob: int, data: Any) -> str | None:
    if data is None:
        return None
    return "right" if bytes(data) == content(blob) else "wrong"


class SegmentProcess(Process):
    """One over a repository on disk, with its upkeep."""

    def __init__(self, path: Path, now_ms: int) -> None:
        clock = Clock()
        clock.now_ms = now_ms
        self.upkept = Upkept(path, quota_bytes=QUOTA_BYTES, clock=clock)
        self.repository = self.upkept.repository
        store = self.repository.store
        super().__init__(Cache(store, store, self.repository.names, clock, foreign=False), clock)

    def do_evict(self, pinned: list[int], how: dict[str, Any]) -> None:
        uses = self.upkept.uses
        self.upkept.settled()
        with turn(self.upkept.layout, wait_seconds=10) as mine:
            assert mine
            uses.pin(self.clock.now_ms, [digest(blob).key for blob in pinned])
            uses.end_pins_before(self.clock.now_ms)
            self.upkept.eviction.evict(**how)

    def do_rot(self, blob: int, share: float, bit: int) -> str | None:
        """Flip a bit that a reader looks at, in a blob's "data" or, if ``share`` is negative, in its record's "header"."""
        with suppress(KeyError):
            entry = self.repository.entry(digest(blob))
            where = "header" if share < 0 else "data"
            if where == "header":
                at = _LOOKED_AT[int(-share * (len(_LOOKED_AT) - 1))]
            else:
                at = RECORD_HEADER_BYTES + int(share * (entry.size_bytes - 1))
            flip(self.repository.segment(entry.segment), entry.offset + at, bit)
            return where
        return None

    def do_forgets(self, blob: int) -> bool:
        """Whether a damaged blob is soon no longer listed."""
        return soon(lambda: not self.do_holds(blob))

    def do_close(self) -> None:
        self.upkept.close()


class OtherProcess:
    """A :class:`SegmentProcess` in an interpreter of its own, driven over a pipe; it can be killed."""

    def __init__(self, path: Path, now_ms: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from property.cache_process import live; live()", str(path), str(now_ms)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def ask(self, now_ms: int, verb: str, *arguments: Any) -> Any:
        assert self._process.stdout
        self.say(now_ms, verb, *arguments)
        return json.loads(self._process.stdout.readline())

    def say(self, now_ms: int, verb: str, *arguments: Any) -> None:
        """Ask, and do not wait for the answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([now_ms, verb, *arguments]) + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        self._process.communicate(timeout=30)
        assert self._process.returncode == 0


def live() -> None:
    """The other end of the pipe."""
    process = SegmentProcess(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        print(json.dumps(process.ask(*json.loads(line))), flush=True)
    process.do_close()
