"""What an RPC is to those who answer it: its name, its shape, and the call that a handler is given."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from millpond.services.access import Principal
from millpond.store.interface import Bytes

Parts = Sequence[Bytes]
"""A message in one or several pieces, so that what is large need not be copied behind what is small."""


class Context(Protocol):
    """One call, as its handler sees it."""

    @property
    def principal(self) -> Principal:
        """Who is calling: somebody who may come in."""

    @property
    def peer(self) -> str:
        """Where from, for logs: ``ipv4:127.0.0.1:40000``."""

    async def arrived(self) -> None:
        """Wait until :meth:`read` would not wait."""

    async def read(self) -> bytes | None:
        """The next message of a stream; None after the last."""

    async def write(self, message: Parts) -> None:
        """Send a message of a stream. Waits while the peer takes nothing."""


class Access(Enum):
    """What it takes to call an RPC."""

    PULL = "pull"
    PUSH = "push"
    OPEN = "open"
    """Nothing but to be let in at all: what comes with gRPC and knows nothing of the cache."""


Answer = Callable[[bytes, Context], Awaitable[Bytes | None]]
"""Answers a call with one message, or after having written several with None. A stream is read from the context."""
Stream = Callable[[bytes, Context], AsyncGenerator[Parts, None]]


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC: full service name, method, access, and what answers it.

    ``reads``: its requests are a stream; the handler starts with the call and is given none. Else it starts when its one
    request is complete.
    """

    service: str
    method: str
    access: Access
    answer: Answer
    reads: bool = False

    @property
    def path(self) -> bytes:
        """``:path`` of its calls."""
        return f"/{self.service}/{self.method}".encode()


def streaming(handler: Stream) -> Answer:
    """A handler that yields what it has to say, as one that writes it."""

    async def answer(request: bytes, context: Context) -> None:
        async with aclosing(handler(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return answer
