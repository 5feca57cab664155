"""``python -m benchmarks artifact``: what it costs to fetch an artifact of very many files.

One server with a quota that is used up, and somebody who writes into it all the time, so that something has to go all the
time. Fetches of one large artifact are timed at the client: while nothing of it was evicted, and when its whole tree must be
walked because nobody remembers where it lies (the index was told to forget that between two starts).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from benchmarks import messages
from benchmarks.messages import Digest
from benchmarks.size import Measured, Server, add_places, told
from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as ra_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.store.index import Index
from millpond.store.repository.layout import Layout

FETCH_AT_MOST_MS = 2.0
WALK_AT_MOST_SECONDS = 0.5

_FILES, _FILES_PER_DIRECTORY, _FILE_BYTES = 100_000, 250, 300
_QUOTA_BYTES = 400_000_000
_WRITTEN_BYTES = 4_000
_BATCH = 200
_BATCHES_PER_SECOND = 25
"""20 MB per second: eviction never rests, and two cores have time for the client that is timed."""
_FETCHES = 300
_FETCHES_PER_SECOND = 20
_WALKS = 5
_URI = "urn:example:large"
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


def measure(files: int, scratch: Path) -> Measured:
    """Fill a cache, and time fetches."""
    measured = Measured(files)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-artifact-", dir=scratch)))
        server = Server(root / "repo", root / "log", "--quota", str(_QUOTA_BYTES))
        stack.callback(server.kill)
        server.start()
        with _client(server) as channel:
            artifact = _pushed(channel, files)
            with _Writer(server) as writer:
                while writer.written_bytes() < 1.2 * _QUOTA_BYTES:
                    _fetched(channel, artifact)
                    time.sleep(1)
                taken = []
                for _ in range(_FETCHES):
                    taken.append(_fetched(channel, artifact))
                    time.sleep(1 / _FETCHES_PER_SECOND)
                writer.written_bytes()  # it wrote all the while
        what = f"fetch of {files:,} files, nothing of it evicted"
        note = f"p99 {sorted(taken)[len(taken) * 99 // 100] * 1000:.1f} ms; 20 MB/s written into a full cache meanwhile"
        measured.add(what, statistics.median(taken) * 1000, "ms", FETCH_AT_MOST_MS, note)
        walks = []
        for _ in range(_WALKS):
            server.stop()
            _forget_where_closures_lie(root / "repo")
            server.start()
            with _client(server) as channel:
                walks.append(_fetched(channel, artifact))
        note = f"median of {_WALKS}, each the first call of a new server"
        measured.add(f"fetch of {files:,} files that walks", statistics.median(walks), "s", WALK_AT_MOST_SECONDS, note)
        server.stop()
    return measured


@contextlib.contextmanager
def _client(server: Server) -> Iterator[grpc.Channel]:
    with contextlib.closing(grpc.insecure_channel(server.address, _OPTIONS)) as channel:
        channel.unary_unary(messages.GET_CAPABILITIES)(b"", timeout=60)
        yield channel


def _pushed(channel: grpc.Channel, files: int) -> Digest:
    """A tree of directories with as many small files; its root."""
    chance = random.Random(100)
    root = re_pb2.Directory()
    for number in range(files // _FILES_PER_DIRECTORY):
        directory = re_pb2.Directory()
        blobs = [chance.randbytes(_FILE_BYTES) for _ in range(_FILES_PER_DIRECTORY)]
        for at, blob in enumerate(blobs):
            directory.files.add(name=f"{at:05}", digest=_proto(Digest.of(blob)))
        blobs.append(directory.SerializeToString(deterministic=True))
        root.directories.add(name=f"{number:05}", digest=_proto(Digest.of(blobs[-1])))
        _store(channel, blobs)
    top = root.SerializeToString(deterministic=True)
    _store(channel, [top])
    digest = Digest.of(top)
    request = ra_pb2.PushDirectoryRequest(uris=[_URI], root_directory_digest=_proto(digest))
    channel.unary_unary(messages.PUSH_DIRECTORY)(request.SerializeToString(), timeout=60)
    return digest


def _proto(digest: Digest) -> re_pb2.Digest:
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


def _store(channel: grpc.Channel, blobs: list[bytes]) -> None:
    update = b"".join(messages.batch_update_item(Digest.of(blob), blob) for blob in blobs)
    messages.require_updated([channel.unary_unary(messages.BATCH_UPDATE_BLOBS)(update, timeout=60)], len(blobs))


def _fetched(channel: grpc.Channel, artifact: Digest) -> float:
    """Seconds at the client."""
    request = ra_pb2.FetchDirectoryRequest(uris=[_URI]).SerializeToString()
    fetch = channel.unary_unary(messages.FETCH_DIRECTORY)
    begun = time.perf_counter()
    answer = fetch(request, timeout=60)
    seconds = time.perf_counter() - begun
    if ra_pb2.FetchDirectoryResponse.FromString(answer).root_directory_digest.hash != artifact.hash:
        raise messages.UnexpectedAnswer("FetchDirectory returned another tree than the one pushed")
    return seconds


class _Writer:
    """Somebody who writes at a steady pace until the block ends."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._written = 0
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> _Writer:
        self._work = self._pool.submit(self._write)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown()

    def written_bytes(self) -> int:
        """How much so far.

        Raises:
            grpc.RpcError, UnexpectedAnswer: it was refused, and writes no more.
        """
        if self._work.done():
            self._work.result()
        return self._written

    def _write(self) -> None:
        with _client(self._server) as channel:
            while not self._ended.wait(1 / _BATCHES_PER_SECOND):
                _store(channel, [os.urandom(_WRITTEN_BYTES) for _ in range(_BATCH)])
                self._written += _BATCH * _WRITTEN_BYTES


def _forget_where_closures_lie(repository: Path) -> None:
    index = Index(Layout(str(repository)).index)
    with index.env.begin(write=True) as txn:
        txn.drop(index.closures, delete=False)
    index.close()


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``artifact``."""
    command = commands.add_parser(
        "artifact",
        help="fetch an artifact of very many files from a full cache",
        description="Time fetches of one artifact of many files from a cache that evicts. Exit status 1 when a bar is missed.",
    )
    command.add_argument("--files", type=_files, default=_FILES, metavar="N", help="default: %(default)s")
    add_places(command)
    command.set_defaults(command=_run)


def _files(text: str) -> int:
    files = int(text)
    if files <= 0 or files % _FILES_PER_DIRECTORY:
        raise argparse.ArgumentTypeError(f"{text}: a multiple of {_FILES_PER_DIRECTORY} is needed")
    return files


def _run(options: argparse.Namespace) -> int:
    return told(lambda: measure(options.files, options.scratch), options)
