"""Taking connections, whatever is spoken on them.

The rule: nothing that a peer does, and no lack of descriptors, ends the taking; what is wrong for long is said once in
a while.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import NoReturn

from millpond.core.seldom import Seldom
from millpond.sockets.places import Tls
from millpond.sockets.tls import TlsConnection, TlsFailed

_SELDOM = Seldom(logging.getLogger(__name__))
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_RETRY_SECONDS = 0.1
_AT_ONCE = 16
"""Then others have their turn."""
GOODBYE_SECONDS = 5.0
"""What a peer gets to take the last bytes, and to say goodbye in TLS, before its connection is cut."""


async def accept(listening: socket.socket, take: Callable[[socket.socket], None]) -> NoReturn:
    """Give every connection to ``take``, until cancelled."""
    loop = asyncio.get_running_loop()
    listening.settimeout(0)
    while True:
        lack: asyncio.Future[OSError] = loop.create_future()
        # It stays registered: to ask for each connection anew costs as much as answering its first call.
        loop.add_reader(listening, _accept_some, listening, take, lack)
        try:
            error = await lack
        finally:
            loop.remove_reader(listening)
        _SELDOM.say(logging.ERROR, "accepting", f"no connection can be accepted: {error}")
        await asyncio.sleep(_RETRY_SECONDS)


def _accept_some(
    listening: socket.socket, take: Callable[[socket.socket], None], lack: "asyncio.Future[OSError]"
) -> None:
    for _ in range(_AT_ONCE):
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                if not lack.done():
                    lack.set_result(error)
                return
            continue  # the peer was gone before we came
        take(connection)


async def connect(
    protocol: asyncio.BaseProtocol, connection: socket.socket, tls: Tls | None, *, handshake_seconds: float
) -> asyncio.Transport:
    """A transport for ``protocol`` on an accepted connection, with TLS by the keys of this moment.

    Raises:
        OSError: no handshake came about (``TlsFailed``, or ``TimeoutError``); the connection is closed.
    """
    loop = asyncio.get_running_loop()
    try:
        if tls is None:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
            return transport
        encrypted = TlsConnection(protocol, tls.context(), goodbye_seconds=GOODBYE_SECONDS)
        transport, _ = await loop.connect_accepted_socket(lambda: encrypted, connection)
    except BaseException:
        connection.close()
        raise
    try:
        async with asyncio.timeout(handshake_seconds):
            await encrypted.handshake
    except TlsFailed:
        raise  # what TLS tells the peer of it is on its way
    except BaseException:
        transport.abort()
        raise
    return encrypted
