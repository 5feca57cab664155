"""New connections, a few empty calls on each: what a client does that starts a process for every artifact.

Such a client always sends the same, so it is laid out once, and a connection is a plain socket here, waited for with epoll and
written to when the frame came that it waits for. What was answered is decoded after the clock stopped. An opening costs three
fifths of the CPU that it does with :mod:`benchmarks.calls` (``client_cpu_seconds`` in the results), and that counts: where the
generator takes as much of two cores as a server does, a second worker finds nothing left.

Source: RFC 9113 section 3.4 (the preface), 4.1 (frames), 6.5.3 (SETTINGS are acknowledged).
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from typing import Any, cast

import ngh2

from benchmarks import calls

_READ_BYTES = 64 * 1024
_FRAME_HEADER_BYTES = 9
_RST_STREAM, _SETTINGS, _GOAWAY = 3, 4, 7
_MAY_END_A_STREAM = (0, 1)  # DATA and HEADERS
_ACK = _END_STREAM = 1
_ACKNOWLEDGED = bytes((0, 0, 0, _SETTINGS, _ACK, 0, 0, 0, 0))


def visit(
    address: str, methods: Sequence[str], count: int, *, in_flight: int, seconds: float
) -> tuple[float, list[list[str]]]:
    """Connect, make an empty call of each method after the other, and close, ``count`` times, ``in_flight`` at once.

    Returns how many seconds that took, and of each connection the codes of its calls.

    Raises:
        CallFailed, OSError: a connection ended too early, or all of it took longer than ``seconds``.
    """
    host, _, port = address.rpartition(":")
    script = _Script(methods)
    begin = time.perf_counter()
    answers = _visits(script, (host, int(port)), count, in_flight, begin + seconds)
    took = time.perf_counter() - begin
    return took, [script.codes(answer) for answer in answers]


class _Script:
    """What a client sends, one piece after the other, and how what it is answered is read."""

    def __init__(self, methods: Sequence[str]) -> None:
        self._methods = methods
        _, self.greeting, requests = self._played()
        self.streams = list(requests)
        self.requests = list(requests.values())
        self.requests[0] = _ACKNOWLEDGED + self.requests[0]

    def codes(self, answers: bytearray) -> list[str]:
        """Of the calls on one connection, in their order. ``answers``: all that it received."""
        h2, _, requests = self._played()
        h2.receive_data(bytes(answers))
        codes: dict[int, str] = {}
        for event in h2.events():
            if (fields := calls.last_fields(event)) is not None:
                failure = calls.failure_in(fields)
                codes.setdefault(cast(Any, event).stream_id, "OK" if failure is None else failure.code)
        return [codes.get(stream_id, "NOT ANSWERED") for stream_id in requests]

    def _played(self) -> tuple[ngh2.Connection, bytes, dict[int, bytes]]:
        """A connection that has said it all, its greeting, and its requests by stream."""
        h2 = ngh2.Connection(ngh2.Role.CLIENT)
        calls.greet(h2)
        greeting = h2.data_to_send()
        requests = {}
        for method in self._methods:
            stream_id = h2.send_request(calls.request_fields(b"http", method))
            h2.send_data(stream_id, calls.EMPTY_MESSAGE, end_stream=True)
            requests[stream_id] = h2.data_to_send()
        return h2, greeting, requests


class _Visit:
    """One connection. It waits for the server's SETTINGS first, as gRPC's clients do, then for one answer after the other."""

    __slots__ = ("_asked", "_at", "_script", "received", "socket")

    def __init__(self, script: _Script, address: tuple[str, int]) -> None:
        self._script = script
        self._asked = 0
        self._at = 0
        self.received = bytearray()
        self.socket = socket.socket()
        self.socket.connect(address)  # in an instant, on the loopback, unless the server's queue is full: then all wait
        self.socket.send(script.greeting)

    def go_on(self) -> bool:
        """Take what came. Whether it was the last answer.

        Raises:
            CallFailed: the server ended the connection.
        """
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise calls.CallFailed("UNAVAILABLE", "the server closed a new connection")
        self.received += data
        requests = self._script.requests
        while self._came():
            if self._asked == len(requests):
                return True
            self.socket.send(requests[self._asked])
            self._asked += 1
        return False

    def _came(self) -> bool:
        """Whether what is waited for is among the frames that were not looked at yet; those before it are passed over."""
        received, awaited = self.received, self._script.streams[self._asked - 1] if self._asked else 0
        while (payload := self._at + _FRAME_HEADER_BYTES) <= len(received):
            end = payload + int.from_bytes(received[self._at : self._at + 3])
            if end > len(received):
                return False
            kind, flags = received[self._at + 3], received[self._at + 4]
            stream_id = int.from_bytes(received[self._at + 5 : payload])
            self._at = end
            if kind == _GOAWAY:
                raise calls.CallFailed("UNAVAILABLE", "the server said GOAWAY on a new connection")
            if not awaited:
                found = kind == _SETTINGS and not flags & _ACK
            else:
                found = kind == _RST_STREAM or (kind in _MAY_END_A_STREAM and bool(flags & _END_STREAM))
            if found and stream_id == awaited:
                return True
        return False


def _visits(script: _Script, address: tuple[str, int], count: int, in_flight: int, deadline: float) -> list[bytearray]:
    """What each of ``count`` connections received."""
    answers: list[bytearray] = []
    under_way: dict[int, _Visit] = {}
    unbegun = count
    with select.epoll() as epoll:
        try:
            while under_way or unbegun:
                while unbegun and len(under_way) < in_flight:
                    visit = _Visit(script, address)
                    under_way[visit.socket.fileno()] = visit
                    epoll.register(visit.socket, select.EPOLLIN)
                    unbegun -= 1
                left_seconds = deadline - time.perf_counter()
                # Also where frames come all the time, and none of them is an answer.
                if left_seconds <= 0 or not (ready := epoll.poll(left_seconds)):
                    raise calls.CallFailed("DEADLINE_EXCEEDED", f"{len(under_way)} new connections are not answered")
                for descriptor, _ in ready:
                    visit = under_way[descriptor]
                    if visit.go_on():
                        del under_way[descriptor]
                        visit.socket.close()
                        answers.append(visit.received)
        finally:
            for visit in under_way.values():
                visit.socket.close()
    return answers
