"""The gRPC server of one worker: listeners, health, reflection, drain."""

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from millpond.core import limits
from millpond.core.seldom import Seldom
from millpond.sockets.accepting import accept, connect
from millpond.sockets.places import Place, Tls, listen
from millpond.sockets.tls import CertificateRefused
from millpond.wire.calling import Caller
from millpond.wire.connection import Connection, Shared
from millpond.wire.foreign import Registry
from millpond.wire.gate import Gate
from millpond.wire.rpc import Rpc
from millpond.wire.services import rpcs

_LOG = logging.getLogger(__name__)
_SELDOM = Seldom(_LOG)
_LOOK_SECONDS = limits.UPLOAD_STALL_SECONDS / 2
_INFLOW_LOOK_SECONDS = limits.MESSAGE_PATIENCE_SECONDS
_LAST_WORDS_SECONDS = 2.0
"""What is sent when the time for draining is over gets so long to leave."""


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """grpcio's, which is healthy from the first moment and lacks an RPC.

    Here nothing serves until it is said to.
    """

    def __init__(self, services: Iterable[str]) -> None:
        super().__init__()
        self._watches: set[asyncio.Future[None]] = set()
        self._server_status = dict.fromkeys(["", *services], health_pb2.HealthCheckResponse.NOT_SERVING)

    async def Watch(self, request: object, context: object) -> None:  # noqa: N802
        """The state of a service, whenever it changes, until the server stops."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
            if not watch.cancelled():
                watch.result()  # its failure is the call's
        finally:
            self._watches.discard(watch)
            watch.cancel()

    async def end_watches(self) -> None:
        """Let go of everybody who watches: they would hold up the drain."""
        await self.enter_graceful_shutdown()
        await asyncio.sleep(0)  # the last state is on its way
        for watch in list(self._watches):
            watch.cancel()

    async def List(self, request: object, context: object) -> health_pb2.HealthListResponse:  # noqa: ARG002, N802
        """The state of every service."""
        states = {name: health_pb2.HealthCheckResponse(status=state) for name, state in self._server_status.items()}
        return health_pb2.HealthListResponse(statuses=states)


def _safely(connection: Connection, do: Callable[[], None]) -> None:
    """What goes wrong with one connection is that one's end, and not that of what is done with the others."""
    try:
        do()
    except Exception:
        _LOG.exception("a bug in this server ended a connection of %s", connection.peer)
        connection.lose()


class EdgeServer:
    """One worker's gRPC server. For one event loop."""

    def __init__(self, gate: Gate, *, index_only: bool) -> None:
        self._caller = Caller()
        table = rpcs(gate, self._caller, index_only=index_only)
        self._names = sorted({rpc.service for rpc in table})
        self._health = _Health(self._names)
        registry = Registry()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registry)
        served = [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(served), registry)
        self.rpcs: list[Rpc] = table + registry.rpcs
        self._shared = Shared({rpc.path: rpc for rpc in self.rpcs})
        self._listening: list[socket.socket] = []
        self._busy: list[asyncio.Task[None]] = []
        self._greeting: set[asyncio.Task[None]] = set()

    def start(self, places: Sequence[Place]) -> list[int]:
        """Listen; the ports. Calls are answered UNAVAILABLE until the gate is opened.

        Raises:
            OSError: an address cannot be listened on.
        """
        ports = []
        for place in places:
            listening = listen(place)
            self._listening.append(listening)
            self._busy.append(asyncio.create_task(accept(listening, functools.partial(self._take, place.tls))))
            ports.append(int(listening.getsockname()[1]))
        self._busy += [asyncio.create_task(self._look()), asyncio.create_task(self._look_at_inflow())]
        return ports

    async def set_ready(self) -> None:
        """Tell health checkers that all services serve."""
        for name in ["", *self._names]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """GOAWAY to everybody at once; running calls get ``grace_seconds`` to end, and those that do not are told why."""
        await self._health.end_watches()
        for task in (*self._busy, *self._greeting):
            task.cancel()
        await asyncio.gather(*self._busy, *self._greeting, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        for connection in list(self._shared.connections):
            _safely(connection, connection.drain)
        if not await self._are_gone(grace_seconds):
            for connection in list(self._shared.connections):
                _safely(connection, connection.end)
            await self._are_gone(_LAST_WORDS_SECONDS)
        for connection in list(self._shared.connections):
            connection.lose()
        # What they began in threads is seen through: an interrupted upload is put away.
        if self._shared.running:
            await asyncio.wait(list(self._shared.running), timeout=grace_seconds or None)
        self._caller.close()

    async def _are_gone(self, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._shared.connections:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def _take(self, tls: Tls | None, accepted: socket.socket) -> None:
        greeting = asyncio.create_task(self._greet(tls, accepted))
        self._greeting.add(greeting)
        greeting.add_done_callback(self._greeting.discard)

    async def _greet(self, tls: Tls | None, accepted: socket.socket) -> None:
        connection = Connection(self._shared, None if tls is None else tls.identify)
        peer = "?"
        if tls is not None:
            with suppress(OSError):  # gone already
                peer = accepted.getpeername()[0]
        try:
            await connect(connection, accepted, tls, handshake_seconds=limits.HANDSHAKE_SECONDS)
        except CertificateRefused as error:
            sentence = f"a client certificate from {peer} was refused: {error}"
            _SELDOM.say(logging.WARNING, "stranger", sentence)
        except OSError as error:
            _LOG.debug("a handshake with %s failed: %r", peer, error)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for connection in list(self._shared.connections):
                _safely(connection, connection.look)

    async def _look_at_inflow(self) -> None:
        while True:
            await asyncio.sleep(_INFLOW_LOOK_SECONDS)
            self._shared.inflow.look()
