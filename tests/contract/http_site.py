"""An HTTP server of ours in the test's own event loop, and peers that talk to it as badly as they like."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from millpond.sockets.places import Place, Tls
from millpond.store.ostree.published import Published
from millpond.web.http_server import HttpServer
from millpond.web.messages import Handler
from millpond.web.ostree import OstreeHandler
from millpond.web.pulls import Pulls

SECONDS = 30


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: ``headers`` in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """A connection that sends bytes as they are and reads answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, *, to_head: bool = False) -> Reply:
        """The next answer, framed by its Content-Length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")[:-2]
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        count = 0 if to_head else int(headers.get("content-length", "0"))
        return Reply(int(first.split()[1]), headers, await self.reader.readexactly(count))

    async def get(self, path: str, *headers: str, method: str = "GET") -> Reply:
        lines = [f"{method} {path} HTTP/1.1", "Host: cache", *headers]
        self.send("\r\n".join([*lines, "", ""]).encode())
        return await self.reply(to_head=method == "HEAD")

    async def is_closed(self) -> bool:
        """Wait until the other side has closed; what it still said is lost."""
        try:
            while await self.reader.read(65536):
                pass
        except OSError:
            return True
        return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Site:
    """A server on a free port."""

    server: HttpServer
    port: int
    pulled: list[str] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    async def peer(self, *, tls: ssl.SSLContext | None = None) -> Peer:
        name = None if tls is None else "localhost"
        self.peers.append(Peer(*await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, server_hostname=name)))
        return self.peers[-1]


@asynccontextmanager
async def serving(
    what: Path | Handler, *, prefix: str = "/", connections: int = 100, tls: Tls | None = None
) -> AsyncIterator[Site]:
    """Serve a repository, or whatever a handler says."""
    pulled: list[str] = []
    if isinstance(what, Path):
        what = OstreeHandler(Published(str(what)), prefix, pulls=Pulls(pulled.append))
    server = HttpServer(what, connections=connections)
    (port,) = server.start([Place("127.0.0.1", 0, tls)])
    site = Site(server, port, pulled)
    try:
        yield site
    finally:
        await server.stop(0)
        for peer in site.peers:
            await peer.close()


def run(story: Callable[[], Awaitable[None]]) -> None:
    """Play one story to its end, on the event loop that servers use."""

    async def bounded() -> None:
        async with asyncio.timeout(SECONDS):
            await story()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
