"""Pings: a client that keeps its connection alive is never punished for it.

Spoken as bare HTTP/2 frames, because gRPC clients do not send the pings that a test would like to have answered.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import closing

import pytest
from contract.loopback import LoopbackServer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = 1


class BareConnection:
    """RFC 9113, as much of it as a ping takes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.sendall(PREFACE + self._frame(SETTINGS, 0, b""))
        self.seen: list[int] = []

    def _frame(self, kind: int, flags: int, payload: bytes, stream: int = 0) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def open_call(self) -> None:
        """Begin a ByteStream.Write that says nothing (RFC 7541: literal headers, not indexed)."""
        headers = {":method": "POST", ":scheme": "http", ":path": "/google.bytestream.ByteStream/Write"}
        headers |= {":authority": "pond", "content-type": "application/grpc", "te": "trailers"}
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        self.socket.sendall(self._frame(HEADERS, 4, block, stream=1))

    def ping(self, payload: bytes) -> None:
        """Send one and wait until it is answered."""
        self.socket.sendall(self._frame(PING, 0, payload))
        while True:
            kind, flags, answer = self._receive()
            self.seen.append(kind)
            assert kind != GOAWAY, f"GOAWAY: {answer[8:]!r}"
            if kind == PING and flags & ACK:
                assert answer == payload
                return
            if kind == PING:
                self.socket.sendall(self._frame(PING, ACK, answer))
            if kind == SETTINGS and not flags & ACK:
                self.socket.sendall(self._frame(SETTINGS, ACK, b""))

    def _receive(self) -> tuple[int, int, bytes]:
        head = self._exactly(9)
        return head[3], head[4], self._exactly(int.from_bytes(head[:3]))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, "the server hung up"
            data += part
        return data


def keep_alive(server: LoopbackServer, *, every_seconds: float, pings: int, call: bool) -> list[int]:
    connection = BareConnection(server.port)
    with closing(connection.socket):
        if call:
            connection.open_call()
        for number in range(pings):
            connection.ping(number.to_bytes(8))
            time.sleep(every_seconds if number < pings - 1 else 0)
    return connection.seen


@pytest.mark.row("keepalive")
@pytest.mark.parametrize("call", [False, True], ids=["no call", "a call"])
def test_pings_as_often_as_one_likes_are_welcome(server: LoopbackServer, call: bool) -> None:
    """gRPC's default is a strike for each ping that comes within five minutes of the last one, and out after two: who
    may ping fifty times in a second may do so every ten.
    """
    assert keep_alive(server, every_seconds=0.02, pings=50, call=call).count(PING) >= 50
