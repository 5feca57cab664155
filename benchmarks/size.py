"""``python -m benchmarks size``: what millions of blobs cost.

Two repositories, a small one and a big one, made by :mod:`benchmarks.big_repository`, each behind a server of its own.
Questions alternate between them, so that a disturbance meets both, and the median counts. The rule: nothing here is
compared with a peer; a big repository is compared with a small one, and start-up and memory with a number.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from benchmarks import facts, messages, processes
from benchmarks.big_repository import BigRepository, content, uri
from benchmarks.calls import CallFailed
from benchmarks.load import CONNECTIONS, Generator, generator_loop
from benchmarks.messages import Digest, UnexpectedAnswer
from benchmarks.servers import PROJECT, STOP_SECONDS, ServerUnavailable
from millpond.store.index import Index
from millpond.store.repository.layout import Layout

SMALL_BLOBS = 20_000
DIGESTS = 10_000
QUESTIONS = 40
CALLS = 1_000
"""Of each small kind when latency is measured, and of each kind before memory is."""
STARTS = 3
WORKERS = 2

FIND_MISSING_AT_MOST = 2.5
SMALL_CALL_AT_MOST = 1.5
READY_AT_MOST_SECONDS = 1.0
REBUILT_AT_MOST_SECONDS_PER_BLOB = 15.0 / 5_000_000
ANONYMOUS_AT_MOST_BYTES = 150_000_000

_LISTENING = re.compile(r"listening on https?://(127\.0\.0\.1:\d+)")
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 16 << 20)]


@dataclass(slots=True)
class Line:
    """One row of the result. ``at_most``: the bar for ``value``, if there is one."""

    what: str
    value: float
    unit: str
    at_most: float | None = None
    note: str = ""

    @property
    def kept(self) -> bool:
        return self.at_most is None or self.value <= self.at_most


@dataclass(slots=True)
class Measured:
    """All of it."""

    blobs: int
    lines: list[Line] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str, at_most: float | None = None, note: str = "") -> None:
        self.lines.append(Line(what, value, unit, at_most, note))
        print(_shown(self.lines[-1]), flush=True)


class Server:
    """Millpond on a repository that stays."""

    def __init__(self, path: Path, log: Path, *options: str) -> None:
        self.path = path
        self._log = log
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self) -> float:
        """Seconds until it said that it listens."""
        begun = time.perf_counter()
        command = [sys.executable, "-m", "millpond", "serve", "--enable-push", "--listen", "127.0.0.1:0"]
        with self._log.open("w") as stderr:
            self._process = subprocess.Popen(
                [*command, "--workers", str(WORKERS), *self._options, str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=PROJECT,
                start_new_session=True,
            )
        assert self._process.stdout
        for line in self._process.stdout:
            if found := _LISTENING.search(line):
                self.address = found[1]
                return time.perf_counter() - begun
        raise ServerUnavailable(f"it did not start:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self._process and processes.stop(self._process, grace_seconds=STOP_SECONDS) != 0:
            raise ServerUnavailable(f"it did not end well:\n{self._log.read_text()[-2000:]}")
        self._process = None

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def anonymous_bytes(self) -> list[int]:
        """RssAnon of each worker (proc(5))."""
        assert self._process
        found = []
        for pid in processes.tree(self._process.pid):
            with contextlib.suppress(FileNotFoundError):
                if b"worker\0worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    (line,) = re.findall(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
                    found.append(int(line) * 1024)
        return found

    def lose_power(self) -> None:
        """After a kill: no index is believed any more that was not left cleanly."""
        self.kill()
        index = Index(Layout(str(self.path)).index)
        with index.env.begin(write=True) as txn:
            txn.delete(b"trust", db=index.state)
        index.close()


# -- what is measured ------------------------------------------------------------------------------------------------


def measure(blobs: int, scratch: Path, made: Path | None) -> Measured:
    """Make what is missing, and measure."""
    measured = Measured(blobs)
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-size-", dir=scratch)))
        big = BigRepository(made or root / "big", blobs)
        small = BigRepository(root / "small", SMALL_BLOBS)
        for repository in (small, big):
            if not repository.path.exists():
                repository.make(lambda text: print(text, file=sys.stderr))
        repositories = (small, big)
        servers = [Server(one.path, root / f"{one.path.name}.log") for one in repositories]
        for server in servers:
            stack.callback(server.kill)
            server.start()  # the first time makes the index
        _start_up(servers, measured)
        _compare(servers, repositories, measured)
        _memory(servers[1], big, measured)
        _after_power_loss(servers[1], measured)
        for server in servers:
            server.stop()
    return measured


def _start_up(servers: Sequence[Server], measured: Measured) -> None:
    small, big = servers
    for how in ("stop", "kill"):
        seconds: dict[Server, list[float]] = {small: [], big: []}
        for _ in range(STARTS):
            for server in servers:
                server.stop() if how == "stop" else server.kill()
                seconds[server].append(server.start())
        note = f"{statistics.median(seconds[small]):.2f} s with {SMALL_BLOBS:,} blobs"
        measured.add(f"ready after a {how}", statistics.median(seconds[big]), "s", READY_AT_MOST_SECONDS, note)


def _after_power_loss(server: Server, measured: Measured) -> None:
    seconds = []
    for _ in range(STARTS):
        server.lose_power()
        seconds.append(server.start())
    at_most = max(READY_AT_MOST_SECONDS, REBUILT_AT_MOST_SECONDS_PER_BLOB * measured.blobs)
    note = "the index is made anew; files are in the page cache"
    measured.add("ready after a power loss", statistics.median(seconds), "s", at_most, note)


def _compare(servers: Sequence[Server], repositories: Sequence[BigRepository], measured: Measured) -> None:
    chance = random.Random(2026)
    with contextlib.ExitStack() as stack:
        channels = [
            stack.enter_context(contextlib.closing(grpc.insecure_channel(server.address, _OPTIONS)))
            for server in servers
        ]
        kinds: list[tuple[str, str, int, float, Callable[[grpc.Channel, BigRepository], float]]] = [
            ("FindMissing of 10,000", "ms", QUESTIONS, FIND_MISSING_AT_MOST, _finding(chance)),
            ("FetchBlob", "ms", CALLS, SMALL_CALL_AT_MOST, _fetching(chance)),
            ("small Read", "ms", CALLS, SMALL_CALL_AT_MOST, _reading(chance)),
        ]
        for what, unit, times, at_most, ask in kinds:
            taken: list[list[float]] = [[], []]
            for _ in range(times):
                for at, (repository, channel) in enumerate(zip(repositories, channels, strict=True)):
                    taken[at].append(ask(channel, repository))
            small, big = (1000 * statistics.median(some[len(some) // 10 :]) for some in taken)
            note = f"{small:.2f} {unit} and {big:.2f} {unit}, p50 of {times} calls by one client"
            measured.add(f"{what}, {measured.blobs:,} over {SMALL_BLOBS:,} blobs", big / small, "times", at_most, note)


def _digest(number: int) -> Digest:
    return Digest.of(content(number))


def _finding(chance: random.Random) -> Callable[[grpc.Channel, BigRepository], float]:
    def ask(channel: grpc.Channel, repository: BigRepository) -> float:
        some = chance.sample(range(repository.blobs), min(DIGESTS, repository.blobs))
        request = messages.find_missing_blobs(map(_digest, some))
        call = channel.unary_unary(messages.FIND_MISSING_BLOBS)
        begun = time.perf_counter()
        answer = call(request, timeout=60)
        taken = time.perf_counter() - begun
        messages.require_missing(answer, 0)
        return taken

    return ask


def _fetching(chance: random.Random) -> Callable[[grpc.Channel, BigRepository], float]:
    """Names that were fetched before: what a build does again and again."""

    def ask(channel: grpc.Channel, repository: BigRepository) -> float:
        number = chance.randrange(repository.names)
        digest, _ = repository.named(number)
        call = channel.unary_unary(messages.FETCH_BLOB)
        request = messages.fetch_blob(uri(number))
        call(request, timeout=60)
        begun = time.perf_counter()
        answer = call(request, timeout=60)
        taken = time.perf_counter() - begun
        messages.require_asset(answer, Digest(digest.hash, digest.size_bytes))
        return taken

    return ask


def _reading(chance: random.Random) -> Callable[[grpc.Channel, BigRepository], float]:
    def ask(channel: grpc.Channel, repository: BigRepository) -> float:
        digest = _digest(chance.randrange(repository.blobs))
        call = channel.unary_stream(messages.READ)
        request = messages.read(digest)
        begun = time.perf_counter()
        answer = list(call(request, timeout=60))
        taken = time.perf_counter() - begun
        messages.require_stream(answer, digest)
        return taken

    return ask


def _memory(server: Server, repository: BigRepository, measured: Measured) -> None:
    """Each kind of request a thousand times, over several connections so that all workers get some."""
    chance = random.Random(2027)

    def some(count: int) -> list[Digest]:
        return [_digest(chance.randrange(repository.blobs)) for _ in range(count)]

    fresh = iter(range(10**12, 10**13))
    with generator_loop() as runner, Generator(server.address, None, runner) as load:
        questions = [messages.find_missing_blobs(some(DIGESTS)) for _ in range(20)]
        load.unary(messages.FIND_MISSING_BLOBS, (questions * (CALLS // 20))[:CALLS], in_flight=2 * CONNECTIONS)
        kinds: list[tuple[str, Callable[[], bytes]]] = [
            (messages.GET_CAPABILITIES, bytes),
            (messages.BATCH_READ_BLOBS, lambda: messages.batch_read_blobs(some(100))),
            (messages.BATCH_UPDATE_BLOBS, lambda: b"".join(_item(content(next(fresh))) for _ in range(100))),
            (messages.PUSH_BLOB, lambda: messages.push_blob(uri(next(fresh)), *_two(some(2)))),
            (messages.FETCH_BLOB, lambda: messages.fetch_blob(uri(chance.randrange(repository.names)))),
        ]
        for method, request in kinds:
            load.unary(method, [request() for _ in range(CALLS)], in_flight=4 * CONNECTIONS)
        load.read([messages.read(digest) for digest in some(CALLS)], in_flight=4 * CONNECTIONS, keep=False)
        contents = [content(next(fresh)) for _ in range(CALLS)]
        uploads = [messages.write(Digest.of(data), data, chunk_bytes=1 << 20) for data in contents]
        load.write(uploads, in_flight=4 * CONNECTIONS)
    each = server.anonymous_bytes()
    note = f"RssAnon after {CALLS} requests of each kind: " + ", ".join(f"{one / 1e6:.0f} MB" for one in each)
    measured.add("memory of a worker", max(each), "B", ANONYMOUS_AT_MOST_BYTES, note)


def _item(data: bytes) -> bytes:
    return messages.batch_update_item(Digest.of(data), data)


def _two(digests: list[Digest]) -> tuple[Digest, list[Digest]]:
    return digests[0], digests[1:]


# -- the command -----------------------------------------------------------------------------------------------------


def _shown(line: Line) -> str:
    value = f"{line.value / 1e6:.0f} MB" if line.unit == "B" else f"{line.value:.2f} {line.unit}"
    bar = (
        ""
        if line.at_most is None
        else f"(bar {line.at_most / 1e6:.0f} MB)"
        if line.unit == "B"
        else f"(bar {line.at_most:.2f})"
    )
    return f"{'  ' if line.kept else '! '}{line.what:45} {value:>12} {bar:14} {line.note}".rstrip()


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``size``."""
    command = commands.add_parser(
        "size",
        help="what millions of blobs cost: start-up, look-ups and memory, against a small repository",
        description="Make a repository of N small blobs and measure start-up, look-ups and memory; exit status 1 when a bar is"
        " not kept. Five million take some minutes, 3 GB of disk and 2 GB of memory.",
    )
    command.add_argument("--blobs", type=int, default=5_000_000, metavar="N", help="default: %(default)s")
    command.add_argument("--repository", type=Path, metavar="DIR", help="keep the big one here; made when missing")
    add_places(command)
    command.set_defaults(command=run)


def add_places(command: argparse.ArgumentParser) -> None:
    """Where a repository is made, and where the result is written."""
    command.add_argument("--output", type=Path, metavar="FILE", help="write a JSON of it")
    command.add_argument(
        "--scratch", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR", help="default: %(default)s"
    )


def run(options: argparse.Namespace) -> int:
    return told(lambda: measure(options.blobs, options.scratch, options.repository), options)


def told(measuring: Callable[[], Measured], options: argparse.Namespace) -> int:
    """Measure, write what was asked for, and the exit status."""
    try:
        measured = measuring()
    except (grpc.RpcError, CallFailed, OSError) as error:
        raise UnexpectedAnswer(str(error) or "it took too long") from error
    if options.output:
        lines = [
            {"what": line.what, "value": line.value, "unit": line.unit, "at_most": line.at_most, "note": line.note}
            for line in measured.lines
        ]
        document = {"blobs": measured.blobs, "machine": facts.machine(options.scratch), "lines": lines}
        options.output.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if all(line.kept for line in measured.lines) else 1
