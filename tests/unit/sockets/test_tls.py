"""TLS as a peer sees it who keeps to nothing: bytes are exchanged with OpenSSL's client in memory, by hand."""

from __future__ import annotations

import asyncio
import datetime
import gc
import hashlib
import logging
import socket
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import pytest
import uvloop
from OpenSSL import SSL
from unit.config.key_files import NO_AUTHORITY, Pair, authority, make_pair

from millpond.config.tls import ServerIdentity
from millpond.config.tls_contexts import context_of
from millpond.sockets import accepting
from millpond.sockets.places import Tls, shown_certificates
from millpond.sockets.tls import CertificateRefused, TlsFailed

_SECONDS = 20
_NOW = datetime.datetime.now(datetime.UTC)
_LIFE = {"begin": _NOW - datetime.timedelta(days=1), "end": _NOW + datetime.timedelta(days=1)}
_ROOT = make_pair("root", extensions=[authority()], key_identifiers=True, **_LIFE)
_MIDDLE = make_pair("middle", issuer=_ROOT, extensions=[authority()], key_identifiers=True, **_LIFE)
_LEAF = make_pair("leaf", issuer=_MIDDLE, extensions=[NO_AUTHORITY], key_identifiers=True, **_LIFE)
_SERVER = make_pair("localhost", issuer=_MIDDLE, key_identifiers=True, **_LIFE)
_VERSIONS = pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION], ids=["1.2", "1.3"])
_Story = Callable[["Meeting"], Awaitable[None]]


class Inside(asyncio.BufferedProtocol):
    """What is spoken inside: it keeps what it hears."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.heard = bytearray()
        self.ends: list[object] = []
        self.paused = False
        self.most_paused_bytes = 0
        self._buffer = bytearray(100_000)  # no multiple of a record

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += self._buffer[:nbytes]

    def eof_received(self) -> None:
        self.ends.append("eof")

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)


class Meeting:
    """A server's end and a peer's: ``inside`` is here, ``peer`` is what the other side does with its socket."""

    def __init__(self, context: SSL.Context, peer: socket.socket, **client: Any) -> None:
        self.inside = Inside()
        self.peer = peer
        self.tls = client_of(**client)
        self.context = context
        self.opening: asyncio.Task[asyncio.Transport]
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.peer, data)

    async def exchange(self) -> bool:
        """What OpenSSL has to say goes out, what has come goes in; False at the end of the connection."""
        with suppress(SSL.WantReadError):
            await self.send(self.tls.bio_read(1 << 24))
        try:
            data = await self._loop.sock_recv(self.peer, 1 << 16)
        except ConnectionResetError:
            return False
        if data:
            self.tls.bio_write(data)
        return bool(data)

    async def shake_hands(self) -> asyncio.Transport:
        while True:
            try:
                self.tls.do_handshake()
            except SSL.WantReadError:
                assert await self.exchange()
            else:
                break
        with suppress(SSL.WantReadError):
            await self.send(self.tls.bio_read(1 << 16))
        return await self.opening

    async def say(self, data: bytes) -> None:
        for at in range(0, len(data), 1 << 18):
            self.tls.sendall(data[at : at + (1 << 18)])
            await self.send(self.tls.bio_read(1 << 20))

    async def hear(self, count: int) -> bytes:
        heard = bytearray()
        while len(heard) < count:
            try:
                heard += self.tls.recv(1 << 16)
            except SSL.WantReadError:
                assert await self.exchange()
        return bytes(heard)

    async def last_words(self) -> str:
        """How the connection ends, in OpenSSL's words."""
        while True:
            try:
                self.tls.recv(1 << 16)
            except SSL.WantReadError:
                if not await self.exchange():
                    return "cut"
            except SSL.ZeroReturnError:
                return "goodbye"
            except SSL.Error as error:
                return str(error.args[0][-1][-1])

    async def until(self, met: Callable[[], bool]) -> None:
        while not met():
            await asyncio.sleep(0.005)


def client_of(
    *,
    shown: tuple[Pair, ...] = (),
    version: int | None = None,
    offered: tuple[bytes, ...] = (b"h2",),
    before: SSL.Connection | None = None,
) -> SSL.Connection:
    """``before``: a connection whose session this one offers to go on with."""
    if before is not None:
        return _going_on(before.get_context(), before)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    if version is not None:
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
    if offered:
        context.set_alpn_protos(list(offered))
    if shown:
        context.use_certificate(shown[0].certificate)
        context.use_privatekey(shown[0].key)
        for other in shown[1:]:
            context.add_extra_chain_cert(other.certificate)
    return _going_on(context, None)


def _going_on(context: SSL.Context, before: SSL.Connection | None) -> SSL.Connection:
    tls = SSL.Connection(context)
    session = before.get_session() if before is not None else None
    if session is not None:
        tls.set_session(session)
    tls.set_connect_state()
    return tls


def identity_of(*clients: Pair) -> ServerIdentity:
    roots = b"".join(one.cert_pem for one in clients) or None
    return ServerIdentity(_SERVER.key_pem, _SERVER.cert_pem + _MIDDLE.cert_pem, roots)


def play(
    story: _Story,
    *,
    identity: ServerIdentity | None = None,
    context: SSL.Context | None = None,
    handshake_seconds: float = _SECONDS,
    **client: Any,
) -> None:
    """One meeting, on the event loop that servers use."""

    async def meeting() -> None:
        ours, theirs = await _pair()
        one = Meeting(context or context_of(identity or identity_of(), protocol="h2"), theirs, **client)
        tls = Tls(lambda: one.context, None)
        one.opening = asyncio.create_task(accepting.connect(one.inside, ours, tls, handshake_seconds=handshake_seconds))
        try:
            async with asyncio.timeout(_SECONDS):
                await story(one)
        finally:
            theirs.close()
            (opened,) = await asyncio.gather(one.opening, return_exceptions=True)
            if isinstance(opened, asyncio.Transport):
                opened.abort()
            await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(meeting())


async def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    for one in (ours, theirs):
        one.setblocking(False)
    return ours, theirs


# -- handshakes --------------------------------------------------------------------------------------------------------


@_VERSIONS
def test_what_is_said_arrives_both_ways_byte_by_byte(version: int) -> None:
    """More than any buffer holds, in pieces that no record ends with."""
    data = hashlib.shake_256(b"millpond").digest(5_000_011)

    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        await one.say(data)
        await one.until(lambda: len(one.inside.heard) >= len(data))
        assert one.inside.heard == data
        transport.write(data)
        transport.write(memoryview(data)[:3])
        transport.write(b"")
        assert await one.hear(len(data) + 3) == data + data[:3]
        assert one.tls.get_protocol_version() == version
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"

    play(story, version=version)


def test_a_connection_that_is_over_is_freed_with_what_openssl_has_of_it() -> None:
    """At once, and not when somebody looks for cycles."""
    kept: list[weakref.ref[asyncio.Transport]] = []

    async def story(one: Meeting) -> None:
        kept.append(weakref.ref(await one.shake_hands()))

    gc.collect()
    gc.disable()
    try:
        play(story)
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_chain_is_sent_in_order() -> None:
    async def story(one: Meeting) -> None:
        await one.shake_hands()
        chain = one.tls.get_peer_cert_chain(as_cryptography=True)
        assert chain == [_SERVER.certificate, _MIDDLE.certificate]

    play(story)


@_VERSIONS
def test_what_a_peer_shows_is_known_its_own_certificate_first(version: int) -> None:
    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        assert shown_certificates(transport) == _LEAF.cert_pem + _MIDDLE.cert_pem

    play(story, identity=identity_of(_ROOT), shown=(_LEAF, _MIDDLE), version=version)


@_VERSIONS
def test_no_session_is_resumed_so_a_chain_is_always_shown(version: int) -> None:
    before: list[SSL.Connection] = []

    async def first(one: Meeting) -> None:
        transport = await one.shake_hands()
        transport.write(b"tickets come before this")
        await one.hear(24)
        before.append(one.tls)

    async def again(one: Meeting) -> None:
        assert shown_certificates(await one.shake_hands()) == _LEAF.cert_pem + _MIDDLE.cert_pem

    both: dict[str, Any] = {
        "context": context_of(identity_of(_ROOT), protocol="h2"),
        "shown": (_LEAF, _MIDDLE),
        "version": version,
    }
    play(first, **both)
    assert before[0].get_session() is not None
    play(again, **both, before=before[0])


@_VERSIONS
@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ((make_pair("stranger", **_LIFE),), "self-signed certificate"),
        ((_LEAF,), "unable to get local issuer certificate"),
        ((make_pair("late", issuer=_ROOT, begin=_LIFE["begin"], end=_NOW - datetime.timedelta(hours=1)),), "expired"),
    ],
    ids=["stranger", "without_its_authority", "expired"],
)
def test_a_certificate_that_is_refused_is_told_why_here_and_with_a_number_there(
    version: int, shown: tuple[Pair, ...], reason: str
) -> None:
    async def story(one: Meeting) -> None:
        with suppress(SSL.Error, CertificateRefused):
            await one.shake_hands()
        with pytest.raises(CertificateRefused, match=reason):
            await one.opening
        assert one.inside.ends == []

    play(story, identity=identity_of(_ROOT), shown=shown, version=version)


def test_who_is_listed_gets_in_whoever_issued_the_certificate() -> None:
    async def story(one: Meeting) -> None:
        await one.shake_hands()

    play(story, identity=identity_of(_LEAF), shown=(_LEAF,))


def test_who_shows_no_certificate_is_refused() -> None:
    async def story(one: Meeting) -> None:
        with suppress(SSL.Error, TlsFailed):
            await one.shake_hands()
        with pytest.raises(TlsFailed, match="peer did not return a certificate"):
            await one.opening
        assert "certificate required" in await one.last_words()

    play(story, identity=identity_of(_ROOT))


@_VERSIONS
@pytest.mark.parametrize("offered", [(), (b"http/1.1", b"h2")])
def test_the_one_protocol_is_chosen_where_one_is_offered(version: int, offered: tuple[bytes, ...]) -> None:
    async def story(one: Meeting) -> None:
        await one.shake_hands()
        assert one.tls.get_alpn_proto_negotiated() == (b"h2" if offered else b"")

    play(story, version=version, offered=offered)


@_VERSIONS
def test_who_offers_only_others_is_refused(version: int) -> None:
    async def story(one: Meeting) -> None:
        with pytest.raises(SSL.Error, match="no application protocol"):
            await one.shake_hands()
        with pytest.raises(TlsFailed, match="no application protocol"):
            await one.opening

    play(story, version=version, offered=(b"http/1.1",))


@pytest.mark.parametrize("part", [0, 1, 5, 100])
def test_a_handshake_that_does_not_go_on_ends_in_time(part: int) -> None:
    async def story(one: Meeting) -> None:
        with suppress(SSL.WantReadError):
            one.tls.do_handshake()
        await one.send(one.tls.bio_read(part) if part else b"")
        with pytest.raises(TimeoutError):
            await one.opening
        assert await one.last_words() == "cut"
        assert one.inside.ends == []

    play(story, handshake_seconds=0.1)


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70_000), bytes(100)])
def test_what_is_no_handshake_ends_at_once(words: bytes) -> None:
    async def story(one: Meeting) -> None:
        with suppress(OSError):
            await one.send(words)
        with pytest.raises(TlsFailed):
            await one.opening

    play(story)


def test_who_leaves_during_the_handshake_is_not_waited_for() -> None:
    async def story(one: Meeting) -> None:
        one.peer.shutdown(socket.SHUT_WR)
        with pytest.raises(TlsFailed, match="left"):
            await one.opening

    play(story)


# -- the end -----------------------------------------------------------------------------------------------------------


@_VERSIONS
def test_a_goodbye_of_the_peer_is_heard_and_answered(version: int) -> None:
    async def story(one: Meeting) -> None:
        await one.shake_hands()
        one.tls.sendall(b"and")
        one.tls.shutdown()
        await one.send(one.tls.bio_read(1 << 16))
        assert await one.last_words() == "goodbye"
        await one.until(lambda: len(one.inside.ends) == 2)
        assert (bytes(one.inside.heard), one.inside.ends) == (b"and", ["eof", None])

    play(story, version=version)


@_VERSIONS
def test_our_goodbye_comes_after_all_we_said(version: int) -> None:
    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        await one.say(b"not read any more" * 1000)
        transport.write(bytes(3_000_000))
        transport.close()
        transport.write(b"too late")
        assert await one.hear(3_000_000) == bytes(3_000_000)
        assert await one.last_words() == "goodbye"
        assert transport.is_closing()
        one.peer.close()
        await one.until(lambda: bool(one.inside.ends))
        assert one.inside.ends == [None]

    play(story, version=version)


def test_who_does_not_say_goodbye_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "GOODBYE_SECONDS", 0.1)

    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        transport.write(bytes(30_000_000))
        transport.close()
        await one.until(lambda: bool(one.inside.ends))

    play(story)


@pytest.mark.parametrize("cut", [3, 1000, 17_000])
def test_of_a_record_that_is_cut_nothing_is_heard(cut: int) -> None:
    async def story(one: Meeting) -> None:
        await one.shake_hands()
        one.tls.sendall(bytes(16_384) + b"x" * 16_384)
        await one.send(one.tls.bio_read(cut))
        one.peer.shutdown(socket.SHUT_WR)
        await one.until(lambda: len(one.inside.ends) == 2)
        assert bytes(one.inside.heard) == (bytes(16_384) if cut > 16_500 else b"")
        assert one.inside.ends[0] == "eof"

    play(story)


def test_a_record_that_was_changed_ends_the_connection_with_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    async def story(one: Meeting) -> None:
        await one.shake_hands()
        one.tls.sendall(b"pay ada")
        record = bytearray(one.tls.bio_read(1 << 16))
        record[-1] ^= 1
        await one.send(bytes(record))
        assert "bad record mac" in await one.last_words()
        await one.until(lambda: bool(one.inside.ends))
        assert isinstance(one.inside.ends[0], TlsFailed)
        assert one.inside.heard == b""

    with caplog.at_level(logging.INFO):
        play(story)
    assert caplog.records == []


def test_no_other_handshake_is_held_on_a_connection() -> None:
    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        one.tls.renegotiate()
        with suppress(SSL.Error):
            one.tls.do_handshake()
        await one.send(one.tls.bio_read(1 << 16))
        transport.write(b"no")
        assert "no renegotiation" in await one.last_words()

    play(story, version=SSL.TLS1_2_VERSION)


# -- pausing -----------------------------------------------------------------------------------------------------------


def test_who_does_not_read_inside_stops_the_socket_and_loses_nothing() -> None:
    data = hashlib.shake_256(b"pause").digest(30_000_000)

    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        transport.pause_reading()
        saying = asyncio.create_task(one.say(data))
        await asyncio.sleep(0.3)
        assert not saying.done()  # the kernel holds some; we hold nothing
        assert one.inside.heard == b""
        assert not transport.is_reading()
        transport.resume_reading()
        await saying
        await one.until(lambda: len(one.inside.heard) >= len(data))
        assert one.inside.heard == data

    play(story)


def test_who_pauses_while_hearing_hears_no_more_until_it_goes_on() -> None:
    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        real = one.inside.buffer_updated

        def once(nbytes: int) -> None:
            real(nbytes)
            transport.pause_reading()

        one.inside.buffer_updated = once  # type: ignore[method-assign]
        one.inside._buffer = bytearray(1000)
        await one.say(bytes(2500))
        one.peer.shutdown(socket.SHUT_WR)
        for heard in (1000, 2000, 2500):
            await one.until(lambda heard=heard: len(one.inside.heard) == heard)  # type: ignore[misc]
            await asyncio.sleep(0.02)
            assert len(one.inside.heard) == heard
            assert one.inside.ends == []
            transport.resume_reading()
        await one.until(lambda: len(one.inside.ends) == 2)

    play(story)


def test_a_peer_that_takes_nothing_is_noticed_by_who_writes() -> None:
    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        transport.set_write_buffer_limits(high=1 << 20)
        written = 0
        while not one.inside.paused:
            transport.write(bytes(1 << 16))
            written += 1 << 16
            await asyncio.sleep(0)
        assert 1 << 20 < transport.get_write_buffer_size() < (1 << 20) + (1 << 18)
        assert await one.hear(written) == bytes(written)
        await one.until(lambda: not one.inside.paused)
        assert transport.get_write_buffer_size() == 0

    play(story)


def test_a_peer_that_is_gone_may_still_be_written_to(caplog: pytest.LogCaptureFixture) -> None:
    async def story(one: Meeting) -> None:
        transport = await one.shake_hands()
        one.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        one.peer.close()
        while not one.inside.ends:
            transport.write(bytes(1 << 16))
            await asyncio.sleep(0)
        for do in (transport.pause_reading, transport.resume_reading, transport.close, transport.abort):
            do()
        transport.write(b"to nobody")
        assert transport.is_closing()
        assert len(one.inside.ends) == 1

    play(story)
    assert caplog.records == []
