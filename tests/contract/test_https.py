"""Over TLS the same people get in as by gRPC, and that is asked again for each request."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from contract.http_site import Peer, Site, run, serving
from cryptography import x509
from unit.config.key_files import NO_AUTHORITY, Pair, authority, make_pair

from millpond.config.principals import AuthorizedClients
from millpond.config.settings import TlsFiles
from millpond.config.tls import IdentityWatcher
from millpond.config.tls_contexts import context_of
from millpond.core import limits
from millpond.sockets.places import Tls

_NOW = datetime.datetime.now(datetime.UTC)
_LIFE = {"begin": _NOW - datetime.timedelta(days=1), "end": _NOW + datetime.timedelta(days=1)}
_SERVER = make_pair(extensions=[x509.SubjectAlternativeName([x509.DNSName("localhost")])], **_LIFE)
_CA = authority()


def pair(issuer: Pair | None = None, *extensions: x509.ExtensionType, name: str = "client") -> Pair:
    return make_pair(name, issuer=issuer, extensions=extensions, key_identifiers=True, **_LIFE)


class Doors:
    """The key files of a server, and the clients' side of a handshake."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        both = directory / "server.pem"  # key and certificate in one file
        both.write_bytes(_SERVER.key_pem + _SERVER.cert_pem)
        self.files = TlsFiles(both, both, directory / "authorized.crt")
        self.clock = 0.0

    def authorize(self, *pairs: Pair) -> None:
        assert self.files.client_certs is not None
        self.files.client_certs.write_bytes(b"".join(one.cert_pem for one in pairs))
        self.clock += 10  # seconds, so that the files are looked at again

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Site]:
        watcher = IdentityWatcher(self.files, monotonic_seconds=lambda: self.clock)
        clients = AuthorizedClients(watcher.current)
        (self.directory / "repo").mkdir()
        (self.directory / "repo" / "summary").write_bytes(b"summary")
        tls = Tls(lambda: context_of(watcher.current(), protocol="http/1.1"), clients.identify)
        async with serving(self.directory / "repo", tls=tls) as site:
            yield site

    def context(self, *shown: Pair) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=_SERVER.cert_pem.decode())
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if shown:
            own = self.directory / "client.pem"
            own.write_bytes(shown[0].key_pem + b"".join(one.cert_pem for one in shown))
            context.load_cert_chain(own)
        return context

    async def come_in(self, site: Site, *shown: Pair) -> Peer:
        return await site.peer(tls=self.context(*shown))

    async def status(self, site: Site, *shown: Pair) -> int | None:
        """What a first request is answered with; None when there is no answer."""
        try:
            return (await (await self.come_in(site, *shown)).get("/summary")).status
        except (OSError, EOFError):
            return None


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    return Doors(tmp_path)


def test_who_is_listed_gets_in_whatever_kind_of_certificate_it_is(doors: Doors) -> None:
    async def story() -> None:
        kinds = [pair(None, _CA), pair(None, NO_AUTHORITY), pair(None), pair(pair(None, _CA, name="x"))]
        doors.authorize(*kinds)
        async with doors.open() as site:
            assert [await doors.status(site, one) for one in kinds] == [200] * len(kinds)

    run(story)


def test_who_was_issued_a_certificate_by_a_listed_authority_gets_in(doors: Doors) -> None:
    async def story() -> None:
        root = pair(None, _CA, name="root")
        between = pair(root, _CA, name="between")
        leaf = pair(between)
        doors.authorize(root)
        async with doors.open() as site:
            assert await doors.status(site, leaf, between) == 200
            assert await doors.status(site, pair(root)) == 200

    run(story)


def test_nobody_else_gets_in(doors: Doors) -> None:
    async def story() -> None:
        friend, careful = pair(None, _CA), pair(None, NO_AUTHORITY, name="careful")
        doors.authorize(friend, careful)
        async with doors.open() as site:
            assert await doors.status(site) is None
            assert await doors.status(site, pair(None, _CA)) is None
            # TLS takes whoever is listed for an authority; we do not.
            assert await doors.status(site, pair(careful)) in (None, 403)

    run(story)


def test_who_is_taken_out_is_refused_on_an_open_connection_too_and_who_is_added_gets_in(doors: Doors) -> None:
    async def story() -> None:
        first, second = pair(None, _CA), pair(None, _CA)
        doors.authorize(first)
        async with doors.open() as site:
            peer = await doors.come_in(site, first)
            assert (await peer.get("/summary")).status == 200
            assert await doors.status(site, second) is None
            doors.authorize(second)
            reply = await peer.get("/summary")
            assert (reply.status, reply.body) == (403, b"")
            assert await peer.is_closed()
            assert await doors.status(site, first) in (None, 403)
            assert await doors.status(site, second) == 200

    run(story)


def test_who_may_not_come_in_learns_nothing_by_asking(doors: Doors) -> None:
    async def story() -> None:
        first, second = pair(None, _CA), pair(None, _CA)
        doors.authorize(first)
        async with doors.open() as site:
            peers = [await doors.come_in(site, first) for _ in range(3)]
            doors.authorize(second)
            replies = [
                await peers[0].get("/summary"),
                await peers[1].get("/none"),
                await peers[2].get("/summary", method="PUT"),
            ]
            assert {(reply.status, reply.body) for reply in replies} == {(403, b"")}

    run(story)


def test_a_renewed_key_is_shown_at_the_next_handshake(doors: Doors) -> None:
    async def story() -> None:
        friend = pair(None, _CA)
        doors.authorize(friend)
        async with doors.open() as site:
            assert await doors.status(site, friend) == 200
            renewed = make_pair(extensions=[x509.SubjectAlternativeName([x509.DNSName("localhost")])], **_LIFE)
            doors.files.server_key.write_bytes(renewed.key_pem + renewed.cert_pem)
            doors.clock += 10
            assert await doors.status(site, friend) is None  # who trusts the old one only

    run(story)


def test_who_does_not_finish_a_handshake_is_not_waited_for(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HTTP_HANDSHAKE_SECONDS", 0.05)
    doors.authorize(pair(None, _CA))

    async def story() -> None:
        async with doors.open() as site:
            for said in (b"", b"\x16\x03\x01\x02", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
                peer = await site.peer()
                peer.send(said)
                assert await peer.is_closed()

    run(story)


def test_no_old_version_of_tls_is_spoken(doors: Doors) -> None:
    async def story() -> None:
        friend = pair(None, _CA)
        doors.authorize(friend)
        async with doors.open() as site:
            context = doors.context(friend)
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1_1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError, match=r".*"):
                await site.peer(tls=context)

    with pytest.warns(DeprecationWarning, match=r"TLSv1_1"):
        run(story)
