"""TLS on an accepted connection, by pyOpenSSL. A home of ``OpenSSL``; the other is ``config/tls_contexts.py``.

The rule: what is spoken inside learns of TLS only what its peer showed, and a peer costs no more memory than one read
from the socket and what it is answered. Who stops reading inside stops the socket.
"""

import asyncio
import threading
from typing import cast

from OpenSSL import SSL, crypto

_READ_BYTES = 64 * 1024
_WRITE_BYTES = 64 * 1024
_RECORD_BYTES = 16 * 1024  # RFC 8446 §5.1
_RECORD_OVERHEAD_BYTES = 128
_SLACK_BYTES = 4096  # what was waiting to be sent before: a flight of a handshake, the answer to a new key
_UNTAKEN_REPLIES_BYTES = 64 * 1024
_BUFFERS = threading.local()
_NOBODY = asyncio.Protocol()

_CODES = SSL.X509VerificationCodes
_REFUSALS = {  # OpenSSL's own words, which pyOpenSSL does not hand out
    _CODES.ERR_CERT_HAS_EXPIRED: "certificate has expired",
    _CODES.ERR_CERT_NOT_YET_VALID: "certificate is not yet valid",
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "self-signed certificate",
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: "self-signed certificate in certificate chain",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: "unable to get issuer certificate",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "unable to get local issuer certificate",
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "unable to verify the first certificate",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "certificate signature failure",
    _CODES.ERR_INVALID_CA: "invalid CA certificate",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "path length constraint exceeded",
    _CODES.ERR_INVALID_PURPOSE: "unsuitable certificate purpose",
}


class TlsFailed(OSError):
    """A handshake that did not come about, or a connection that TLS had to end."""


class CertificateRefused(TlsFailed):
    """TLS does not take a client's certificate; the text says why."""


def note_refusal(connection: SSL.Connection, _: crypto.X509, code: int, __: int, accepted: int) -> bool:
    """For ``SSL.Context.set_verify``: OpenSSL's judgement as it is, kept so that it can be told."""
    if not accepted:
        connection.set_app_data(code)
    return bool(accepted)


class TlsConnection(asyncio.Transport, asyncio.BufferedProtocol):
    """Speaks TLS as the server: a protocol to the socket's transport, a transport to the protocol inside."""

    def __init__(self, inner: asyncio.BaseProtocol, context: SSL.Context, *, goodbye_seconds: float) -> None:
        """``goodbye_seconds``: what a peer gets to take the last bytes and to close its side."""
        super().__init__()
        self._inner = inner
        self._goodbye_seconds = goodbye_seconds
        self._loop = asyncio.get_running_loop()
        self._tls = SSL.Connection(context)
        self._tls.set_accept_state()
        self._raw: asyncio.Transport
        self._buffer = _buffer()
        self._cut: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None
        self._established = self._closing = self._heard_all = False
        self._reading_paused = self._writing_paused = False
        self._unflushed_bytes = self._replied_bytes = 0
        self.handshake: asyncio.Future[None] = self._loop.create_future()
        """Done when the protocol inside has its connection; or else it has the reason, an ``OSError``."""

    # -- a protocol, to the socket's transport ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a socket; its peer has the first word."""
        self._raw = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go: one place for all, for they are taken from there at once."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._closing:
            return  # nobody wants to know any more
        self._tls.bio_write(self._buffer[:nbytes])
        self._unflushed_bytes += nbytes
        if self._established:
            self._receive()
        else:
            self._shake_hands()

    def eof_received(self) -> bool:
        """The peer has closed the socket, with a goodbye in TLS or without."""
        self._heard_all = True
        if self._closing:
            self._raw.close()
        elif not self._established:
            self._fail(TlsFailed("the peer left during the handshake"))
        else:
            self._receive()  # what is waiting, if anything is, and then the end
        return True  # closed by us

    def pause_writing(self) -> None:
        """The socket is full."""
        if self._established:
            self._writing_paused = True
            cast(asyncio.Protocol, self._inner).pause_writing()

    def resume_writing(self) -> None:
        """It is not any more."""
        if self._writing_paused:
            self._writing_paused = False
            cast(asyncio.Protocol, self._inner).resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._closing = True
        if self._cut is not None:
            self._cut.cancel()
        if self._established:
            self._inner.connection_lost(self._failure or exc)
        elif not self.handshake.done():
            self.handshake.set_exception(exc if isinstance(exc, OSError) else TlsFailed("the connection was cut"))
        self._inner = _NOBODY  # which has this as its transport: both would stay until cycles are collected

    # -- a transport, to the protocol inside -----------------------------------------------------------------------

    def get_extra_info(self, name: str, default: object = None) -> object:
        """What is known of the connection; ``shown_certificates``: the peer's, its own first, in PEM."""
        return self._shown_certificates() if name == "shown_certificates" else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Another one gets what comes."""
        self._inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who gets what comes."""
        return self._inner

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self.is_closing():
            return
        view = memoryview(data)
        try:
            for at in range(0, len(view), _WRITE_BYTES):
                piece = view[at : at + _WRITE_BYTES]
                self._tls.sendall(piece)
                self._flush(len(piece))
        except SSL.Error as error:
            self._fail(_failure_of(self._tls, error))

    def can_write_eof(self) -> bool:
        """TLS has no half-closed connections."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """When the protocol inside is told to wait."""
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Encrypted bytes that the socket has not taken."""
        return self._raw.get_write_buffer_size()

    def is_reading(self) -> bool:
        """Whether the protocol inside gets what comes."""
        return not self._reading_paused and not self.is_closing()

    def pause_reading(self) -> None:
        """Let the peer wait."""
        if not self.is_closing():
            self._reading_paused = True
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Go on, with what has come already."""
        if self._reading_paused and not self.is_closing():
            self._reading_paused = False
            self._raw.resume_reading()
            self._loop.call_soon(self._receive)

    def is_closing(self) -> bool:
        """Whether nothing more can be written: the socket may be gone and nobody have heard of it yet."""
        return self._closing or self._raw.is_closing()

    def close(self) -> None:
        """Say goodbye after what was written, and wait a little for the peer to close its side.

        A socket that is closed with something unread in it takes back what it had sent last.
        """
        if self._closing:
            return
        self._closing = True
        try:
            self._tls.shutdown()
        except SSL.Error as error:
            self._failure = _failure_of(self._tls, error)
        self._flush()
        self._cut_soon()
        if self._heard_all or self._raw.is_closing():
            self._raw.close()
        else:
            self._raw.write_eof()
            self._raw.resume_reading()

    def abort(self) -> None:
        """Close now, whatever was not sent."""
        self._closing = True
        self._raw.abort()

    # -- within ----------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except SSL.Error as error:
            self._fail(_failure_of(self._tls, error))
            return
        self._flush()
        if self.handshake.done():  # nobody waits for it any more
            self.abort()
            return
        self._established = True
        self._inner.connection_made(self)
        self.handshake.set_result(None)
        self._receive()

    def _receive(self) -> None:
        """Decrypt what has come, as long as somebody takes it."""
        came = 0
        try:
            while not self._reading_paused and not self._closing:
                if isinstance(self._inner, asyncio.BufferedProtocol):
                    came += self._fill(self._inner)
                else:
                    data = self._tls.recv(_RECORD_BYTES)
                    came += len(data)
                    cast(asyncio.Protocol, self._inner).data_received(data)
        except SSL.WantReadError:
            if not came or self._unflushed_bytes >= _READ_BYTES:
                self._reply()
            if self._heard_all:
                self._end()
        except (SSL.ZeroReturnError, SSL.SysCallError):
            self._heard_all = True
            self._end()
        except SSL.Error as error:
            self._fail(_failure_of(self._tls, error))

    def _fill(self, inner: asyncio.BufferedProtocol) -> int:
        """Hand over as many records as ``inner`` has room for, at once; how many bytes.

        Raises:
            SSL.Error: there is none.
        """
        view = memoryview(inner.get_buffer(-1))
        room, filled = len(view), 0
        try:
            while filled < room:
                filled += self._tls.recv_into(view[filled:], _RECORD_BYTES)
        except SSL.Error:
            if not filled:
                raise  # of what came after others we hear again
        inner.buffer_updated(filled)
        return filled

    def _reply(self) -> None:
        """Send what TLS itself has to say to what came; who asks for it and does not take it is let go of."""
        sent_bytes = self._flush()
        if self._raw.is_closing():
            return
        waiting_bytes = self._raw.get_write_buffer_size()
        self._replied_bytes = self._replied_bytes + sent_bytes if waiting_bytes > sent_bytes else sent_bytes
        if waiting_bytes and self._replied_bytes > _UNTAKEN_REPLIES_BYTES:
            self._failure = TlsFailed("the peer takes nothing of what it asks for")
            self.abort()

    def _flush(self, plain_bytes: int = 0) -> int:
        """Give to the socket what is encrypted, ``plain_bytes`` and whatever else; how many bytes that were."""
        self._unflushed_bytes = flushed = 0
        if self._raw.is_closing():
            return 0
        room = plain_bytes + (plain_bytes // _RECORD_BYTES + 1) * _RECORD_OVERHEAD_BYTES + _SLACK_BYTES
        size = room
        try:
            while size == room:
                data = self._tls.bio_read(room)
                self._raw.write(data)
                size = len(data)
                flushed += size
        except SSL.WantReadError:
            pass
        return flushed

    def _end(self) -> None:
        """The peer has said all it wanted to."""
        if not self._closing:
            cast(asyncio.Protocol, self._inner).eof_received()
            self.close()

    def _fail(self, reason: Exception) -> None:
        """End it, with what TLS tells the peer of the reason: a number."""
        self._closing = True
        self._failure = reason
        if not self._established and not self.handshake.done():
            self.handshake.set_exception(reason)
        self._flush()
        self._cut_soon()
        self._raw.close()

    def _cut_soon(self) -> None:
        self._cut = self._loop.call_later(self._goodbye_seconds, self._raw.abort)

    def _shown_certificates(self) -> bytes:
        own = self._tls.get_peer_certificate()
        if own is None:
            return b""
        # On a server OpenSSL does not count the peer's own among them.
        chain = [own, *(self._tls.get_peer_cert_chain() or [])]
        return b"".join(crypto.dump_certificate(crypto.FILETYPE_PEM, one) for one in chain)


def _buffer() -> memoryview:
    """The one of this thread: what an event loop reads into it is dealt with before anything else is read."""
    if not hasattr(_BUFFERS, "view"):
        _BUFFERS.view = memoryview(bytearray(_READ_BYTES))
    return cast(memoryview, _BUFFERS.view)


def _failure_of(tls: SSL.Connection, error: SSL.Error) -> TlsFailed:
    code = tls.get_app_data()
    if code is not None:
        return CertificateRefused(_REFUSALS.get(code, f"verification error {code}"))
    if isinstance(error, SSL.SysCallError):
        return TlsFailed("the peer left")
    details = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return TlsFailed("; ".join(reason for *_, reason in details) or "TLS failed")
