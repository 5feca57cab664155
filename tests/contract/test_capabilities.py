"""``Capabilities``, health, and what the server tells about itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


@pytest.mark.row("versions")
@pytest.mark.parametrize("instance", ["", INSTANCE])
def test_versions_2_0_to_2_12_and_an_explicit_batch_limit(server: LoopbackServer, instance: str) -> None:
    with Client(server.target, instance=instance) as client:
        answer = client.call("GetCapabilities")
    low, high = answer.low_api_version, answer.high_api_version
    assert ((low.major, low.minor), (high.major, high.minor)) == ((2, 0), (2, 12))
    assert answer.cache_capabilities.max_batch_total_size_bytes == 4 * 2**20 - 256 * 2**10


@pytest.mark.row("digest_function")
def test_only_what_works_is_advertised(client: Client) -> None:
    answer = client.call("GetCapabilities")
    cache = answer.cache_capabilities
    assert list(cache.digest_functions) == [re_pb2.DigestFunction.SHA256]
    assert not cache.action_cache_update_capabilities.update_enabled
    assert list(cache.supported_compressors) == list(cache.supported_batch_update_compressors) == []
    assert cache.symlink_absolute_path_strategy == re_pb2.SymlinkAbsolutePathStrategy.ALLOWED
    assert not answer.HasField("execution_capabilities")


def test_every_service_is_healthy(client: Client) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    states = health.List(health_pb2.HealthListRequest()).statuses
    assert {"", "google.bytestream.ByteStream", "build.bazel.remote.asset.v1.Push"} < set(states)
    for service, state in states.items():
        assert health.Check(health_pb2.HealthCheckRequest(service=service)) == state
        assert state.status == health_pb2.HealthCheckResponse.SERVING


def test_who_watches_the_health_hears_of_the_end_and_does_not_hold_it_up(tmp_path: Path) -> None:
    server = LoopbackServer(tmp_path / "repo")
    with Client(server.target) as client:
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 10  # of the 30 s that a running transfer would get
        assert [state.status for state in ended(watch)] in ([], [health_pb2.HealthCheckResponse.NOT_SERVING])


def ended(stream: Iterator[health_pb2.HealthCheckResponse]) -> Iterator[health_pb2.HealthCheckResponse]:
    with contextlib.suppress(grpc.RpcError):
        yield from stream
