"""What a connection is fed: gRPC's framing, and HTTP/2 with a server's calls behind it.

The rule of these is that of ``targets.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib

import ngh2

from fuzz.targets import Target
from millpond.protocol import grpc_framing
from millpond.wire.connection import Connection, Shared
from millpond.wire.rpc import Access, Context, Rpc

_LIMIT_BYTES = 1000


def _framed(*messages: bytes) -> bytes:
    return b"".join(grpc_framing.prefix_of(len(message)) + message for message in messages)


def _packed(message: bytes) -> bytes:
    return b"\1" + len(message).to_bytes(4) + message


# -- framing ----------------------------------------------------------------------------------------------------------


def fuzz_grpc_frames(data: bytes) -> None:
    """The first byte chooses the encoding and where the rest is cut."""
    if not data:
        return
    encoding = (b"identity", b"gzip", b"deflate")[data[0] % 3]
    deframer = grpc_framing.Deframer(_LIMIT_BYTES, encoding)
    step = 1 + data[0] // 3
    with contextlib.suppress(grpc_framing.MessageTooLarge, grpc_framing.UnreadableMessage):
        for at in range(1, len(data), step):
            assert all(len(message) <= _LIMIT_BYTES for message in deframer.feed(data[at : at + step]))
            assert deframer.pending_bytes <= _LIMIT_BYTES + grpc_framing.PREFIX_BYTES
            assert deframer.is_empty == (deframer.pending_bytes == 0)


def fuzz_grpc_timeout(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= grpc_framing.timeout_seconds(data) <= 99_999_999 * 3600


# -- connections ------------------------------------------------------------------------------------------------------


class _Transport:
    """Takes everything, as far away as a peer can be."""

    def __init__(self) -> None:
        self.closed = False

    def get_extra_info(self, _: str) -> None:
        return None

    def set_write_buffer_limits(self, *, high: int) -> None: ...

    def write(self, data: bytes) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


async def _echo(request: bytes, _: Context) -> bytes:
    return request


async def _count(_: bytes, context: Context) -> bytes:
    count = 0
    while await context.read() is not None:
        count += 1
    return str(count).encode()


def fuzz_http2(data: bytes) -> None:
    """Whatever is sent, nothing of it is left when the peer has gone."""
    asyncio.run(_converse(data))


async def _converse(data: bytes) -> None:
    shared = Shared({rpc.path: rpc for rpc in (
        Rpc("s", "Echo", Access.OPEN, _echo), Rpc("s", "Count", Access.OPEN, _count, reads=True)
    )})  # fmt: skip
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
    connection = Connection(shared, None)
    transport = _Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    for at in range(0, len(data), 1000):
        if transport.closed:
            break
        piece = data[at : at + 1000]
        connection.get_buffer(-1)[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        await asyncio.sleep(0)
    connection.look()
    connection.connection_lost(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not told
    assert not shared.connections
    assert not shared.running
    assert shared.inflow.is_idle


def _requests() -> bytes:
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection()
    sent = client.data_to_send()
    for path in (b"/s/Echo", b"/s/Count", b"/nobody/Knows"):
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"x"), (b":path", path)]
        stream = client.send_request([*headers, (b"content-type", b"application/grpc"), (b"grpc-timeout", b"5S")])
        client.send_data(stream, _framed(b"one"), end_stream=path != b"/s/Count")
        sent += client.data_to_send()
    client.ping()
    client.reset_stream(3)
    return sent + client.data_to_send()


WIRE_TARGETS = {
    "grpc_frames": Target(
        fuzz_grpc_frames,
        (
            b"\0" + _framed(b"", b"a", b"b" * 100),
            b"\1" + _packed(gzip.compress(b"a" * 900)) + _framed(b"plain"),
            b"\2" + _packed(zlib.compress(b"a" * 2000)),
        ),
    ),
    "grpc_timeout": Target(fuzz_grpc_timeout, (b"1H", b"99999999n", b"5S")),
    "http2": Target(fuzz_http2, (_requests(),)),
}
