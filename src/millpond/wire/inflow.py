"""Room for requests on their way in.

A peer may always send what a stream's window holds. A message that is larger needs the window to be opened for it, and
that is asked for here, so that all the messages that come at once have a bound. What nobody waits for yet is to be asked for
only while half of the room is free, or uploads that wait for the disk would hold up all else.

The rule: who stalls holds up nobody, and takes no more than he had. Room goes to whose peer has least of it, no peer gets
more than half, and from a message that does not come for a moment what it has not used is taken back: its window is
closed, and it asks again. When nothing moves and what stands still leaves no room for others, the largest of it is given
up.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.core import limits

_MOVING_BYTES = limits.STREAM_WINDOW_BYTES
"""Of a message that moves so much comes from one look to the next, or its end."""


def _nothing() -> None:
    pass


@dataclass(eq=False, slots=True)
class Message:
    """A message that asked for room.

    ``peer``: whose it is. ``open``: called once there is room; ``close``: no more than a window may come; ``give_up``: it
    must end.
    """

    peer: object
    size_bytes: int
    open: Callable[[], None]
    close: Callable[[], None] = _nothing
    give_up: Callable[[], None] = _nothing
    came_bytes: int = 0
    """How much of it is here; whoever receives it keeps it true."""
    counted_bytes: int = field(default=0, init=False)
    seen_bytes: int = field(default=-1, init=False)


class Inflow:
    """Shared by the connections of one worker. For the event loop alone."""

    def __init__(self, room_bytes: int) -> None:
        """``room_bytes``: at least twice the largest message."""
        self._room_bytes = self._free = room_bytes
        self._of_peer: dict[object, int] = {}
        self._coming: dict[Message, None] = {}
        self._waiting: dict[Message, None] = {}  # in the order of asking

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way, and all room is free."""
        return not self._coming and not self._waiting and self._free == self._room_bytes and not self._of_peer

    @property
    def is_roomy(self) -> bool:
        """Whether what is not waited for yet may come as well: half of the room is kept for what is."""
        return 2 * self._free >= self._room_bytes

    def ask(self, message: Message) -> None:
        """Have ``message`` opened, now or when there is room."""
        self._waiting[message] = None
        self._let_in()

    def over(self, message: Message) -> None:
        """It has come, or nobody wants it any more. Repeating it is fine."""
        self._coming.pop(message, None)
        self._waiting.pop(message, None)
        self._count(message, 0)
        self._let_in()

    def look(self) -> None:
        """Take back what stalled messages do not use. To be called now and then."""
        for message in list(self._coming):
            moved = message.came_bytes - message.seen_bytes
            if message.seen_bytes >= 0 and message.came_bytes < message.counted_bytes and moved < _MOVING_BYTES:
                self._count(message, message.came_bytes)
                del self._coming[message]
                self._waiting[message] = None
                message.close()
            message.seen_bytes = message.came_bytes
        self._let_in()
        still = [message for message in self._waiting if message.counted_bytes]
        moves = any(message.came_bytes < message.counted_bytes for message in self._coming)
        if still and not moves and (len(self._waiting) > 1 or not self._coming):
            max(still, key=lambda message: message.counted_bytes).give_up()

    def _let_in(self) -> None:
        while (message := self._next()) is not None and message.size_bytes - message.counted_bytes <= self._free:
            del self._waiting[message]
            self._count(message, message.size_bytes)
            message.seen_bytes = -1
            self._coming[message] = None
            message.open()

    def _next(self) -> Message | None:
        """Whose turn it is: of the peer that has least, and of these who asked first."""
        most = self._room_bytes // 2
        of_peer = self._of_peer.get
        may = [
            message
            for message in self._waiting
            if (has := of_peer(message.peer, 0)) == message.counted_bytes
            or has - message.counted_bytes + message.size_bytes <= most
        ]
        return min(may, key=lambda message: of_peer(message.peer, 0), default=None)

    def _count(self, message: Message, size_bytes: int) -> None:
        more = size_bytes - message.counted_bytes
        message.counted_bytes = size_bytes
        self._free -= more
        has = self._of_peer.get(message.peer, 0) + more
        if has:
            self._of_peer[message.peer] = has
        else:
            self._of_peer.pop(message.peer, None)
