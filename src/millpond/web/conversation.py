"""One connection: requests in, answers out, one after the other, until one side has had enough.

The rule: a peer is waited for only so long, when it asks and when it takes; and of what goes wrong here it learns
nothing but a status. What HTTP/1.1 is, h11 knows; this module moves bytes between it, the socket and the handler.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import h11

from millpond.core import limits
from millpond.core.errors import NotAuthenticated
from millpond.core.seldom import Seldom
from millpond.web.messages import Answer, Body, Handler, Peer, Request

_LOG = logging.getLogger(__name__)
_SELDOM = Seldom(_LOG)
_READ_BYTES = limits.HTTP_HEADER_BYTES


class CutShort(Exception):
    """A file ended before its time: what was promised cannot be sent, so the connection has to end."""


@dataclass(slots=True)
class Standing:
    """How a peer stands with us.

    ``waiting_since``: monotonic seconds, while it is its turn; None while it is being answered.
    ``ending``: its next answer is the last.
    """

    waiting_since: float | None
    ending: bool = False


class Conversation:
    """Serves one peer."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: Handler,
        admit: Callable[[], None],
        standing: Standing,
    ) -> None:
        """``admit`` is asked for each request; it raises ``NotAuthenticated`` for who may not come in, or no longer."""
        self._reader, self._writer, self._handler, self._admit = reader, writer, handler, admit
        self._standing = standing
        self._peer = Peer(str((writer.get_extra_info("peername") or ("",))[0]))
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.HTTP_HEADER_BYTES)

    async def hold(self) -> None:
        """Answer until one side ends it. Then the connection is to be closed, however this ended."""
        try:
            while await self._exchange():
                self._http.start_next_cycle()
                self._standing.waiting_since = time.monotonic()
        except h11.RemoteProtocolError as error:
            await self._refuse(HTTPStatus(error.error_status_hint))
        except (OSError, TimeoutError, h11.LocalProtocolError, CutShort) as error:
            _LOG.debug("a connection ended: %r", error)
        finally:
            self._peer.connected = False

    async def _exchange(self) -> bool:
        """One request and its answer; whether another may follow."""
        async with asyncio.timeout(limits.HTTP_REQUEST_SECONDS):
            event = await self._next_event()
        if not isinstance(event, h11.Request):
            self._peer.left = True
            return False
        self._standing.waiting_since = None
        if not isinstance(self._http.next_event(), h11.EndOfMessage):
            self._standing.ending = True  # it goes on to send a body, which nobody here wants to read
        request = _request(event, self._peer)
        await self._send(await self._answer(request), with_body=request.method != "HEAD")
        return not self._standing.ending and self._http.our_state is h11.DONE

    async def _next_event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(_READ_BYTES))
        return event

    async def _answer(self, request: Request) -> Answer:
        """What the handler says, if the peer may come in (I7)."""
        try:
            self._admit()
            return await self._handler(request)
        except NotAuthenticated:
            self._standing.ending = True
            return Answer(HTTPStatus.FORBIDDEN)
        except OSError as error:
            sentence = f"{request.method} {request.path[:200]!r} cannot be answered: {error}"
            _SELDOM.say(logging.ERROR, f"errno {error.errno}", sentence)
        except Exception:
            incident = secrets.token_hex(4)
            _LOG.exception("incident %s: %s %r", incident, request.method, request.path[:200])
        return Answer(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _refuse(self, status: HTTPStatus) -> None:
        """Answer what was no request."""
        self._standing.ending = True
        try:
            await self._send(Answer(status), with_body=False)
        except (OSError, TimeoutError, h11.LocalProtocolError) as error:
            _LOG.debug("a connection ended: %r", error)

    async def _send(self, answer: Answer, *, with_body: bool) -> None:
        body = answer.body
        try:
            head = self._http.send(_response(answer, ending=self._standing.ending)) or b""
            if body is None or not with_body:
                await self._write(head)
            else:
                await self._write_body(head, body)
            self._http.send(h11.EndOfMessage())
        finally:
            if body is not None:
                body.content.close()

    async def _write_body(self, head: bytes, body: Body) -> None:
        sent = 0
        while sent < body.count:
            count = min(limits.HTTP_CHUNK_BYTES, body.count - sent)
            if body.at_hand:
                part = body.content.read(body.offset + sent, count)
            else:
                part = await asyncio.to_thread(body.content.read, body.offset + sent, count)
            if len(part) < count:
                raise CutShort("a file is shorter than it was")
            # h11 only counts: the part itself is what would come back.
            self._http.send_with_data_passthrough(h11.Data(data=part))
            await self._write(head + part if head else part)
            head, sent = b"", sent + count
        if head:
            await self._write(head)

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(limits.HTTP_STALL_SECONDS):
            self._writer.write(data)
            await self._writer.drain()


def _request(event: h11.Request, peer: Peer) -> Request:
    path = event.target.decode("ascii")
    scheme, separator, rest = path.partition("://")
    if separator and scheme.lower() in ("http", "https"):  # as to a proxy (RFC 9112 §3.2.2)
        path = "/" + rest.partition("/")[2]
    headers: dict[str, str] = {}
    for name, value in event.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return Request(event.method.decode("ascii"), path.partition("?")[0], headers, peer)


def _response(answer: Answer, *, ending: bool) -> h11.Response:
    headers = [("Date", formatdate(usegmt=True)), *answer.headers.items()]
    if answer.status is not HTTPStatus.NOT_MODIFIED:
        headers.append(("Content-Length", str(answer.body.count if answer.body else 0)))
    if ending:
        headers.append(("Connection", "close"))
    encoded = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
    return h11.Response(status_code=answer.status.value, reason=answer.status.phrase.encode("ascii"), headers=encoded)
