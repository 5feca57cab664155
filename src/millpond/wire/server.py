"""The gRPC server of one worker: options, listeners, health, reflection, drain."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from millpond.core import limits
from millpond.wire.calling import Caller
from millpond.wire.gate import Gate
from millpond.wire.services import generic_handlers, rpcs

# https://grpc.github.io/grpc/core/group__grpc__arg__keys.html names and explains each.
_OPTIONS = [
    ("grpc.so_reuseport", 1),
    ("grpc.max_receive_message_length", limits.RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", limits.STREAMS_PER_CONNECTION),
    ("grpc.max_metadata_size", limits.METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * limits.METADATA_BYTES),
    # Windows that grow by themselves would hold megabytes for every upload; a fixed one fills a fast network as well.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", limits.STREAM_WINDOW_BYTES),
    # What is read from a socket at once is kept until the last message in it is gone.
    ("grpc.experimental.tcp_max_read_chunk_size", limits.SOCKET_READ_BYTES),
    # A client that pings is a client behind a balancer that drops silent connections: never punish it.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", limits.PING_INTERVAL_MS),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: ``host:port`` as gRPC writes it, and with which credentials (None: plaintext)."""

    target: str
    credentials: grpc.ServerCredentials | None


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """grpcio's, which is healthy from the first moment and lacks an RPC (that would end in a traceback in the log).

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


class EdgeServer:
    """One worker's gRPC server."""

    def __init__(self, gate: Gate, *, index_only: bool) -> None:
        self._caller = Caller()
        self._table = rpcs(gate, self._caller, index_only=index_only)
        self._server = grpc.aio.server(options=_OPTIONS, interceptors=gate.guards)
        self._server.add_generic_rpc_handlers(tuple(generic_handlers(self._table)))
        self._names = sorted({rpc.service for rpc in self._table})
        self._health = _Health(self._names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)

    async def start(self, addresses: Sequence[Address], on_bound: Callable[[int], None] | None = None) -> None:
        """Listen. Calls are answered UNAVAILABLE until the gate is opened.

        Raises:
            RuntimeError: an address cannot be bound.
        """
        for address in addresses:
            if address.credentials is None:
                port = self._server.add_insecure_port(address.target)
            else:
                port = self._server.add_secure_port(address.target, address.credentials)
            if on_bound is not None:
                on_bound(port)
        await self._server.start()

    async def set_ready(self) -> None:
        """Tell health checkers that all services serve."""
        for name in ["", *self._names]:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_seconds: float) -> None:
        """GOAWAY to everybody at once; running calls get ``grace_seconds`` to end."""
        await self._health.end_watches()
        await self._server.stop(grace_seconds)
        self._caller.close()
