"""The load generator: raw bytes through ``grpc.aio``, several calls in flight over several connections.

What was tried, against buildbox-casd on a machine with two cores (empty calls per second, the best of each):
blocking calls from 32 threads 6 700; two such processes 6 900; futures from one thread 5 400; ``grpc.aio`` with asyncio's
own loop 10 700; with uvloop 12 400 to 14 200; two processes of that 12 000 to 14 900, no better within the noise and one
more contender for two cores. So: one process, ``grpc.aio``, uvloop. More than 32 calls in flight and more than four
connections gave it nothing more. (One connection is as good as four, but reaches only one of several workers.)
FindMissingBlobs of 10 000 digests: 60 to 69 calls per second whatever the generator, so the server is the limit.

The same generator, with the same settings, loads every server.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
import uvloop

from benchmarks import messages, processes
from benchmarks.keys import Keys

CONNECTIONS = 4
# A phase that takes longer than this is broken, not slow.
PHASE_SECONDS = 300.0

Answer = TypeVar("Answer")

_OPTIONS = [
    # Otherwise channels to one address share one connection, and with it one worker of the server.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # The name in the certificate, whatever the address.
    ("grpc.ssl_target_name_override", "localhost"),
]


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
        self._credentials = keys and grpc.ssl_channel_credentials(
            root_certificates=keys.server_cert.read_bytes(),
            private_key=keys.client_key.read_bytes(),
            certificate_chain=keys.client_cert.read_bytes(),
        )
        self._runner = runner
        self._channels: list[grpc.aio.Channel] = []

    def __enter__(self) -> Generator:
        self._run(self._connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._disconnect())

    def unary(self, method: str, requests: Sequence[bytes], *, in_flight: int) -> Timed:
        """One answer per request."""
        calls = [channel.unary_unary(method) for channel in self._channels]
        return self._timed(requests, in_flight, lambda caller, request: calls[caller % len(calls)](request))

    def read(self, requests: Sequence[bytes], *, in_flight: int, keep: bool) -> Timed:
        """ByteStream.Read; each answer is the list of messages, or with ``keep=False`` their total size only."""
        calls = [channel.unary_stream(messages.READ) for channel in self._channels]

        async def kept(caller: int, request: bytes) -> list[bytes]:
            return [message async for message in calls[caller % len(calls)](request)]

        async def counted(caller: int, request: bytes) -> int:
            total_bytes = 0
            async for message in calls[caller % len(calls)](request):
                total_bytes += len(message)
            return total_bytes

        return self._timed(requests, in_flight, kept if keep else counted)

    def write(self, uploads: Sequence[Sequence[bytes]], *, in_flight: int) -> Timed:
        """ByteStream.Write, one stream per upload."""
        calls = [channel.stream_unary(messages.WRITE) for channel in self._channels]
        return self._timed(uploads, in_flight, lambda caller, upload: calls[caller % len(calls)](iter(upload)))

    def write_while_reading(
        self, updates: Sequence[bytes], reads: Sequence[bytes], *, writers: int, reads_per_second: int
    ) -> tuple[Timed, list[float]]:
        """BatchUpdateBlobs by ``writers`` callers; meanwhile small reads at a steady pace, and how long each took.

        A read's clock starts when it was due, not when it was sent: one that waits delays no other and hides nothing.
        The reader has a connection of its own.
        """
        update = [channel.unary_unary(messages.BATCH_UPDATE_BLOBS) for channel in self._channels[1:]]
        read = self._channels[0].unary_stream(messages.READ)
        latencies: list[float] = []
        done = asyncio.Event()

        async def one(due: float, request: bytes) -> None:
            answer = [message async for message in read(request)]
            latencies.append(time.perf_counter() - due)
            if not answer:
                raise messages.UnexpectedAnswer("a read was answered with nothing")

        async def reader() -> None:
            begin = time.perf_counter()
            async with asyncio.TaskGroup() as calls:
                for number in itertools.count():
                    due = begin + number / reads_per_second
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    if done.is_set():
                        return
                    calls.create_task(one(due, reads[number % len(reads)]))

        async def write() -> Timed:
            try:
                return await self._all(updates, writers, partial(_in_turn, update))
            finally:
                done.set()

        async def both() -> Timed:
            timed, _ = await asyncio.gather(write(), reader())
            return timed

        return self._run(both()), latencies

    def open(self, methods: Sequence[str], count: int, *, in_flight: int) -> Timed:
        """A new connection, an empty call of each method after the other, and a close, ``count`` times.

        An answer is the list of the calls' status codes.
        """

        async def visit(_caller: int, request: bytes) -> list[str]:
            async with self._channel() as channel:
                return [await _code(channel.unary_unary(method)(request)) for method in methods]

        return self._timed([b""] * count, in_flight, visit)

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        return grpc.aio.secure_channel(self._address, self._credentials, options=_OPTIONS)

    async def _connect(self) -> None:
        owners: list[int] = []
        while len(self._channels) < CONNECTIONS:
            channel, owner = await self._connected()
            placed = len(owners)
            is_next = owner not in owners if placed < self._workers else owner == owners[placed - self._workers]
            if is_next:
                self._channels.append(channel)
                owners.append(owner)
            else:  # which worker it meets is a hash of its port: another one meets another
                await channel.close()

    async def _connected(self) -> tuple[grpc.aio.Channel, int]:
        """A connection and the process that has it; of a server of one worker it is not asked."""
        channel = self._channel()
        if self._workers == 1:
            await channel.channel_ready()
            return channel, self._pid
        port = int(self._address.rpartition(":")[2])
        before = processes.connections(self._pid, port)
        await channel.channel_ready()
        ((owner, _),) = processes.connections(self._pid, port) - before
        return channel, owner

    async def _disconnect(self) -> None:
        for channel in self._channels:
            await channel.close()

    def _run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return self._runner.run(asyncio.wait_for(work, PHASE_SECONDS))

    def _timed(self, requests: Sequence[Any], in_flight: int, send: Callable[[int, Any], Awaitable[Any]]) -> Timed:
        """``in_flight`` callers, each with one call at a time, until all ``requests`` are answered."""
        gc.collect()
        gc.disable()
        try:
            return self._run(self._all(requests, in_flight, send))
        finally:
            gc.enable()

    async def _all(self, requests: Sequence[Any], in_flight: int, send: Callable[[int, Any], Awaitable[Any]]) -> Timed:
        answers: list[Any] = [None] * len(requests)
        waiting = iter(range(len(requests)))

        async def caller(number: int) -> None:
            for at in waiting:
                answers[at] = await send(number, requests[at])

        begin = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(in_flight)))
        return Timed(time.perf_counter() - begin, answers)


async def _code(call: Any) -> str:
    try:
        await call
    except grpc.RpcError as refusal:
        return str(refusal.code().name)
    return "OK"


def _in_turn(calls: Sequence[Callable[[Any], Awaitable[Any]]], caller: int, request: Any) -> Awaitable[Any]:
    return calls[caller % len(calls)](request)
