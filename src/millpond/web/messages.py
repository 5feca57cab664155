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


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asks for.

    ``path`` as it came, percent-encoded, without a query; names of ``headers`` in lower case; ``peer``: its address,
    without a port.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers beside those that every answer has, and what to send."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None


Handler = Callable[[Request], Awaitable[Answer]]
