"""A small HTTP/1.1 server: connections come, are counted and bounded, and leave in order.

The rule: nobody can keep others out. A connection costs a peer something only while it is answered; of those that are
waited for, the one that has waited longest makes room for a newcomer.
"""

import asyncio
import functools
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from millpond.core import limits
from millpond.sockets.accepting import GOODBYE_SECONDS, accept, connect
from millpond.sockets.places import Place, Tls, listen, shown_certificates
from millpond.web.conversation import Conversation, Standing
from millpond.web.messages import Handler

_LOG = logging.getLogger(__name__)


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
            listening = listen(place)
            self._listening.append(listening)
            self._accepting.append(asyncio.create_task(accept(listening, functools.partial(self._take, place.tls))))
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

    def _take(self, tls: Tls | None, connection: socket.socket) -> None:
        if len(self._peers) >= self._most and not self._make_room():
            connection.close()
            return
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
        except OSError as error:
            _LOG.debug("a handshake failed: %r", error)
            return
        try:
            await Conversation(reader, writer, self._handler, _admission(writer, tls), standing).hold()
        finally:
            await _close(writer)


async def _open(connection: socket.socket, tls: Tls | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams on an accepted connection."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = await connect(protocol, connection, tls, handshake_seconds=limits.HTTP_HANDSHAKE_SECONDS)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _close(writer: asyncio.StreamWriter) -> None:
    try:
        writer.close()
        async with asyncio.timeout(GOODBYE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        with suppress(Exception):
            writer.transport.abort()


def _admission(writer: asyncio.StreamWriter, tls: Tls | None) -> Callable[[], None]:
    if tls is None or tls.identify is None:
        return lambda: None
    identify, shown = tls.identify, shown_certificates(writer.transport)

    def admit() -> None:
        identify(shown)

    return admit
