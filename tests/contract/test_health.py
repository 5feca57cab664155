"""``grpc.health.v1``: what a load balancer believes."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millpond.sockets.places import Place
from millpond.wire.gate import Gate
from millpond.wire.server import EdgeServer


def test_nothing_serves_before_the_repository_is_open() -> None:
    assert asyncio.run(_states_before_and_after()) == ({"NOT_SERVING"}, {"SERVING"})


async def _states_before_and_after() -> tuple[set[str], set[str]]:
    server = EdgeServer(Gate(), index_only=False)
    (port,) = server.start([Place("127.0.0.1", 0, None)])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        before = await _states(channel)
        await server.set_ready()
        after = await _states(channel)
    await server.stop(0)
    return before, after


async def _states(channel: grpc.aio.Channel) -> set[str]:
    """Of the server as a whole and of each service, as Check and as List tell them."""
    health = health_pb2_grpc.HealthStub(channel)
    listed = (await health.List(health_pb2.HealthListRequest())).statuses
    assert "" in listed
    assert "google.bytestream.ByteStream" in listed
    checked = [await health.Check(health_pb2.HealthCheckRequest(service=name)) for name in listed]
    assert checked == list(listed.values())
    return {health_pb2.HealthCheckResponse.ServingStatus.Name(state.status) for state in checked}
