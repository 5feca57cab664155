"""HTTP/2 as gRPC uses it, beside what gRPC clients can be made to say."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import ngh2
import pytest
from contract.bare_http2 import BarePeer, framed
from contract.loopback import LoopbackServer
from contract.rpc_client import Client

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.wire.inflow import Inflow
from millpond.wire.layout import WriteMessage
from millpond.wire.receiving import Receiver

CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
FIND_MISSING = "/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"
READ = "/google.bytestream.ByteStream/Read"
WRITE = "/google.bytestream.ByteStream/Write"


def code(peer: BarePeer, stream: int) -> str:
    number = int(peer.fields(stream)[b"grpc-status"])
    return next(status.name for status in grpc.StatusCode if status.value[0] == number)


@pytest.fixture
def blob(server: LoopbackServer) -> tuple[str, bytes]:
    """A blob of 4 MiB, and how it is read."""
    data = bytes(range(256)) * (4 * limits.MIB // 256)
    with Client(server.target) as client:
        client.upload(data)
        name = client.read_name(Digest.of(data))
    return name, data


def test_a_call_is_answered_as_grpc_wants_it(server: LoopbackServer) -> None:
    with BarePeer(server.port) as peer:
        fields = peer.fields(stream := peer.call(CAPABILITIES))
        assert fields[b":status"] == b"200"
        assert fields[b"content-type"] == b"application/grpc"
        assert fields[b"grpc-status"] == b"0"
        data = peer.data(stream)
        assert (data[0], int.from_bytes(data[1:5])) == (0, len(data) - 5)


def test_many_calls_share_a_connection(server: LoopbackServer) -> None:
    with BarePeer(server.port) as peer:
        streams = [peer.call(FIND_MISSING) for _ in range(200)]
        assert {code(peer, stream) for stream in streams} == {"OK"}


def test_a_message_may_come_byte_by_byte(server: LoopbackServer) -> None:
    with BarePeer(server.port) as peer:
        stream = peer.begin(CAPABILITIES)
        for byte in framed(b"\x0a\x00"):
            peer.send(stream, bytes([byte]))
        peer.send(stream, b"", end=True)
        assert code(peer, stream) == "OK"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"method": b"GET"}, b"405"),
        ({"content_type": b"text/html"}, b"415"),
        ({"content_type": b"application/grpc+proto"}, b"200"),
    ],
    ids=str,
)
def test_what_is_not_grpc_is_answered_as_http(server: LoopbackServer, headers: dict[str, bytes], status: bytes) -> None:
    with BarePeer(server.port) as peer:
        assert peer.fields(peer.call(CAPABILITIES, **headers))[b":status"] == status
        assert code(peer, peer.call(CAPABILITIES)) == "OK"


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        (b"", "UNIMPLEMENTED"),  # gRPC's statuscodes.md: a method that requires exactly one request
        (framed(b"") * 2, "UNIMPLEMENTED"),
        (framed(b"")[:3], "INVALID_ARGUMENT"),
        (framed(b"abc")[:-1], "INVALID_ARGUMENT"),
        (b"\1" + framed(b"abc")[1:], "INTERNAL"),
        (b"\0\xff\xff\xff\xff", "RESOURCE_EXHAUSTED"),
    ],
    ids=repr,
)
def test_requests_that_are_not_one_message(server: LoopbackServer, sent: bytes, outcome: str) -> None:
    with BarePeer(server.port) as peer:
        stream = peer.begin(CAPABILITIES)
        peer.send(stream, sent, end=True)
        assert code(peer, stream) == outcome
        assert code(peer, peer.call(CAPABILITIES)) == "OK"


@pytest.mark.parametrize(
    ("field", "value", "outcome"),
    [
        (b"grpc-encoding", b"zstd", "UNIMPLEMENTED"),
        (b"grpc-encoding", b"gzip", "OK"),
        (b"grpc-timeout", b"soon", "INTERNAL"),
        (b"grpc-timeout", b"10S", "OK"),
        (b"grpc-timeout", b"0n", "DEADLINE_EXCEEDED"),
    ],
)
def test_what_a_call_says_of_itself(server: LoopbackServer, field: bytes, value: bytes, outcome: str) -> None:
    with BarePeer(server.port) as peer:
        stream = peer.begin(CAPABILITIES, fields=[(field, value)])
        time.sleep(0.05)
        packed = gzip.compress(b"")
        if value == b"gzip":
            peer.send(stream, b"\1" + len(packed).to_bytes(4) + packed, end=True)
        elif outcome != "DEADLINE_EXCEEDED":
            peer.send(stream, framed(b""), end=True)
        assert code(peer, stream) == outcome


def test_who_is_refused_is_told_not_to_go_on(server: LoopbackServer) -> None:
    """RFC 9113 §8.1: the answer is whole, and the rest of the request is not wanted."""
    with BarePeer(server.port) as peer:
        stream = peer.begin("/nobody.knows.This/Method")
        assert code(peer, stream) == "UNIMPLEMENTED"
        (reset,) = peer.of(stream, ngh2.StreamReset)
        assert reset.error_code == ngh2.ErrorCode.NO_ERROR  # type: ignore[attr-defined]
        assert code(peer, peer.call(CAPABILITIES)) == "OK"


def test_an_answer_waits_for_its_peer_and_takes_little_memory_meanwhile(
    server: LoopbackServer, blob: tuple[str, bytes]
) -> None:
    name, data = blob
    request = bytestream_pb2.ReadRequest(resource_name=name).SerializeToString()
    with BarePeer(server.port, auto_window_update=False) as slow, BarePeer(server.port) as quick:
        stream = slow.call(READ, request)
        assert not slow.until(lambda: len(slow.data(stream)) > 70_000, seconds=0.5)  # its window
        assert len(slow.data(stream)) > 60_000
        answered = quick.call(READ, request)
        assert code(quick, answered) == "OK"
        (connection,) = [one for one in server.connections() if one._calls]
        assert connection._h2.queued_body_size() < limits.UNSENT_BYTES + 2 * limits.CHUNK_BYTES
        acknowledged = 0
        while not slow.of(stream, ngh2.StreamClosed):
            came = len(slow.data(stream))
            if came > acknowledged:
                slow.h2.acknowledge_received_data(came - acknowledged, stream)
                acknowledged = came
                slow.flush()
            before = came
            assert slow.until(
                lambda before=before: len(slow.data(stream)) > before or bool(slow.of(stream, ngh2.StreamClosed))  # type: ignore[misc]
            )
        content = b""
        rest = slow.data(stream)
        while rest:
            size = int.from_bytes(rest[1:5])
            content += bytestream_pb2.ReadResponse.FromString(rest[5 : 5 + size]).data
            rest = rest[5 + size :]
        assert content == data


def test_further_requests_of_a_peer_that_takes_nothing_wait(
    server: LoopbackServer, blob: tuple[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNSENT_PER_CONNECTION_BYTES", 100_000)
    request = bytestream_pb2.ReadRequest(resource_name=blob[0]).SerializeToString()
    with BarePeer(server.port, auto_window_update=False) as peer:
        stalled = peer.call(READ, request)
        peer.until(lambda: len(peer.data(stalled)) > 60_000)
        waits = peer.call(CAPABILITIES)
        assert not peer.until(lambda: bool(peer.of(waits, ngh2.StreamClosed)), seconds=0.5)
        peer.h2.reset_stream(stalled)
        peer.h2.acknowledge_received_data(len(peer.data(stalled)), stalled)  # of the connection's window
        peer.flush()
        assert code(peer, waits) == "OK"


def test_who_takes_nothing_for_long_is_let_go_of(server: LoopbackServer, blob: tuple[str, bytes]) -> None:
    request = bytestream_pb2.ReadRequest(resource_name=blob[0]).SerializeToString()
    with BarePeer(server.port, auto_window_update=False) as peer, BarePeer(server.port) as other:
        stream = peer.call(READ, request)
        peer.until(lambda: len(peer.data(stream)) > 60_000)
        for _ in range(3):
            server.look()
        assert peer.is_cut()
        assert code(other, other.call(CAPABILITIES)) == "OK"


def test_who_does_not_say_hello_is_let_go_of_and_who_is_idle_is_not(server: LoopbackServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as silent, BarePeer(server.port) as idle:
        assert code(idle, idle.call(CAPABILITIES)) == "OK"
        for _ in range(3):
            server.look()
        silent.settimeout(20)
        while silent.recv(1000):
            pass
        assert code(idle, idle.call(CAPABILITIES)) == "OK"


def test_a_request_that_stands_still_is_ended(server: LoopbackServer) -> None:
    with BarePeer(server.port) as peer:
        half = peer.begin(CAPABILITIES)
        peer.send(half, framed(bytes(100))[:50])
        while not any(call.received_bytes == 50 for one in server.connections() for call in one._calls.values()):
            time.sleep(0.01)
        server.look()
        server.look()
        assert code(peer, half) == "DEADLINE_EXCEEDED"
        assert code(peer, peer.call(CAPABILITIES)) == "OK"


def test_who_takes_back_calls_all_the_time_loses_his_connection_only(server: LoopbackServer) -> None:
    """CVE-2023-44487."""
    with BarePeer(server.port) as rapid, BarePeer(server.port) as other:
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", WRITE.encode()), (b":authority", b"pond")]
        headers.append((b"content-type", b"application/grpc"))
        with suppress(OSError):
            for _ in range(100):
                burst = b""
                for _ in range(100):
                    stream = rapid.h2.send_request(headers)
                    burst += rapid.h2.data_to_send()
                    rapid.h2.reset_stream(stream)
                    burst += rapid.h2.data_to_send()
                rapid.socket.sendall(burst)
        assert rapid.is_cut()
        assert code(other, other.call(CAPABILITIES)) == "OK"


def test_a_message_that_is_larger_than_a_window_comes(server: LoopbackServer) -> None:
    size = 3 * limits.STREAM_WINDOW_BYTES
    with BarePeer(server.port) as peer:
        assert (
            code(peer, peer.call(FIND_MISSING, b"\xfa\x07" + _varint(size) + bytes(size))) == "OK"
        )  # an unknown field


def _varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def test_what_is_sent_after_the_answer_costs_the_connection_nothing(server: LoopbackServer) -> None:
    """More than a connection's window of data for calls that are over: later calls are answered all the same."""
    with BarePeer(server.port) as peer:
        for _ in range(40):
            stream = peer.begin("/nobody.knows.This/Method")
            peer.h2.send_data(stream, bytes(limits.STREAM_WINDOW_BYTES))
            peer.flush()
            assert code(peer, stream) == "UNIMPLEMENTED"
        assert code(peer, peer.call(CAPABILITIES)) == "OK"


def test_the_last_word_of_a_server_is_heard_by_calls_that_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    repo = tmp_path_factory.mktemp("drained") / "repo"
    server = LoopbackServer(repo)
    with BarePeer(server.port) as busy, BarePeer(server.port) as idle:
        stream = busy.begin(WRITE)
        assert code(idle, idle.call(CAPABILITIES)) == "OK"
        server.stop()  # with 0.2 s for who is busy
        assert code(busy, stream) == "UNAVAILABLE"
        assert busy.is_cut()
        assert idle.until(lambda: any(isinstance(event, ngh2.GoAwayReceived) for event in idle.events))
        assert idle.is_cut()


def running(server: LoopbackServer) -> int:
    return len(server._edge._shared.running)


def comes_true(what: object, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_no_handler_is_remembered_that_was_cancelled_before_it_began(server: LoopbackServer) -> None:
    """A deadline that has passed, or HEADERS and RST_STREAM in one packet."""
    with BarePeer(server.port) as peer:
        late = peer.begin(WRITE, fields=[(b"grpc-timeout", b"0n")])
        assert code(peer, late) == "DEADLINE_EXCEEDED"
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", WRITE.encode()), (b":authority", b"pond")]
        stream = peer.h2.send_request([*headers, (b"content-type", b"application/grpc")])
        burst = peer.h2.data_to_send()
        peer.h2.reset_stream(stream)
        peer.socket.sendall(burst + peer.h2.data_to_send())
        assert code(peer, peer.call(CAPABILITIES)) == "OK"
    assert comes_true(lambda: not running(server))


def raw_peer(server: LoopbackServer) -> socket.socket:
    """One who has said hello."""
    peer = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
    return peer


def test_who_breaks_http2_and_then_says_nothing_is_hung_up_on(server: LoopbackServer) -> None:
    with raw_peer(server) as broken:
        broken.sendall(b"\0\0\1\0\0\0\0\0\0x")  # DATA on stream 0
        while broken.recv(1000):
            pass


def test_a_stream_that_http2_ended_ends_its_call_and_spoils_nothing(server: LoopbackServer) -> None:
    """More data than content-length said: HTTP/2 resets the stream, and the peer says nothing more."""
    with BarePeer(server.port) as peer:
        for path in (CAPABILITIES, WRITE):
            stream = peer.begin(path, fields=[(b"content-length", b"6"), (b"grpc-timeout", b"100m")])
            peer.send(stream, framed(bytes(20))[:5])
            peer.send(stream, bytes(3))
            assert peer.until(lambda stream=stream: bool(peer.of(stream, ngh2.StreamReset)))  # type: ignore[misc]
        assert comes_true(lambda: not any(one._calls for one in server.connections()))
        for _ in range(3):
            server.look()
        assert comes_true(lambda: not running(server))


def test_who_leaves_the_transport_full_is_let_go_of(server: LoopbackServer, blob: tuple[str, bytes]) -> None:
    """Its windows are open, so that what it does not take lies in the transport, which would keep it for ever."""
    request = framed(bytestream_pb2.ReadRequest(resource_name=blob[0]).SerializeToString())
    with BarePeer(server.port, auto_window_update=False) as peer:
        peer.h2.update_settings({ngh2.Setting.INITIAL_WINDOW_SIZE: 2**31 - 1})
        peer.h2.set_local_window_size(2**31 - 1)
        streams = [peer.begin(READ) for _ in range(8)]
        for stream in streams:
            peer.send(stream, request, end=True)
        assert comes_true(lambda: any(one._paused for one in server.connections()))
        for _ in range(3):
            server.look()
        assert comes_true(lambda: not server.connections())  # not a byte was read meanwhile
        assert comes_true(lambda: not running(server))


def test_one_who_takes_no_answers_but_pings_is_let_go_of(server: LoopbackServer, blob: tuple[str, bytes]) -> None:
    request = bytestream_pb2.ReadRequest(resource_name=blob[0]).SerializeToString()
    with BarePeer(server.port, auto_window_update=False) as peer:
        stream = peer.call(READ, request)
        peer.until(lambda: len(peer.data(stream)) > 60_000)
        for _ in range(3):
            before = len(peer.events)
            peer.h2.ping()
            peer.flush()
            peer.until(lambda before=before: len(peer.events) > before)  # type: ignore[misc]
            server.look()
        assert peer.is_cut()


def test_a_broken_connection_does_not_spoil_the_drain(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = LoopbackServer(tmp_path_factory.mktemp("drained") / "repo")
    with BarePeer(server.port) as busy, raw_peer(server):
        stream = busy.begin(WRITE)
        assert comes_true(lambda: any(one._calls for one in server.connections()))
        (other,) = [one for one in server.connections() if not one._calls]
        server._loop.call_soon_threadsafe(other._h2.terminate_connection)
        server.stop()
        assert code(busy, stream) == "UNAVAILABLE"


def test_what_is_packed_takes_no_memory_before_somebody_wants_it(server: LoopbackServer) -> None:
    packed = gzip.compress(bytes(limits.RECEIVE_BYTES))
    message = b"\1" + len(packed).to_bytes(4) + packed
    with BarePeer(server.port) as peer:
        for path in (CAPABILITIES, WRITE):
            peer.send(peer.begin(path, fields=[(b"grpc-encoding", b"gzip")]), message)
        assert comes_true(lambda: sum(len(one._calls) for one in server.connections()) == 1)  # the Write is over
        (call,) = [call for one in server.connections() for call in one._calls.values()]
        assert comes_true(lambda: bool(call._messages))
        assert sum(map(len, call._messages)) < 2 * len(packed)


def test_answers_that_are_made_at_once_are_no_more_than_one_by_one(
    server: LoopbackServer, blob: tuple[str, bytes]
) -> None:
    request = framed(bytestream_pb2.ReadRequest(resource_name=blob[0]).SerializeToString())
    with BarePeer(server.port, auto_window_update=False) as peer:
        peer.h2.update_settings({ngh2.Setting.INITIAL_WINDOW_SIZE: 0})
        peer.flush()
        for _ in range(100):
            stream = peer.h2.send_request(
                [(b":method", b"POST"), (b":scheme", b"http"), (b":path", READ.encode()), (b":authority", b"pond"),
                 (b"content-type", b"application/grpc")]
            )  # fmt: skip
            peer.h2.send_data(stream, request, end_stream=True)
        peer.flush()
        assert comes_true(lambda: any(len(one._held) > 50 for one in server.connections()))
        time.sleep(0.5)
        (connection,) = server.connections()
        assert connection._h2.queued_body_size() < limits.UNSENT_PER_CONNECTION_BYTES + 4 * limits.CHUNK_BYTES


def test_uploads_that_say_nothing_hold_up_no_other(server: LoopbackServer) -> None:
    with BarePeer(server.port) as silent, Client(server.target) as client:
        for _ in range(200):
            silent.begin(WRITE)
        began = time.monotonic()
        client.upload(bytes(3 * limits.MIB))
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("is_roomy", [True, False])
def test_the_next_message_comes_while_one_is_stored_where_there_is_room_and_no_more(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, is_roomy: bool
) -> None:
    if not is_roomy:
        monkeypatch.setattr(Inflow, "is_roomy", False)
    most = 2 if is_roomy else 1
    data, size = bytes([is_roomy, *range(255)]) * (8 * limits.MIB // 256), 2 * limits.MIB
    goes_on = threading.Event()
    accept = Receiver.accept

    async def accepted(receiver: Receiver, message: WriteMessage) -> bool:
        await asyncio.to_thread(goes_on.wait, 30)
        return await accept(receiver, message)

    monkeypatch.setattr(Receiver, "accept", accepted)
    with Client(server.target) as client, ThreadPoolExecutor(1) as writing:
        name = client.write_name(Digest.of(data))
        parts = [
            bytestream_pb2.WriteRequest(
                resource_name=name, write_offset=at, data=data[at : at + size], finish_write=at + size == len(data)
            )
            for at in range(0, len(data), size)
        ]
        outcome = writing.submit(client.write, iter(parts))
        try:
            assert comes_true(lambda: _received_bytes(server) >= most * size)
            time.sleep(0.2)  # for more to come that should not
            assert _received_bytes(server) <= most * size + 2 * limits.STREAM_WINDOW_BYTES
        finally:
            goes_on.set()
        assert outcome.result(30) == len(data)


def _received_bytes(server: LoopbackServer) -> int:
    return sum(call.received_bytes for one in server.connections() for call in one._calls.values())
