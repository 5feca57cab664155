"""A small HTTP/1.1 server: connections come, are counted and bounded, and leave in order.

The rule: nobody can keep others out. A connection costs a peer something only while it is answered; of those that are
waited for, the one that has waited longest makes room for a newcomer.
"""

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from millpond.core import limits
from millpond.core.errors import NotAuthenticated
from millpond.core.seldom import Seldom
from millpond.web.conversation import Conversation, Standing
from millpond.web.messages import Handler

_LOG = logging.getLogger(__name__)
_SELDOM = Seldom(_LOG)
_BACKLOG = 512
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_SECONDS = 0.1
_DER = 2  # ssl.h's X509_FILETYPE_ASN1, as _ssl.ENCODING_DER
_GOODBYE_SECONDS = 5.0
"""What a peer gets to take the last bytes, and to say goodbye in TLS, before its connection is cut."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How to encrypt, and who gets in.

    ``context``: the newest keys, asked for at each handshake. ``identify``: the identity of who showed these
    certificates (PEM), or ``NotAuthenticated``; None: whoever comes.
    """

    context: Callable[[], ssl.SSLContext]
    identify: Callable[[bytes], str] | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen, as for ``socket.bind``."""

    host: str
    port: int
    tls: Tls | None


class HttpServer:
    """Serves one handler on several addresses. For one event loop."""

    def __init__(self, handler: Handler, *, connections: int = limits.HTTP_CONNECTIONS) -> None:
        self._handler = handler
        self._most = connections
        self._listening: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._peers: dict[asyncio.Task[None], Standing] = {}

    def start(self, places: Sequence[Place]) -> list[int]:
        """Listen; the ports.

        Raises:
            OSError: an address cannot be listened on.
        """
        ports = []
        for place in places:
            listening = _listen(place)
            self._listening.append(listening)
            self._accepting.append(asyncio.create_task(self._accept(listening, place.tls)))
            ports.append(int(listening.getsockname()[1]))
        return ports

    async def stop(self, grace_seconds: float) -> None:
        """Let nobody in any more and end who only waits; running answers get ``grace_seconds``."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._listening:
            listening.close()
        for peer, standing in list(self._peers.items()):
            if standing.waiting_since is None:
                standing.ending = True
            else:
                peer.cancel()
        if self._peers:
            _, late = await asyncio.wait(list(self._peers), timeout=grace_seconds)
            for peer in late:
                peer.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _accept(self, listening: socket.socket, tls: Tls | None) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    _SELDOM.say(logging.ERROR, "accepting", f"no connection can be accepted: {error}")
                    await asyncio.sleep(_RETRY_SECONDS)
                continue  # else the peer was gone before we came
            if len(self._peers) >= self._most and not self._make_room():
                connection.close()
                continue
            standing = Standing(waiting_since=time.monotonic())
            peer = asyncio.create_task(self._serve(connection, tls, standing))
            self._peers[peer] = standing
            peer.add_done_callback(self._forget)

    def _make_room(self) -> bool:
        """End who has waited longest; False when all are being answered."""
        waiting = {peer: one.waiting_since for peer, one in self._peers.items() if one.waiting_since is not None}
        if not waiting:
            return False
        longest = min(waiting, key=waiting.__getitem__)
        self._forget(longest)
        longest.cancel()
        return True

    def _forget(self, peer: asyncio.Task[None]) -> None:
        self._peers.pop(peer, None)
        if peer.done() and not peer.cancelled() and (bug := peer.exception()) is not None:
            _LOG.error("a connection ended by a bug of ours", exc_info=bug)

    async def _serve(self, connection: socket.socket, tls: Tls | None, standing: Standing) -> None:
        try:
            reader, writer = await _open(connection, tls)
        except (OSError, ssl.SSLError, TimeoutError) as error:
            _LOG.debug("a handshake failed: %r", error)
            return
        try:
            await Conversation(reader, writer, self._handler, _admission(writer, tls), standing).hold()
        finally:
            await _close(writer)


def _listen(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if place.host == "::" else 1)
        listening.bind((place.host, place.port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)  # noqa: FBT003 - the standard library
    except BaseException:
        listening.close()
        raise
    return listening


async def _open(connection: socket.socket, tls: Tls | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams on an accepted connection, with TLS by the keys of this moment."""
    loop = asyncio.get_running_loop()
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=None if tls is None else tls.context(),
            ssl_handshake_timeout=None if tls is None else limits.HTTP_HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=None if tls is None else _GOODBYE_SECONDS,
        )
    except BaseException:
        connection.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _close(writer: asyncio.StreamWriter) -> None:
    try:
        writer.close()
        async with asyncio.timeout(_GOODBYE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        with suppress(Exception):
            writer.transport.abort()


def _admission(writer: asyncio.StreamWriter, tls: Tls | None) -> Callable[[], None]:
    if tls is None or tls.identify is None:
        return lambda: None
    identify, shown = tls.identify, _shown_certificates(writer.get_extra_info("ssl_object"))

    def admit() -> None:
        identify(shown)

    return admit


def _shown_certificates(connection: ssl.SSLObject | None) -> bytes:
    """What a peer showed, its own certificate first, in PEM."""
    if connection is None:
        raise NotAuthenticated("a connection without TLS shows no certificate")
    # Public since Python 3.13; before, only the object below has it.
    holder = connection if hasattr(connection, "get_unverified_chain") else getattr(connection, "_sslobj")  # noqa: B009
    chain = [one for one in holder.get_unverified_chain() or [] if one is not None]
    encoded = [one if isinstance(one, bytes) else one.public_bytes(_DER) for one in chain]
    return "".join(ssl.DER_cert_to_PEM_cert(one) for one in encoded).encode()
