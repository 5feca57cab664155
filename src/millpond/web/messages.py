"""Requests and answers as handlers see them.

The rule: an answer that is not a success has no body. OSTree clients of 2022 and older take a page that comes with 404
for the file that they asked for, and report that it is too large.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol


class Content(Protocol):
    """What a body is read from, part by part; blocking."""

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset``; fewer only when there are no more."""
        ...

    def close(self) -> None:
        """It is not needed any more. Called once, whatever happened."""
        ...


@dataclass(frozen=True, slots=True)
class Body:
    """``count`` bytes from ``offset`` on. ``at_hand``: they are in memory, so that reading them takes no time."""

    content: Content
    offset: int
    count: int
    at_hand: bool = False


@dataclass(slots=True, eq=False)
class Peer:
    """Who is at the other end of a connection.

    ``connected``: it still is. ``left``: it was it who ended the connection, between two requests and without having said
    so before.
    """

    address: str = ""
    connected: bool = True
    left: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for.

    ``path`` as it came, percent-encoded, without a query; names of ``headers`` in lower case; the same ``peer`` for all
    requests of one connection.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: Peer = field(default_factory=Peer)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers beside those that every answer has, and what to send."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None


Handler = Callable[[Request], Awaitable[Answer]]
