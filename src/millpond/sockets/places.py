"""Where a server listens, how it encrypts there, and what a peer shows of itself.

The rule: keys are asked for anew at each handshake, so that a new or revoked one counts at once.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from OpenSSL import SSL

from millpond.core.errors import NotAuthenticated

_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Tls:
    """How to encrypt, and who gets in.

    ``context``: the newest keys, asked for at each handshake. ``identify``: the identity of who showed these
    certificates (PEM), or ``NotAuthenticated``; None: whoever comes.
    """

    context: Callable[[], SSL.Context]
    identify: Callable[[bytes], str] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen, as for ``socket.bind``."""

    host: str
    port: int
    tls: Tls | None


def listen(place: Place) -> socket.socket:
    """A socket that listens there, beside others of this user that do (``SO_REUSEPORT``).

    Raises:
        OSError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Inherited by every connection: else one that is still being closed keeps the next server off the port.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every connection: a peer that is gone without a word is found out some day (tcp(7)).
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if place.host == "::" else 1)
        listening.bind((place.host, place.port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)  # noqa: FBT003 - the standard library
    except BaseException:
        listening.close()
        raise
    return listening


def shown_certificates(transport: asyncio.BaseTransport) -> bytes:
    """What a peer showed in its handshake, its own certificate first, in PEM.

    Raises:
        NotAuthenticated: there was no handshake.
    """
    shown = transport.get_extra_info("shown_certificates")
    if shown is None:
        raise NotAuthenticated("a connection without TLS shows no certificate")
    return bytes(shown)
