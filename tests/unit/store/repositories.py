"""Repositories for tests: opened as the program opens them, and stores that live in another process."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from millpond.core import errors, limits
from millpond.core.clock import Clock, wall_clock
from millpond.core.digest import Digest
from millpond.names.lmdb_names import LmdbNames
from millpond.store.index import Entry, SegmentRow
from millpond.store.interface import KnownClosure
from millpond.store.repository.opening import OpenRepository, open_repository
from millpond.store.room.taken import files_in
from millpond.store.segment_store import SegmentStore
from millpond.store.segments.files import segment_name
from millpond.store.uses.table import Uses
from millpond.store.uses.use import Use

MIB = limits.MIB
QUOTA_BYTES = 64 * MIB
"""Segments of 1 MiB: a blob above 256 KiB gets one of its own."""


def blob(text: str | bytes) -> tuple[Digest, bytes]:
    data = text.encode() if isinstance(text, str) else text
    return Digest.of(data), data


def noise(size_bytes: int, seed: str = "") -> bytes:
    """The same bytes for the same seed, no two MiB alike."""
    return hashlib.shake_128(f"{seed}/{size_bytes}".encode()).digest(size_bytes)


class Repository:
    """A REPO and, while it is open, its store."""

    def __init__(self, path: Path, *, quota_bytes: int = QUOTA_BYTES, clock: Clock = wall_clock) -> None:
        self.path = path
        self.quota_bytes = quota_bytes
        self.clock = clock
        self.opened: OpenRepository | None = None

    def open(self) -> SegmentStore:
        """Open it, closing it first where it is open."""
        self.close()
        self.opened = open_repository(self.path, quota_bytes=lambda _: self.quota_bytes)
        self.names = LmdbNames(Path(self.opened.layout.names))
        self.store = SegmentStore(
            self.opened.layout,
            self.opened.index,
            reserve_bytes=0,
            take_numbers=self.names.take_numbers,
            clock=self.clock,
        )
        return self.store

    def close(self) -> None:
        if self.opened:
            self.store.close()
            self.names.close()
            self.opened.close()
            self.opened = None

    def copy(self, to: Path) -> "Repository":
        """What a snapshot of a running repository holds."""
        shutil.copytree(self.path, to)
        return Repository(to, quota_bytes=self.quota_bytes, clock=self.clock)

    def entry(self, digest: Digest) -> Entry:
        assert self.opened
        return self.opened.index.entries([digest.key])[digest.key]

    def row(self, number: int) -> SegmentRow:
        assert self.opened
        with self.opened.index.reading() as txn:
            row = self.opened.index.segment(txn, number)
        assert row
        return row

    def rows(self) -> dict[int, SegmentRow]:
        assert self.opened
        with self.opened.index.reading() as txn:
            return dict(self.opened.index.all_segments(txn))

    def segment(self, number: int) -> Path:
        return self.path / "segments" / segment_name(number)

    def segments(self) -> list[Path]:
        return sorted((self.path / "segments").iterdir())

    def claimed_bytes(self) -> int:
        """What the ledger holds beside what segments take."""
        kinds = (b"claim", b"upload", b"announced")
        assert self.opened
        with self.opened.index.reading() as txn:
            rows = dict(txn.cursor(self.opened.index.space))
        return sum(int.from_bytes(value, "little") for key, value in rows.items() if key.partition(b":")[0] in kinds)

    def uncounted_bytes(self) -> int:
        """By how much segments and uploads take more than the ledger says; never above 0."""
        assert self.opened
        with self.opened.index.reading() as txn:
            rows = dict(txn.cursor(self.opened.index.space))
        taken = sum(size for directory in ("segments", "uploads") for _, size in files_in(str(self.path / directory)))
        kinds = (b"used", b"claim", b"upload")
        return taken - sum(
            int.from_bytes(value, "little") for key, value in rows.items() if key.partition(b":")[0] in kinds
        )


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Bit rot."""
    descriptor = os.open(path, os.O_RDWR)
    byte = os.pread(descriptor, 1, offset)[0]
    os.pwrite(descriptor, bytes([byte ^ 1 << bit]), offset)
    os.close(descriptor)


def read(store: Any, digest: Digest) -> bytes | None:
    (data,) = store.read_many([digest])
    return None if data is None else bytes(data)


def read_chunks(store: Any, digest: Digest) -> bytes:
    with store.open(digest) as opened:
        return b"".join(bytes(opened.chunk(i)) for i in range(-(-digest.size_bytes // limits.CHUNK_BYTES)))


def soon(question: Callable[[], object]) -> bool:
    """For what the store does not wait for: quarantine, the note of a closure."""
    deadline = time.monotonic() + 10
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return bool(answer)


OTHER_PROCESS = """
import json, sys
from pathlib import Path
from millpond.core.digest import Digest
from millpond.core.errors import MillpondError
from millpond.store.interface import Footprint, KnownClosure
from unit.store.repositories import Repository, read, read_chunks

repository = Repository(Path(sys.argv[1]), quota_bytes=int(sys.argv[2]))
store = repository.open()
uploads = []

def digest(text):
    hash, _, size = text.partition("/")
    return Digest.parse(hash, int(size))

def answer(verb, *rest):
    if verb == "find":
        return [str(missing) for missing in store.find_missing([digest(text) for text in rest])]
    if verb == "put":
        return [type(why).__name__ if why else None
                for why in store.put_many([(digest(text), bytes.fromhex(data)) for text, data in rest])]
    if verb == "read":
        data = read(store, digest(*rest))
        return None if data is None else data.hex()
    if verb == "chunks":
        return read_chunks(store, digest(*rest)).hex()
    if verb == "begin":
        uploads.append(store.begin_upload(digest(rest[0]), rest[1], offset=rest[2]))
        return len(uploads) - 1
    if verb == "write":
        return uploads[rest[0]].write(bytes.fromhex(rest[1]))
    if verb in ("finish", "suspend", "abandon"):
        return getattr(uploads[rest[0]], verb)()
    if verb == "offset":
        return store.upload_offset(*rest)
    if verb == "settle":
        return store.settle([digest(text) for text in rest])
    if verb == "remember":
        places = tuple(tuple(place) for place in rest[2])
        return store.remember([KnownClosure(bytes.fromhex(rest[0]), bytes.fromhex(rest[1]), Footprint(places))])
    if verb == "intact":
        return store.intact(*map(bytes.fromhex, rest))
    if verb == "refuse":
        return store.refuse([digest(text) for text in rest])
    if verb == "was_refused":
        return store.was_refused([digest(text) for text in rest])
    if verb == "holds":
        return store.holds_any([digest(text) for text in rest])

for line in sys.stdin:
    try:
        said = {"ok": answer(*json.loads(line))}
    except MillpondError as error:
        said = {"error": type(error).__name__}
    print(json.dumps(said), flush=True)
repository.close()
"""


class OtherProcess:
    """A SegmentStore in a Python process of its own. Speaks like one, in hex."""

    def __init__(self, path: Path, *, quota_bytes: int = QUOTA_BYTES) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, str(path), str(quota_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def say(self, *question: object) -> None:
        assert self.process.stdin
        print(json.dumps(question), file=self.process.stdin, flush=True)

    def ask(self, *question: object) -> Any:
        assert self.process.stdout
        self.say(*question)
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise getattr(errors, answer["error"])
        return answer["ok"]

    def find_missing(self, digests: Sequence[Digest]) -> list[Digest]:
        missing = self.ask("find", *map(str, digests))
        return [digest for digest in digests if str(digest) in missing]

    def put_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> list[str | None]:
        outcomes: list[str | None] = self.ask("put", *((str(digest), data.hex()) for digest, data in blobs))
        return outcomes

    def read_many(self, digests: Sequence[Digest]) -> list[bytes | None]:
        answers = [self.ask("read", str(digest)) for digest in digests]
        return [None if answer is None else bytes.fromhex(answer) for answer in answers]

    def begin_upload(self, digest: Digest, session: str, *, offset: int) -> "OtherUpload":
        return OtherUpload(self, self.ask("begin", str(digest), session, offset))

    def upload_offset(self, session: str) -> int:
        offset: int = self.ask("offset", session)
        return offset

    def settle(self, digests: Sequence[Digest]) -> Any:
        return self.ask("settle", *map(str, digests))[0]

    def remember(self, closures: Sequence[KnownClosure]) -> None:
        for row, stamp, places, _ in closures:
            self.ask("remember", row.hex(), stamp.hex(), places)

    def intact(self, row: bytes, stamp: bytes) -> bool:
        return bool(self.ask("intact", row.hex(), stamp.hex()))

    def refuse(self, digests: Sequence[Digest]) -> None:
        self.ask("refuse", *map(str, digests))

    def was_refused(self, digests: Sequence[Digest]) -> bool:
        return bool(self.ask("was_refused", *map(str, digests)))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


class OtherUpload:
    def __init__(self, process: OtherProcess, number: int) -> None:
        self.process, self.number = process, number

    def write(self, data: bytes) -> None:
        self.process.ask("write", self.number, data.hex())

    def finish(self) -> None:
        self.process.ask("finish", self.number)

    def suspend(self) -> None:
        self.process.ask("suspend", self.number)

    def abandon(self) -> None:
        self.process.ask("abandon", self.number)


def known(uses: Uses, keys: Sequence[bytes]) -> dict[bytes, Use]:
    """The uses of those of ``keys`` of which one is known."""
    found, meaning = uses.found(keys)
    return {key: meaning[value] for key, value in found.items()}
