"""gRPC calls as a client makes them, at as little cost as can be: HTTP/2 by ``ngh2``, on one event loop.

What an answer sets off is done where it was read: who asks next does so before anything is sent, so that a turn of the loop
is one wait, one read and one write, whatever the number of callers. No code of the server's is used.

Source: gRPC's ``PROTOCOL-HTTP2.md``.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import grpc
import ngh2

from benchmarks.messages import UnexpectedAnswer

MIB = 1024 * 1024
_READ_BYTES = 256 * 1024
_SEND_BYTES = 256 * 1024
_AHEAD_BYTES = MIB
"""So much of a request waits in HTTP/2 to be sent, and so much in the socket's transport."""
# gRPC's own clients begin smaller, and arrive at megabytes after a few of their estimates of the bandwidth.
_SETTINGS = {ngh2.Setting.INITIAL_WINDOW_SIZE: 4 * MIB, ngh2.Setting.MAX_FRAME_SIZE: MIB}
_CONNECTION_WINDOW_BYTES = 64 * MIB
_PREFIX = struct.Struct(">BI")
"""Before each message: whether it is packed, and its length."""
EMPTY_MESSAGE = _PREFIX.pack(0, 0)
_CODES = {str(code.value[0]).encode(): str(code.name) for code in grpc.StatusCode}
# One for all connections: what is read into it is dealt with before anything else is read.
_BUFFER = memoryview(bytearray(_READ_BYTES))


class CallFailed(Exception):
    """A call that did not end with OK. ``code``: the name of its status."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code} ({text})" if text else code)
        self.code = code


Fields = Sequence[tuple[bytes, bytes]]
Pieces = Sequence[Any]
"""The data of an answer as it came; where only its size is wanted, the sizes."""
Answered = Callable[["Pieces | CallFailed"], None]


class _Call:
    __slots__ = ("answered", "keep", "pieces", "rest", "stream_id")

    def __init__(self, stream_id: int, rest: Iterator[bytes] | None, answered: Answered, *, keep: bool) -> None:
        self.stream_id = stream_id
        self.keep = keep
        self.rest = rest  # messages that are still to be sent
        self.answered = answered
        self.pieces: list[Any] = []


class Connection(asyncio.BufferedProtocol):
    """One connection to a server, and the calls on it."""

    def __init__(self, scheme: bytes) -> None:
        self._scheme = scheme
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._calls: dict[int, _Call] = {}
        self._writing: list[_Call] = []
        self._receiving = self._flush_is_due = self._paused = False
        self._lost: CallFailed | None = None
        self._transport: asyncio.Transport
        self._greeted = asyncio.get_running_loop().create_future()

    @classmethod
    async def to(cls, address: str, tls: ssl.SSLContext | None) -> Connection:
        """A new one, whose server has said hello.

        Raises:
            CallFailed, OSError: it has not.
        """
        host, _, port = address.rpartition(":")
        name = None if tls is None else "localhost"  # the name in the certificate, whatever the address
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: cls(b"http" if tls is None else b"https"), host, int(port), ssl=tls, server_hostname=name
        )
        await connection._greeted
        return connection

    def ask(self, method: str, request: bytes | Iterable[bytes], answered: Answered, *, keep: bool = True) -> None:
        """Begin a call of ``method``, a path, with one message or several. ``answered`` is told what came of it.

        Without ``keep`` only the sizes of what comes are kept.
        """
        if self._lost is not None:
            return answered(self._lost)
        stream_id = self._h2.send_request(request_fields(self._scheme, method))
        if isinstance(request, bytes):
            self._h2.send_data(stream_id, _PREFIX.pack(0, len(request)) + request, end_stream=True)
            self._calls[stream_id] = _Call(stream_id, None, answered, keep=keep)
        else:
            self._calls[stream_id] = call = _Call(stream_id, iter(request), answered, keep=keep)
            self._writing.append(call)
        if not self._receiving and not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)
        return None

    async def calls(self, methods: Sequence[str]) -> list[Pieces | CallFailed]:
        """What comes of empty requests, each of which is sent when the one before is answered."""
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        answers: list[Pieces | CallFailed] = []
        waiting = iter(methods)

        def go_on() -> None:
            if (method := next(waiting, None)) is not None:
                self.ask(method, b"", answered)
            elif not outcome.done():
                outcome.set_result(None)

        def answered(answer: Pieces | CallFailed) -> None:
            answers.append(answer)
            go_on()

        go_on()
        await outcome
        return answers

    def close(self) -> None:
        """End it now."""
        self._transport.close()

    # -- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_AHEAD_BYTES)
        greet(self._h2)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._receiving = True
        try:
            self._h2.receive_data(_BUFFER[:nbytes])
            for event in self._h2.events():
                self._handle(event)
        finally:
            self._receiving = False
        self._flush()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        failure = self._lost = CallFailed("UNAVAILABLE", f"the connection ended: {exc or 'closed'}")
        if not self._greeted.done():
            self._greeted.set_exception(failure)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.answered(failure)

    # -- within ------------------------------------------------------------------------------------------------------

    def _handle(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.DataReceived):
            if (call := self._calls.get(event.stream_id)) is not None:
                call.pieces.append(event.data if call.keep else len(event.data))
        elif isinstance(event, ngh2.SettingsReceived):
            if not self._greeted.done():
                self._greeted.set_result(None)
        elif (fields := last_fields(event)) is not None:
            self._ended(cast(Any, event).stream_id, fields)

    def _ended(self, stream_id: int, fields: Fields) -> None:
        call = self._calls.pop(stream_id, None)
        if call is None:  # known already
            return
        if call.rest is not None:
            self._writing.remove(call)
            self._h2.reset_stream(stream_id)
        failure = failure_in(fields)
        call.answered(call.pieces if failure is None else failure)

    def _flush(self) -> None:
        self._flush_is_due = False
        while not self._paused and not self._transport.is_closing():
            for call in self._writing[:]:
                self._go_on_writing(call)
            if not (data := self._h2.data_to_send(_SEND_BYTES)):
                return
            self._transport.write(data)

    def _go_on_writing(self, call: _Call) -> None:
        assert call.rest is not None
        while self._h2.queued_body_size(call.stream_id) < _AHEAD_BYTES:
            message = next(call.rest, None)
            if message is None:
                self._h2.end_stream(call.stream_id)
                call.rest = None
                self._writing.remove(call)
                return
            self._h2.send_data(call.stream_id, _PREFIX.pack(0, len(message)))
            self._h2.send_data(call.stream_id, message)


def greet(h2: ngh2.Connection) -> None:
    """Say what every connection here begins with."""
    h2.initiate_connection(_SETTINGS)
    h2.set_local_window_size(_CONNECTION_WINDOW_BYTES)


def request_fields(scheme: bytes, method: str) -> Fields:
    """The header fields of a call of ``method``, a path."""
    return (
        (b":method", b"POST"),
        (b":scheme", scheme),
        (b":path", method.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )


def last_fields(event: ngh2.Event) -> Fields | None:
    """The fields that end a call; None: it goes on."""
    if isinstance(event, ngh2.TrailersReceived) or (isinstance(event, ngh2.ResponseReceived) and event.end_stream):
        return event.headers
    if isinstance(event, ngh2.StreamClosed):
        return ((b"grpc-message", b"HTTP/2 error %d" % event.error_code),)
    return None


def failure_in(fields: Fields) -> CallFailed | None:
    """What the last fields of a call say; None: it succeeded."""
    status = dict(fields)
    code = status.get(b"grpc-status", b"?")
    if code == b"0":
        return None
    return CallFailed(_CODES.get(code, f"status {code!r}"), status.get(b"grpc-message", b"").decode(errors="replace"))


def messages_in(pieces: Pieces) -> list[bytes]:
    """The messages of an answer.

    Raises:
        UnexpectedAnswer: it ends in the middle of one, or one is packed, which nobody asked for.
    """
    data = b"".join(pieces)
    messages, at = [], 0
    while at < len(data):
        packed, size_bytes = _PREFIX.unpack_from(data, at)
        begin = at + _PREFIX.size
        at = begin + size_bytes
        if packed or at > len(data):
            raise UnexpectedAnswer("an answer is packed, or ends in the middle of a message")
        messages.append(data[begin:at])
    return messages
