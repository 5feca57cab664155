"""One HTTP/2 connection, as gRPC uses it (gRPC's ``PROTOCOL-HTTP2.md``; RFC 9113). A home of ``ngh2``.

The rule: whatever a peer does, it is its own connection that suffers. What is kept for it is bounded: by its streams'
windows on the way in, by ``limits.UNSENT_*`` on the way out; and who takes nothing, or does not even say hello, is let
go of after a while.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import cast

import grpc
import ngh2

from millpond.core import limits
from millpond.protocol.grpc_framing import PREFIX_BYTES, prefix_of
from millpond.services.access import Principal
from millpond.sockets.accepting import GOODBYE_SECONDS
from millpond.sockets.places import shown_certificates
from millpond.store.interface import Bytes
from millpond.wire.broken_off import BrokenOff
from millpond.wire.call import Call
from millpond.wire.errors import OK, Status
from millpond.wire.inflow import Inflow
from millpond.wire.opening import BEGIN, Fields, Refused, opening_of
from millpond.wire.rpc import Parts, Rpc

_LOG = logging.getLogger(__name__)
_READ_BYTES = 256 * limits.KIB
_FLUSH_BYTES = 256 * limits.KIB
_JOINED_BYTES = 16 * limits.KIB
"""A message up to this size is copied behind its prefix; of a larger one the last part is sent as it lies."""
_CONNECTION_WINDOW_BYTES = 1 << 30
"""More than all streams' windows: each stream has its own bound, and none is to wait for another one's handler."""
_FINAL_SECONDS = 1.0
"""How long the answer to a ping may take before nothing more is let in."""

_CONFIGURATION = ngh2.Configuration(
    auto_window_update=False,
    # A call with more than it may have is answered so; only far beyond that its connection is ended.
    max_inbound_header_list_size=16 * limits.METADATA_BYTES,
    max_inbound_header_count=4096,
    max_continuations=32,
    stream_reset_rate_limit=(limits.RESETS_AT_ONCE, limits.RESETS_PER_SECOND),
)
_SETTINGS = {
    ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.STREAMS_PER_CONNECTION,
    ngh2.Setting.INITIAL_WINDOW_SIZE: limits.STREAM_WINDOW_BYTES,
    ngh2.Setting.MAX_FRAME_SIZE: limits.FRAME_BYTES,
    ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.METADATA_BYTES,
}

_OK_TRAILERS = OK.trailers()
_ANYBODY = Principal()
_OVER = BrokenOff(lambda _: None)
_TIME_IS_UP = Status(grpc.StatusCode.DEADLINE_EXCEEDED, "the time that the client gave the call is up")
_STOPPING = Status(grpc.StatusCode.UNAVAILABLE, "the server is stopping: try again in a few seconds")


class Shared:
    """What the connections of one worker have in common. For one event loop."""

    def __init__(self, rpcs: Mapping[bytes, Rpc]) -> None:
        """``rpcs``: by their paths."""
        self.rpcs = rpcs
        self.inflow = Inflow(limits.INFLOW_BYTES)
        self.running: set[asyncio.Future[None]] = set()
        self.connections: set[Connection] = set()
        # One for all: what is read into it is dealt with before anything else is read.
        self.buffer = memoryview(bytearray(_READ_BYTES))


class Connection(asyncio.BufferedProtocol):
    """The server's end of a connection, and the calls on it."""

    def __init__(self, shared: Shared, identify: Callable[[bytes], str] | None) -> None:
        """``identify``: who showed these certificates (PEM, its own first); None: it does not matter."""
        self._shared = shared
        self._identify = identify
        self._shown = b""
        self._transport: asyncio.Transport
        self.peer = "?"
        self.inflow = shared.inflow
        self.running = shared.running
        self._h2 = ngh2.Connection(ngh2.Role.SERVER, _CONFIGURATION)
        self._broken_off = BrokenOff(self.give_up)
        self._calls: dict[int, Call] = {}
        self.writing: set[Call] = set()
        self._answered_early: set[int] = set()
        self._held: deque[asyncio.Future[None]] = deque()
        self._receiving = self._flush_is_due = self._paused = self._greeted = self._draining = self._gone = False
        self._looks = 0
        self._left = self._queued_bytes = self._taken_bytes = self._buffered_bytes = 0

    # -- asyncio -----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._shared.connections.add(self)
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            host, port = address[:2]
            self.peer = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
        if self._identify is not None:
            self._shown = shown_certificates(transport)
        self._transport.set_write_buffer_limits(high=limits.UNSENT_BYTES)
        self._h2.initiate_connection(_SETTINGS)
        self._h2.set_local_window_size(_CONNECTION_WINDOW_BYTES)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go."""
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        self._receiving = True  # what is answered at once leaves together
        try:
            self._h2.receive_data(self._shared.buffer[:nbytes])
            for event in self._h2.events():
                self._handle(event)
        except ngh2.NGH2Error as error:
            self.give_up(f"it does not speak HTTP/2: {error}")
        except Exception:
            _LOG.exception("a bug in this server ended a connection of %s", self.peer)
            self.give_up("a bug")
        finally:
            self._receiving = False
        self._flush()

    def eof_received(self) -> None:
        """The peer has closed its side: gRPC has no use for half a connection."""

    def pause_writing(self) -> None:
        """The transport is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """It is not any more."""
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It is over, and so are its calls."""
        self._gone = True
        self._broken_off = _OVER  # the other leads back here: all of it would stay until cycles are collected
        self._shared.connections.discard(self)
        self._held.clear()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.forget()

    # -- the worker --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """``limits.UPLOAD_STALL_SECONDS`` / 2 have passed: end what has not moved since the last look."""
        self._looks += 1
        if not self._greeted and self._looks > 1:
            return self.give_up("it did not say hello")
        # What acknowledges pings and settings is no answer, and whoever takes only that takes nothing.
        unsent, buffered = self._h2.queued_body_size(), self._transport.get_write_buffer_size()
        taken = self._queued_bytes - unsent
        if self._left and unsent + buffered and taken == self._taken_bytes and buffered >= self._buffered_bytes:
            return self.give_up("it takes nothing of its answers")
        self._left, self._taken_bytes, self._buffered_bytes = unsent + buffered, taken, buffered
        for call in list(self._calls.values()):
            call.look()
        return self._flush()

    def drain(self) -> None:
        """Let no new calls begin, and close when the last one has ended.

        First the peer is told, and only when it has heard of it the streams that it opened meanwhile are the last
        (RFC 9113 §6.8): no call is lost that was on its way.
        """
        self._draining = True
        if not self._greeted:
            return self.give_up("the server is stopping")
        with self._broken_off:
            self._h2.send_shutdown_notice()
            self._h2.ping()
        self._flush()
        asyncio.get_running_loop().call_later(_FINAL_SECONDS, self._say_goodbye)
        return None

    def end(self) -> None:
        """End every call now, and close when that has been sent."""
        for call in list(self._calls.values()):
            call.end(_STOPPING)
        self._say_goodbye()

    def lose(self) -> None:
        """Close now, and do not wait to hear of it."""
        self._transport.abort()
        if not self._gone:
            self.connection_lost(None)

    # -- calls -------------------------------------------------------------------------------------------------------

    def consumed(self, stream_id: int, size_bytes: int) -> None:
        """The peer may send as much again."""
        if not self._gone:
            with self._broken_off:
                self._h2.acknowledge_received_data(size_bytes, stream_id)
            self._flush()

    def send(self, call: Call, message: Parts) -> None:
        """Queue a message of the answer. It is sent with what follows at once, or else in a moment."""
        if not self._gone and not call.over:
            with self._broken_off:
                self._queue(call, message)
            if len(message[-1]) > _JOINED_BYTES:
                self._flush()
            else:
                self._flush_soon()

    def unsent_bytes(self, stream_id: int) -> int:
        """What of the answer the peer has not taken yet."""
        return 0 if self._gone else self._h2.queued_body_size(stream_id)

    def finish(self, call: Call, answer: Bytes | None, status: Status) -> None:
        """Queue the end of the call, after its ``answer`` if there is one, and send what can be sent."""
        if self._gone or self._calls.pop(call.stream_id, None) is None:
            return
        with self._broken_off:
            if answer is not None:
                self._queue(call, (answer,))
            trailers = _OK_TRAILERS if status is OK else status.trailers()
            if call.begun_answer:
                self._h2.send_trailers(call.stream_id, trailers)
            else:
                self._h2.send_response(call.stream_id, BEGIN + trailers, end_stream=True)
        if not call.ended:
            self._answered_early.add(call.stream_id)
        if self._calls:
            self._flush_soon()
        else:
            self._flush()

    def may_answer(self) -> bool:
        """Whether the peer has taken enough of what it was answered before."""
        return self._gone or self._h2.queued_body_size() <= limits.UNSENT_PER_CONNECTION_BYTES

    async def until_it_may_answer(self) -> None:
        """Wait for that, or until it is worth asking again."""
        waiter = asyncio.get_running_loop().create_future()
        self._held.append(waiter)
        try:
            await waiter
        finally:
            with suppress(ValueError):
                self._held.remove(waiter)

    # -- within ------------------------------------------------------------------------------------------------------

    def _handle(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.DataReceived):
            self._data(event.stream_id, event.data, ended=event.end_stream)
        elif isinstance(event, ngh2.RequestReceived):
            self._request(event.stream_id, event.headers, ended=event.end_stream)
        elif isinstance(event, ngh2.StreamClosed):
            self._answered_early.discard(event.stream_id)
            if (call := self._calls.pop(event.stream_id, None)) is not None:
                call.forget()
        elif isinstance(event, ngh2.TrailersReceived):
            self._data(event.stream_id, b"", ended=True)
        elif isinstance(event, ngh2.SettingsReceived):
            self._greeted = True
        elif isinstance(event, ngh2.PingAcknowledged) and self._draining:
            self._say_goodbye()
        elif isinstance(event, ngh2.ConnectionClosed):
            self.give_up(f"HTTP/2 error {event.error_code}")

    def _request(self, stream_id: int, fields: Fields, *, ended: bool) -> None:
        try:
            opening = opening_of(fields, self._shared.rpcs, self._recognise)
        except Refused as refused:
            self._h2.send_response(stream_id, refused.fields, end_stream=True)
            if not ended:
                self._answered_early.add(stream_id)
            return
        call = self._calls[stream_id] = Call(self, stream_id, opening.rpc, opening.principal, opening.deframer)
        if opening.timeout_seconds is not None:
            call.deadline = asyncio.get_running_loop().call_later(opening.timeout_seconds, call.end, _TIME_IS_UP)
        call.begin()
        if ended:
            call.feed(b"", ended=True)

    def _recognise(self) -> Principal:
        return _ANYBODY if self._identify is None else Principal(self._identify(self._shown))

    def _data(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            call.feed(data, ended=ended)
        else:  # it was answered already
            if data:
                self._h2.acknowledge_received_data(len(data), stream_id)
            if ended:
                self._answered_early.discard(stream_id)

    def _queue(self, call: Call, message: Parts) -> None:
        if not call.begun_answer:
            call.begun_answer = True
            self._h2.send_response(call.stream_id, BEGIN)
        size = sum(map(len, message))
        self._queued_bytes += PREFIX_BYTES + size
        if size <= _JOINED_BYTES:
            self._h2.send_data(call.stream_id, b"".join((prefix_of(size), *message)))
        else:
            self._h2.send_data(call.stream_id, b"".join((prefix_of(size), *message[:-1])))
            self._h2.send_data(call.stream_id, message[-1])

    def _flush_soon(self) -> None:
        """Send what other calls add at this moment with it: a system call costs more than all else that a small one takes."""
        if not self._flush_is_due and not self._receiving:  # else it is sent when all that came is dealt with
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send what the peer and the transport take."""
        self._flush_is_due = False
        if self._gone or self._receiving:
            return None
        with self._broken_off:
            self._send_queued()
            if self._answered_early and self._end_early():
                self._send_queued()
            if self._hear_what_was_ended():
                self._send_queued()
            if not self._h2.want_read and not self._h2.want_write:
                return self.give_up("HTTP/2 has ended it")
        for call in list(self.writing):
            call.taken()
        return self._go_on()

    def _send_queued(self) -> None:
        while not self._paused and not self._transport.is_closing() and (data := self._h2.data_to_send(_FLUSH_BYTES)):
            self._transport.write(data)

    def _hear_what_was_ended(self) -> bool:
        """Streams that HTTP/2 itself has ended, for a mistake of the peer's, are known when that was sent."""
        events = self._h2.events()
        self._receiving = True
        try:
            for event in events:
                self._handle(event)
        finally:
            self._receiving = False
        return bool(events)

    def _end_early(self) -> bool:
        """Tell peers that were answered before they had said all that they need not go on (RFC 9113 §8.1)."""
        sent = [stream_id for stream_id in self._answered_early if not self._h2.queued_body_size(stream_id)]
        if self._paused:
            return False
        for stream_id in sent:
            self._answered_early.discard(stream_id)
            self._h2.reset_stream(stream_id, ngh2.ErrorCode.NO_ERROR)
        return bool(sent)

    def _go_on(self) -> None:
        while self._held and self.may_answer():
            if not (waiter := self._held.popleft()).done():
                waiter.set_result(None)
        if self._draining and not self._calls and not self._held and not self._h2.queued_body_size():
            self._transport.close()

    def _say_goodbye(self) -> None:
        if not self._gone:
            self._draining = True
            with self._broken_off:
                self._h2.send_goaway()
            self._flush()

    def give_up(self, reason: str) -> None:
        """Close, with what can still be said."""
        if not self._gone and not self._transport.is_closing():
            _LOG.debug("a connection of %s is ended: %s", self.peer, reason)
            with suppress(ngh2.NGH2Error):
                self._send_queued()
            self._transport.close()
            # What the transport holds it would keep for ever for a peer that takes nothing.
            asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self._transport.abort)
