"""Whatever arrives at the port, the server answers in a sentence or hangs up, and serves on."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from contract.loopback import LoopbackServer
from contract.rpc_client import Client, message_of, messages, refused
from system.build_site import BuildSite
from system.server_process import Millpond

from millpond.core import limits
from millpond.core.digest import Digest

GARBAGE = {
    "nothing": b"",
    "zeros": bytes(1000),
    "noise": os.urandom(100_000),
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: pond\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + os.urandom(200),
    "half a preface": b"PRI * HTTP/2.0\r\n\r\nSM",
    "a preface and noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(10_000),
    "an endless frame": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(100_000),
    "endless headers": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x40\x00\x09\x00\x00\x00\x00\x01" * 3000,
}


@pytest.fixture(scope="module")
def server(shared_site: BuildSite) -> Millpond:
    return shared_site.server("--enable-push", "--quota", "5G", "--log-level", "info")


@pytest.fixture
def client(server: Millpond) -> Iterator[Client]:
    """A client that, in the end, finds the server at work and its log without a traceback."""
    with Client(f"127.0.0.1:{server.port}") as connected:
        yield connected
    for _ in range(4):  # both workers, most likely
        with Client(f"127.0.0.1:{server.port}") as another:
            assert another.find_missing([]) == []
    assert "Traceback" not in server.stderr
    assert "incident" not in server.stderr
    assert "ended" not in server.stderr  # no worker did


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_on_the_port(server: Millpond, client: Client, garbage: bytes) -> None:
    for _ in range(6):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection, suppress(OSError):
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.5)
            while connection.recv(65536):
                pass


@pytest.mark.parametrize(
    "path",
    [
        "/nobody.knows.This/Service",
        "/google.bytestream.ByteStream/Destroy",
        "/build.bazel.remote.execution.v2.Execution/Execute",
        "/build.bazel.remote.execution.v2.ActionCache/GetActionResult",
        "/",
        "//",
        "/../../etc/passwd",
        "/" + "a" * 8000,
        "/google.bytestream.bytestream/read",
    ],
    ids=lambda path: path[:50],
)
def test_unknown_services_and_methods(client: Client, path: str) -> None:
    for rpc in (client.channel.unary_unary(path), client.channel.unary_stream(path)):
        with refused("UNIMPLEMENTED"):
            answer = rpc(b"\xff" * 100, timeout=20)
            list(answer)


@pytest.mark.parametrize("size_bytes", [limits.RECEIVE_BYTES + 1, 40 * limits.MIB])
def test_oversized_messages(client: Client, size_bytes: int) -> None:
    for name in ("FindMissingBlobs", "BatchUpdateBlobs", "PushBlob", "Read"):
        with refused("RESOURCE_EXHAUSTED"):
            answer = client.rpc(name)(bytes(size_bytes), timeout=20)
            list(answer)
    with refused("RESOURCE_EXHAUSTED"):
        client.rpc("Write")(iter([bytes(size_bytes)]), timeout=20)


@pytest.mark.parametrize("name", ["GetCapabilities", "FindMissingBlobs", "BatchReadBlobs", "FetchBlob", "PushBlob"])
def test_messages_that_are_none(client: Client, name: str) -> None:
    for garbage in (b"\xff", b"\x0a\xff\xff\xff\x7f", b"\x0b" * 5000, b"\x0a\x02\xc3\x28", os.urandom(1000)):
        with pytest.raises(grpc.RpcError) as caught:
            client.rpc(name)(garbage, timeout=20)
        assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


HOSTILE_METADATA = {
    "expired request metadata": [("build.bazel.remote.execution.v2.requestmetadata-bin", b"\xff" * 50)],
    "many": [(f"x-header-{n}", "v") for n in range(200)],
    "a token": [("authorization", "Bearer ../../etc/passwd")],
    "binary": [("x-noise-bin", os.urandom(5_000))],
    "another timeout": [("x-grpc-timeout", "99999999H")],
    "another encoding": [("grpc-accept-encoding", "identity,zstd,\x7e")],
}


@pytest.mark.parametrize("metadata", HOSTILE_METADATA.values(), ids=HOSTILE_METADATA)
def test_metadata_that_means_nothing_here_changes_nothing(client: Client, metadata: list[tuple[str, str]]) -> None:
    assert client.rpc("GetCapabilities")(b"", metadata=metadata, timeout=20).high_api_version.minor == 12


def test_more_metadata_than_a_call_may_have(client: Client) -> None:
    for metadata in ([("x-large", "v" * 40_000)], [(f"x-{n}", "v" * 1_000) for n in range(100)]):
        with refused("RESOURCE_EXHAUSTED", "metadata"):
            client.rpc("GetCapabilities")(b"", metadata=metadata, timeout=20)
    assert client.find_missing([]) == []


def test_far_more_metadata_ends_the_connection(client: Client) -> None:
    with refused("UNAVAILABLE"):
        client.rpc("GetCapabilities")(b"", metadata=[("x-large", "v" * 200_000)], timeout=20)


def test_a_call_whose_time_runs_out_in_the_middle(client: Client) -> None:
    data = os.urandom(3 * limits.MIB)
    name = client.write_name(Digest.of(data))
    over = threading.Event()

    def stops() -> Iterator[object]:
        yield from messages(name, data[: 2 * limits.MIB], finish=False)
        over.wait(20)

    with refused("DEADLINE_EXCEEDED"):
        client.rpc("Write")(stops(), timeout=0.5)
    over.set()
    assert client.upload(data) == len(data)


def test_a_call_compressed_in_every_way_that_grpc_knows(client: Client) -> None:
    for way in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        answer = client.rpc("FindMissingBlobs")(b"\x12\x42\x0a\x40" + b"0" * 64, compression=way, timeout=20)
        assert len(answer.missing_blob_digests) == 1


def test_a_message_that_unpacks_to_more_than_the_limit(client: Client) -> None:
    with refused("RESOURCE_EXHAUSTED"):
        client.rpc("PushBlob")(bytes(200 * limits.MIB), compression=grpc.Compression.Gzip, timeout=60)


# -- uploads ----------------------------------------------------------------------------------------------------------


def test_uploads_that_lie_about_their_size(client: Client) -> None:
    data = os.urandom(2 * limits.MIB)
    digest = Digest.of(data)
    for size in (0, 1, len(data) - 1, len(data) + 1, 10**9):
        with refused("INVALID_ARGUMENT"):
            client.upload(data, client.write_name(Digest(digest.key, size)))
    for size in (10**12, 2**63 - 1):
        with refused("RESOURCE_EXHAUSTED"):
            client.upload(data, client.write_name(Digest(digest.key, size)))
    assert client.upload(data) == len(data)


def test_an_upload_goes_on_whichever_worker_the_new_connection_reaches(server: Millpond, client: Client) -> None:
    data = os.urandom(5 * limits.MIB)
    name, half = client.write_name(Digest.of(data)), 2 * limits.MIB
    over = False

    def half_open() -> Iterator[object]:
        yield from messages(name, data[:half], finish=False)
        while not over:
            time.sleep(0.01)

    def answers() -> set[tuple[int, bool]]:
        found = set()
        for _ in range(8):  # each connection may reach another worker
            with Client(f"127.0.0.1:{server.port}") as another:
                found.add(another.status(name))
        return found

    with Client(f"127.0.0.1:{server.port}") as broken:
        call = broken.rpc("Write").future(half_open(), timeout=60)
        time.sleep(0.5)
        # While the old stream is half open nobody can go on with what it brought.
        assert answers() == {(0, False)}
        with Client(f"127.0.0.1:{server.port}") as impatient, refused("INVALID_ARGUMENT", "begin again at 0"):
            impatient.upload(data, name, offset=half)
        over = True
        call.cancel()
    deadline = time.monotonic() + 10
    while (told := answers()) != {(half, False)}:
        assert time.monotonic() < deadline, told
    with Client(f"127.0.0.1:{server.port}") as again:
        assert again.upload(data, name, offset=half) == len(data)
    assert answers() == {(len(data), True)}
    with Client(f"127.0.0.1:{server.port}") as reader:
        assert reader.read(reader.read_name(Digest.of(data))) == data


def test_uploads_that_never_end_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOAD_STALL_SECONDS", 0.2)
    data = os.urandom(3 * limits.MIB)

    def never_ends(name: str) -> Iterator[object]:
        yield from messages(name, data[: 2 * limits.MIB], finish=False)
        time.sleep(2)

    with LoopbackServer(tmp_path / "repo") as server, Client(server.target) as client:
        names = [client.write_name(Digest.of(data)) for _ in range(10)]
        calls = [client.rpc("Write").future(never_ends(name), timeout=20) for name in names]
        for call in calls:
            with refused("DEADLINE_EXCEEDED", "resume"):
                call.result()
        assert {client.status(name) for name in names} == {(2 * limits.MIB, False)}
        assert client.upload(data, names[0], offset=2 * limits.MIB) == len(data)


# -- bugs of ours -----------------------------------------------------------------------------------------------------

SECRET = "/home/somebody/.ssh/id_rsa is what the bug was about"


def test_of_a_bug_only_a_number_crosses_the_wire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    with LoopbackServer(tmp_path / "repo") as server, Client(server.target) as client:
        (digest,) = client.put(b"before the bug")
        large = os.urandom(2 * limits.MIB)
        client.upload(large)
        for method in ("find_missing", "promise", "read_many", "put_many", "open", "begin_upload", "upload_offset"):
            monkeypatch.setattr(server.cache.blobs, method, bug)
        monkeypatch.setattr(server.cache.names, "resolve", bug)
        failing = [
            lambda: client.find_missing([digest]),
            lambda: client.get([digest]),
            lambda: client.put(b"another"),
            lambda: client.read(client.read_name(digest)),
            lambda: client.read(client.read_name(Digest.of(large))),
            lambda: client.upload(b"another"),
            lambda: client.upload(large + b"another"),
            lambda: client.status(client.write_name(digest)),
            lambda: client.tree(digest),
            lambda: client.call("FetchBlob", uris=["urn:x"]),
            lambda: client.call("PushBlob", uris=["urn:x"], blob_digest=message_of(digest)),
        ]
        told = []
        for call in failing:
            with caplog.at_level(logging.ERROR), pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert SECRET.split()[0] not in repr(caught.value)
            (incident,) = re.findall(r"incident ([0-9a-f]{8})", caught.value.details())
            told.append(incident)
        logged = {found for record in caplog.records for found in re.findall(r"incident ([0-9a-f]{8})", record.message)}
        assert logged == set(told)
        assert len(logged) == len(failing)
        assert caplog.text.count(SECRET) >= len(failing)


def test_uploads_that_stall_do_not_hold_up_the_others(client: Client) -> None:
    """More of them than may have a message in hand at once, each in the middle of its blob."""
    over = threading.Event()

    def stalls(name: str, data: bytes) -> Iterator[object]:
        yield from messages(name, data[: limits.MIB], finish=False)
        over.wait(30)

    blobs = [os.urandom(2 * limits.MIB) for _ in range(3 * limits.MESSAGES_IN_HAND)]
    calls = [client.rpc("Write").future(stalls(client.write_name(Digest.of(blob)), blob), timeout=40) for blob in blobs]
    try:
        honest = os.urandom(5 * limits.MIB)
        assert client.upload(honest) == len(honest)
        assert not any(call.done() for call in calls)
    finally:
        over.set()
        for call in calls:
            call.cancel()
