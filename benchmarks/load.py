"""The load generator: callers on one event loop, each with one call at a time, over several connections.

It should cost so little beside a server that the server is what is measured. Calls are made by :mod:`benchmarks.calls`, and
what an answer sets off, down to the next request, is done where it was read. An empty call of 32 at a time costs 6 to 8 us of
CPU here; with ``grpc.aio`` and uvloop, which was the generator before, it was 35 to 40, more than any server takes, so that on
two cores one worker and the generator left no room for a second worker. Blocking calls from threads cost more again.

How many callers and connections: on a machine with two cores, buildbox-casd answered 22 000 empty calls per second of 8 callers
over four connections, 26 000 of 16, 31 000 of 32, 64 or 128; over eight connections 39 000 of 32 and no more of 64. Fetches
and small reads became a fifth more from 32 to 128 callers, and Millpond's as well. So: 32 callers and four connections, as
many as a team has machines. (One connection would reach only one of several workers.)

The same generator, with the same settings, loads every server.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import ssl
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import uvloop

from benchmarks import messages, openings, processes
from benchmarks.calls import Answered, CallFailed, Connection, Pieces, messages_in
from benchmarks.keys import Keys

CONNECTIONS = 4
# A phase that takes longer than this is broken, not slow.
PHASE_SECONDS = 300.0

Answer = TypeVar("Answer")
Send = Callable[[int, Any, Answered], None]
"""Sends a request for a caller, who is a number."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What came back, in the order of the requests, and how long all of it took."""

    seconds: float
    answers: list[Any]


def generator_loop() -> asyncio.Runner:
    """The event loop that the generators of several servers share; only one of them works at a time."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


class Generator:
    """Open connections to one server."""

    def __init__(
        self, address: str, keys: Keys | None, runner: asyncio.Runner, *, pid: int = 0, workers: int = 1
    ) -> None:
        """With ``keys``: over TLS, with a client certificate. ``runner``: see :func:`generator_loop`.

        ``pid``, ``workers``: of the server; each of several workers gets as many of the connections as the others.
        """
        self._address = address
        self._pid, self._workers = pid, workers
        self._tls = None if keys is None else _tls(keys)
        self._runner = runner
        self._connections: list[Connection] = []

    def __enter__(self) -> Generator:
        self._run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._disconnect())

    def unary(self, method: str, requests: Sequence[bytes], *, in_flight: int) -> Timed:
        """One answer per request."""
        return _each(_only, self._timed(self._all(requests, in_flight, _in_turn(self._connections, method))))

    def read(self, requests: Sequence[bytes], *, in_flight: int, keep: bool) -> Timed:
        """ByteStream.Read; each answer is the list of messages, or with ``keep=False`` their total size only."""
        send = _in_turn(self._connections, messages.READ, keep=keep)
        return _each(messages_in if keep else sum, self._timed(self._all(requests, in_flight, send)))

    def write(self, uploads: Sequence[Sequence[bytes]], *, in_flight: int) -> Timed:
        """ByteStream.Write, one stream per upload."""
        return _each(_only, self._timed(self._all(uploads, in_flight, _in_turn(self._connections, messages.WRITE))))

    def write_while_reading(
        self, updates: Sequence[bytes], reads: Sequence[bytes], *, writers: int, reads_per_second: int
    ) -> tuple[Timed, list[float]]:
        """BatchUpdateBlobs by ``writers`` callers; meanwhile small reads at a steady pace, and how long each took.

        A read's clock starts when it was due, not when it was sent: one that waits delays no other and hides nothing.
        The reader has a connection of its own.
        """
        reader, *others = self._connections
        update = _in_turn(others, messages.BATCH_UPDATE_BLOBS)
        latencies: list[float] = []
        failed: list[Pieces | CallFailed] = []
        is_over = False

        def answered(due: float, one: asyncio.Future[None], answer: Pieces | CallFailed) -> None:
            latencies.append(time.perf_counter() - due)
            if not answer or isinstance(answer, CallFailed):
                failed.append(answer)
            if not one.done():
                one.set_result(None)

        async def read() -> None:
            begin = time.perf_counter()
            asked: list[asyncio.Future[None]] = []
            for number in itertools.count():
                due = begin + number / reads_per_second
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if is_over:
                    break
                one: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                asked.append(one)
                reader.ask(messages.READ, reads[number % len(reads)], partial(answered, due, one))
            await asyncio.gather(*asked)  # the slowest count as well

        async def both() -> Timed:
            nonlocal is_over
            reading = asyncio.create_task(read())
            try:
                return await self._all(updates, writers, update)
            finally:
                is_over = True
                await reading

        timed = _each(_only, self._run(both()))
        if failed:
            raise messages.UnexpectedAnswer(f"{len(failed)} reads were answered with nothing, the first: {failed[0]!r}")
        return timed, latencies

    def open(self, methods: Sequence[str], count: int, *, in_flight: int) -> Timed:
        """A new connection, an empty call of each method after the other, and a close, ``count`` times.

        An answer is the list of the calls' status codes.
        """
        if self._tls is None:
            with _no_garbage_collected():
                seconds, codes = openings.visit(
                    self._address, methods, count, in_flight=in_flight, seconds=PHASE_SECONDS
                )
            return Timed(seconds, codes)
        answers: list[Any] = [None] * count
        waiting = iter(range(count))

        async def visitor() -> None:
            for at in waiting:
                connection = await Connection.to(self._address, self._tls)
                answers[at] = [_code(answer) for answer in await connection.calls(methods)]
                connection.close()

        async def visits() -> Timed:
            begin = time.perf_counter()
            await asyncio.gather(*(visitor() for _ in range(in_flight)))
            return Timed(time.perf_counter() - begin, answers)

        return self._timed(visits())

    async def _connect(self) -> None:
        owners: list[int] = []
        while len(self._connections) < CONNECTIONS:
            connection, owner = await self._connected()
            placed = len(owners)
            is_next = owner not in owners if placed < self._workers else owner == owners[placed - self._workers]
            if is_next:
                self._connections.append(connection)
                owners.append(owner)
            else:  # which worker it meets is a hash of its port: another one meets another
                connection.close()

    async def _connected(self) -> tuple[Connection, int]:
        """A connection and the process that has it; of a server of one worker it is not asked."""
        if self._workers == 1:
            return await Connection.to(self._address, self._tls), self._pid
        port = int(self._address.rpartition(":")[2])
        before = processes.connections(self._pid, port)
        connection = await Connection.to(self._address, self._tls)
        ((owner, _),) = processes.connections(self._pid, port) - before
        return connection, owner

    async def _disconnect(self) -> None:
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self._runner.run(asyncio.wait_for(work, PHASE_SECONDS))

    def _timed(self, work: Coroutine[Any, Any, Timed]) -> Timed:
        with _no_garbage_collected():
            return self._run(work)

    async def _all(self, requests: Sequence[Any], in_flight: int, send: Send) -> Timed:
        """``in_flight`` callers, each with one call at a time, until all ``requests`` are answered.

        Raises:
            CallFailed: one was not.
        """
        answers: list[Any] = [None] * len(requests)
        waiting = iter(range(len(requests)))
        unanswered = len(requests)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go_on(caller: int) -> None:
            if (at := next(waiting, None)) is not None:
                send(caller, requests[at], partial(answered, caller, at))

        def answered(caller: int, at: int, answer: Pieces | CallFailed) -> None:
            nonlocal unanswered
            answers[at] = answer
            unanswered -= 1
            if over.done():
                return
            if isinstance(answer, CallFailed):
                over.set_exception(answer)
            elif unanswered:
                go_on(caller)
            else:
                over.set_result(None)

        begin = time.perf_counter()
        for number in range(in_flight):
            go_on(number)
        await over
        return Timed(time.perf_counter() - begin, answers)


@contextlib.contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Its collection is nobody's work that is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _tls(keys: Keys) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=keys.server_cert)
    context.load_cert_chain(keys.client_cert, keys.client_key)
    context.set_alpn_protocols(["h2"])
    return context


def _in_turn(connections: Sequence[Connection], method: str, *, keep: bool = True) -> Send:
    """Each caller has one of ``connections``. Without ``keep`` an answer's pieces are their sizes."""

    def send(caller: int, request: Any, answered: Answered) -> None:
        connections[caller % len(connections)].ask(method, request, answered, keep=keep)

    return send


def _each(what: Callable[[Any], Any], timed: Timed) -> Timed:
    return Timed(timed.seconds, [what(answer) for answer in timed.answers])


def _only(pieces: Pieces) -> bytes:
    found = messages_in(pieces)
    if len(found) != 1:
        raise messages.UnexpectedAnswer(f"a call was answered with {len(found)} messages")
    return found[0]


def _code(answer: Pieces | CallFailed) -> str:
    return answer.code if isinstance(answer, CallFailed) else "OK"
