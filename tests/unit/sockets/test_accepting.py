"""Connections are taken as long as there are any, whoever is among them."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from contextlib import suppress

import pytest
import uvloop

from millpond.sockets import accepting

_CROWD = 3 * accepting._AT_ONCE + 1
_SECONDS = 20
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset


def _taken_of(listening: socket.socket, count: int) -> list[socket.socket]:
    """The first connections that are taken."""

    async def take() -> list[socket.socket]:
        taken: list[socket.socket] = []
        taking = asyncio.create_task(accepting.accept(listening, taken.append))
        async with asyncio.timeout(_SECONDS):
            while len(taken) < count:
                await asyncio.sleep(0.001)
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking
        late = socket.create_connection(listening.getsockname())
        await asyncio.sleep(0.05)
        late.close()
        return taken

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(take())


def test_a_crowd_that_came_at_once_is_taken_whole_with_those_who_left() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=_CROWD) as listening:
        crowd = [socket.create_connection(listening.getsockname()) for _ in range(_CROWD)]
        for one in crowd[::3]:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            one.close()
        taken = _taken_of(listening, _CROWD)
    for one in (*crowd, *taken):
        one.close()


def test_nobody_is_taken_after_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        (taken,) = _taken_of(listening, 1)  # and not the one who came late
        taken.close()


def test_one_whose_peer_was_gone_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept, failures = socket.socket.accept, [OSError(errno.ECONNABORTED, "gone")] * 3

    def failing(listening: socket.socket) -> object:
        if failures:
            raise failures.pop()
        return accept(listening)

    monkeypatch.setattr(socket.socket, "accept", failing)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        (taken,) = _taken_of(listening, 1)
        taken.close()
    assert not failures
    assert not caplog.records
