"""Room for requests on their way in.

A peer may always send what a stream's window holds. A message that is larger needs the window to be opened for it, and
that is asked for here, so that all the messages that come at once have a bound.

The rule: who stalls holds up nobody. Room is given in the order of asking; what was given and then not used for a moment
counts only as far as it was used.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Message:
    """A message that asked for room. ``open``: called once there is."""

    size_bytes: int
    open: Callable[[], None]
    came_bytes: int = 0
    """How much of it is here; whoever receives it keeps it true."""
    counted_bytes: int = field(default=0, init=False)
    seen_bytes: int = field(default=-1, init=False)


class Inflow:
    """Shared by the connections of one worker. For the event loop alone."""

    def __init__(self, room_bytes: int) -> None:
        """``room_bytes``: at least the largest message."""
        self._free = room_bytes
        self._coming: set[Message] = set()
        self._waiting: deque[Message] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._coming and not self._waiting

    def ask(self, message: Message) -> None:
        """Have ``message`` opened, now or when there is room."""
        self._waiting.append(message)
        self._let_in()

    def over(self, message: Message) -> None:
        """It has come, or nobody wants it any more."""
        if message in self._coming:
            self._coming.discard(message)
            self._free += message.counted_bytes
        elif message in self._waiting:
            self._waiting.remove(message)
        self._let_in()

    def look(self) -> None:
        """Take back what stalled messages do not use. To be called now and then."""
        for message in self._coming:
            if message.came_bytes == message.seen_bytes < message.counted_bytes:
                self._free += message.counted_bytes - message.seen_bytes
                message.counted_bytes = message.seen_bytes
            elif message.came_bytes > message.counted_bytes:  # it goes on after all
                self._free -= message.came_bytes - message.counted_bytes
                message.counted_bytes = message.came_bytes
            message.seen_bytes = message.came_bytes
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0].size_bytes <= self._free:
            message = self._waiting.popleft()
            message.counted_bytes = message.size_bytes
            self._free -= message.size_bytes
            self._coming.add(message)
            message.open()
