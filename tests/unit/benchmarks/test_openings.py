"""The generator of openings waits for whole answers, whatever comes between them, and never for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from benchmarks import openings
from benchmarks.calls import CallFailed

METHODS = ["/a.A/One", "/a.A/Two"]
SECONDS = 10.0


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream_id.to_bytes(4) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """RFC 7541 section 6.2.2: without indexing, a new name."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


HELLO = frame(4, 0, 0)
PING = frame(6, 0, 0, bytes(8))
GOAWAY = frame(7, 0, 0, bytes(8))


def answer(stream_id: int, code: bytes) -> bytes:
    """Trailers only: ``:status 200`` is entry 8 of HPACK's static table."""
    return frame(1, 5, stream_id, b"\x88" + literal(b"grpc-status", code))


@contextmanager
def serving(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server of one connection after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, suppress(OSError):
                        connection.settimeout(SECONDS)
                        behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def visit(address: str, *, seconds: float = SECONDS, count: int = 1) -> list[list[str]]:
    return openings.visit(address, METHODS, count, in_flight=1, seconds=seconds)[1]


def test_answers_that_come_in_single_bytes_are_put_together() -> None:
    def behave(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in (HELLO, PING + answer(1, b"0"), PING + answer(3, b"3")):
            connection.recv(65536)
            for at in range(len(part)):
                connection.send(part[at : at + 1])

    with serving(behave) as address:
        assert visit(address, count=3) == [["OK", "INVALID_ARGUMENT"]] * 3


def test_a_stream_that_is_reset_has_failed() -> None:
    def behave(connection: socket.socket) -> None:
        for part in (HELLO, frame(3, 0, 1, bytes(4)), answer(3, b"0")):
            connection.recv(65536)
            connection.send(part)

    with serving(behave) as address:
        ((first, second),) = visit(address)
    assert (first != "OK", second) == (True, "OK")


@pytest.mark.parametrize(("said", "trouble"), [(HELLO, "closed a new connection"), (HELLO + GOAWAY, "said GOAWAY")])
def test_a_server_that_ends_a_connection_ends_the_run(said: bytes, trouble: str) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.send(said)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    with serving(behave) as address, pytest.raises(CallFailed, match=trouble):
        visit(address)


def test_a_server_that_is_silent_is_not_waited_for_longer_than_was_said() -> None:
    def behave(connection: socket.socket) -> None:
        connection.send(HELLO)
        while connection.recv(65536):
            pass

    with serving(behave) as address, pytest.raises(CallFailed, match="not answered"):
        visit(address, seconds=0.3)


def test_nor_is_one_that_says_something_else_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(connection: socket.socket) -> None:
        connection.send(HELLO)
        while connection.send(PING * 4096):
            pass

    go_on = openings._Visit.go_on

    def slowly(one: openings._Visit) -> bool:
        time.sleep(0.01)  # meanwhile there is more, so that it never has to wait
        return go_on(one)

    monkeypatch.setattr(openings._Visit, "go_on", slowly)
    with serving(behave) as address, pytest.raises(CallFailed, match="not answered"):
        visit(address, seconds=0.3)
