"""What comes from the client: exactly so many bytes at a time, never more than was asked for kept back.

The rule: nobody waits for the end of the input, because old clients keep it open; who sends nothing for long is given up.
"""

from __future__ import annotations

import os
import select

from millpond.core.errors import InvalidRequest, Stalled
from millpond.core.limits import OSTREE_STALL_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 1 << 20


class EndOfInput(InvalidRequest):
    """The client went away in the middle."""


class Incoming:
    """The bytes of one descriptor in their order."""

    def __init__(self, descriptor: int, stall_seconds: float = OSTREE_STALL_SECONDS) -> None:
        self._descriptor = descriptor
        self._stall_ms = int(1000 * stall_seconds)
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._buffer = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next bytes, so many.

        Raises:
            EndOfInput: there are not so many.
            Stalled: nothing came for long.
        """
        end = self._at + size
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next bytes, so many, as they come.

        Raises:
            EndOfInput: there are not so many.
            Stalled: nothing came for long.
        """
        while size:
            if self._at == len(self._buffer):
                self._fill()
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def _fill(self) -> None:
        if not self._poll.poll(self._stall_ms):
            raise Stalled(f"nothing came for {self._stall_ms // 1000} seconds")
        self._buffer, self._at = os.read(self._descriptor, _READ_BYTES), 0
        if not self._buffer:
            raise EndOfInput("the client went away before the push was over")
