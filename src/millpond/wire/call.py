"""One RPC: what its peer has sent of it, and what it is answered.

The rule: a peer sends only what somebody is waiting for, and of a stream the message after that. Bytes count as consumed,
so that the peer may send as many more, when their message was taken; only those of a message that does not fit into the
stream's window, and that its handler waits for or will ask for next, count as consumed when they come.
"""

import asyncio
import functools
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol

import grpc

from millpond.core import limits
from millpond.protocol.grpc_framing import Deframer, MessageTooLarge, Packed, UnreadableMessage
from millpond.services.access import Principal
from millpond.store.interface import Bytes
from millpond.wire.errors import OK, Ended, Status, status_of
from millpond.wire.inflow import Inflow, Message
from millpond.wire.prompt import Prompt
from millpond.wire.rpc import Parts, Rpc

_WIDE_BYTES = limits.STREAM_WINDOW_BYTES // 2
"""A message of up to this size always fits into the window: at least so much of it has been given back (RFC 9113 §6.9)."""

_TOO_LARGE = Status(
    grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message has at most {limits.RECEIVE_BYTES} bytes here, this one has more"
)
_UNREADABLE = Status(grpc.StatusCode.INTERNAL, "a message is not packed as the call's grpc-encoding says")
_CUT_OFF = Status(grpc.StatusCode.INVALID_ARGUMENT, "the call ended in the middle of a message")
_NOT_ONE = Status(grpc.StatusCode.UNIMPLEMENTED, "this method takes exactly one message")
_IN_THE_WAY = Status(grpc.StatusCode.UNAVAILABLE, "a large message stood still while others waited: try again")
_STALLED = Status(grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing came for {limits.UPLOAD_STALL_SECONDS} s")


class Line(Protocol):
    """What a call needs of its connection."""

    peer: str
    inflow: Inflow
    running: set[asyncio.Future[None]]
    """Every handler at work, so that none is forgotten."""
    writing: "set[Call]"
    """The calls that wait until the peer has taken some of their answers."""

    def consumed(self, stream_id: int, size_bytes: int) -> None:
        """The peer may send as much again."""

    def send(self, call: "Call", message: Parts) -> None:
        """Queue a message of the answer."""

    def unsent_bytes(self, stream_id: int) -> int:
        """What of the answer the peer has not taken yet."""

    def finish(self, call: "Call", answer: Bytes | None, status: Status) -> None:
        """Queue the end of the call, after its ``answer`` if there is one."""

    def may_answer(self) -> bool:
        """Whether the peer has taken enough of what it was answered before."""

    async def until_it_may_answer(self) -> None:
        """Wait for that, or until it is worth asking again."""


@types.coroutine
def _rest_of(begun: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """``begun`` from where it awaits, as if it had been a task from the beginning (PEP 342, PEP 492)."""
    while True:
        try:
            came = yield awaited
        except BaseException as error:
            step: Callable[[], Any] = functools.partial(begun.throw, error)
        else:
            step = functools.partial(begun.send, came)
        try:
            awaited = step()
        except StopIteration:
            return


class Call:
    """A call that was let in. Its handler's :class:`millpond.wire.rpc.Context`."""

    __slots__ = (
        "_ahead",
        "_deframer",
        "_line",
        "_message",
        "_messages",
        "_open",
        "_reader",
        "_rpc",
        "_seen_bytes",
        "_task",
        "_unconsumed",
        "_wants",
        "_writer",
        "begun_answer",
        "deadline",
        "ended",
        "over",
        "principal",
        "received_bytes",
        "stream_id",
    )

    def __init__(self, line: Line, stream_id: int, rpc: Rpc, principal: Principal, deframer: Deframer) -> None:
        self._line = line
        self._rpc = rpc
        self._deframer = deframer
        self.stream_id = stream_id
        self.principal = principal
        self.ended = False  # the peer has said all
        self.over = False  # so have we, or nobody listens any more
        self.begun_answer = False
        self.deadline: asyncio.TimerHandle | None = None
        self._messages: deque[bytes] = deque()
        self._message: Message | None = None  # the one that needed room
        self._open = False  # it has got it
        self._unconsumed = self.received_bytes = 0
        self._seen_bytes = -1
        self._wants = not rpc.reads
        self._ahead = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._task: asyncio.Future[None] | None = None

    @property
    def peer(self) -> str:
        """Where the call comes from."""
        return self._line.peer

    # -- what the connection tells -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """All of the headers are here."""
        if self._rpc.reads:
            self._start(b"")

    def feed(self, data: bytes, *, ended: bool) -> None:
        """Data of the request, and whether it was the last."""
        self.received_bytes += len(data)
        if self._open:
            self._line.consumed(self.stream_id, len(data))
        else:
            self._unconsumed += len(data)
        try:
            self._messages.extend(self._deframer.feed(data))
        except MessageTooLarge:
            return self.end(_TOO_LARGE)
        except UnreadableMessage:
            return self.end(_UNREADABLE)
        if self._messages and self._message is not None:  # it is here
            self._open, self._message.came_bytes = False, self._message.size_bytes
        self.ended = ended
        if ended and not self._deframer.is_empty:
            return self.end(_CUT_OFF)
        if not self._rpc.reads:
            return self._feed_request()
        if self._reader is not None and (self._messages or ended):
            if not self._reader.done():
                self._reader.set_result(None)
        elif self._wants or self._ahead:
            self._make_way()
        return None

    def look(self) -> None:
        """A moment has passed: end a request that does not come; a stream's handler knows how long it waits."""
        if not self._rpc.reads and not self.ended and self._seen_bytes == self.received_bytes:
            self.end(_STALLED)
        self._seen_bytes = self.received_bytes

    def taken(self) -> None:
        """The peer has taken some of the answer."""
        if self._writer is not None and not self._writer.done() and not self._is_full():
            self._writer.set_result(None)

    def end(self, status: Status) -> None:
        """End it now, whatever its handler does."""
        if not self.over:
            self._line.finish(self, None, status)
        self.forget()

    def forget(self) -> None:
        """Nobody waits for an answer any more."""
        self.over = True
        self._release()
        if self._task is not None:
            task, self._task = self._task, None  # which may keep its request in the frame that it was cancelled in
            task.cancel()
            if isinstance(task, Prompt):
                self._line.running.discard(task)

    # -- for handlers ------------------------------------------------------------------------------------------------

    async def arrived(self) -> None:
        """Wait until the next message of the request is here, or there is none."""
        if not self._messages and not self.ended:
            self._wants = True
            self._make_way()
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
            self._wants = False

    async def read(self) -> bytes | None:
        """The next message of the request; None after the last."""
        await self.arrived()
        if not self._messages:
            return None
        message = self._messages.popleft()
        if not self._messages:
            self._release()
            self._consume()
            self._ahead = not self.ended
            if self._ahead:
                self._make_way()  # the next one comes while this one is dealt with
        return self._unpacked(message)

    async def write(self, message: Parts) -> None:
        """Send a message, and wait while the peer takes nothing."""
        self._line.send(self, message)
        while self._is_full():
            self._writer = asyncio.get_running_loop().create_future()
            self._line.writing.add(self)
            try:
                await self._writer
            finally:
                self._line.writing.discard(self)
                self._writer = None

    # -- within ------------------------------------------------------------------------------------------------------

    def _feed_request(self) -> None:
        if self.ended:
            self._consume()
            if len(self._messages) != 1:
                return self.end(_NOT_ONE)
            message = self._messages[0]
            if isinstance(message, Packed) and message.most_bytes > _WIDE_BYTES and self._message is None:
                most = min(message.most_bytes, limits.RECEIVE_BYTES)
                self._message = Message(self._line, most, self._start_request_soon, came_bytes=most)
                return self._line.inflow.ask(self._message)
            return self._start_request()
        if len(self._messages) > 1:
            return self.end(_NOT_ONE)
        return self._make_way()

    def _start_request_soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._start_request)

    def _start_request(self) -> None:
        if not self.over:
            self._start(self._messages.popleft())

    def _unpacked(self, message: bytes) -> bytes:
        try:
            return self._deframer.unpacked(message)
        except MessageTooLarge:
            raise Ended(_TOO_LARGE) from None
        except UnreadableMessage:
            raise Ended(_UNREADABLE) from None

    def _start(self, request: bytes) -> None:
        """Answer. A request that needs not wait for anything is answered at once; only what does becomes a task."""
        answering = self._run(request)
        if self._rpc.reads:
            self._go_on_as(asyncio.get_running_loop().create_task(answering))
        else:
            self._go_on(answering)

    def _go_on(self, answering: Coroutine[Any, Any, None]) -> None:
        try:
            awaited = answering.send(None)
        except StopIteration:
            return
        if isinstance(awaited, Prompt):
            awaited.go_on = functools.partial(self._go_on_after, awaited, answering)
            self._task = awaited
            self._line.running.add(awaited)
        else:
            self._go_on_as(asyncio.get_running_loop().create_task(_rest_of(answering, awaited)))

    def _go_on_after(self, prompt: Prompt, answering: Coroutine[Any, Any, None]) -> None:
        self._line.running.discard(prompt)  # a callback of its own would cost another turn of the event loop
        self._go_on(answering)

    def _go_on_as(self, task: "asyncio.Future[None]") -> None:
        self._task = task
        self._line.running.add(task)
        task.add_done_callback(self._line.running.discard)  # one that is cancelled before it begins has no other end

    async def _run(self, request: bytes) -> None:
        answer, status = None, OK
        try:
            if not self._rpc.reads:
                while not self._line.may_answer():
                    await self._line.until_it_may_answer()
                request = self._unpacked(request)
            answer = await self._rpc.answer(request, self)
        except asyncio.CancelledError:
            return  # whoever did that has said why, or nobody is there to be told
        except Exception as failure:
            status = status_of(failure, self.peer)
        if not self.over:
            self.over = True
            self._line.finish(self, answer, status)
            self._release()

    def _is_full(self) -> bool:
        if self.over:
            return False
        return self._line.unsent_bytes(self.stream_id) > (limits.UNSENT_BYTES if self._line.may_answer() else 0)

    def _make_way(self) -> None:
        """Let the message that is wanted come, if the window is too small for it."""
        if self._message is not None:
            if not self._messages:
                self._message.came_bytes = self._deframer.pending_bytes
        elif (size := self._deframer.in_progress_bytes) > _WIDE_BYTES and (self._wants or self._line.inflow.is_roomy):
            came = self._deframer.pending_bytes
            self._message = Message(
                self._line, size, self._open_window, self._close_window, lambda: self.end(_IN_THE_WAY), came
            )
            self._line.inflow.ask(self._message)

    def _open_window(self) -> None:
        self._open = True
        size, self._unconsumed = self._unconsumed, 0
        self._line.consumed(self.stream_id, size)

    def _close_window(self) -> None:
        self._open = False

    def _consume(self) -> None:
        """All messages were taken; what is left is the beginning of the next one."""
        size = self._unconsumed - self._deframer.pending_bytes
        if size > 0:
            self._unconsumed -= size
            self._line.consumed(self.stream_id, size)

    def _release(self) -> None:
        if self._message is not None:
            message, self._message, self._open = self._message, None, False
            self._line.inflow.over(message)
        if self.over and self._unconsumed:
            size, self._unconsumed = self._unconsumed, 0
            self._line.consumed(self.stream_id, size)
        if self.over and self.deadline is not None:
            self.deadline.cancel()
