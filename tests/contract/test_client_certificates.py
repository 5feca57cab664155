"""Who gets in when client certificates are asked for: real handshakes with the server as ``millpond.app`` makes it.

The rule (I7): nobody without a certificate that is in the file, or that was issued by an authority in the file, gets
an answer from any RPC. Whether that is so is asked again for each RPC. ``tests/unit/config/test_principals.py`` has the
finer points of the rule.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from contract.rpc_client import Client, message_of, refused
from contract.test_every_rpc import CALLS, OPEN_TO_ALL
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_health.v1 import health_pb2, health_pb2_grpc
from unit.config.key_files import NO_AUTHORITY, Pair, authority, key_usage, make_pair

from millpond import app
from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as ra_pb2
from millpond.config.settings import Listener, Settings, TlsFiles
from millpond.config.sizes import Quota
from millpond.core.names import Name, Namespace
from millpond.names.lmdb_names import LmdbNames

_CA = authority()
_SECONDS = 30
_NOW = datetime.datetime.now(datetime.UTC)
STRANGER = ("UNAVAILABLE", "UNAUTHENTICATED")
"""Refused by TLS, or else by the judgement of each RPC."""
_LIFE = {"begin": _NOW - datetime.timedelta(days=1), "end": _NOW + datetime.timedelta(days=1)}
_SERVER = make_pair(extensions=[x509.SubjectAlternativeName([x509.DNSName("localhost")])], **_LIFE)


def pair(issuer: Pair | None = None, *extensions: x509.ExtensionType, name: str = "client") -> Pair:
    return make_pair(name, issuer=issuer, extensions=extensions, key_identifiers=True, **_LIFE)


class Encrypted:
    """A server that asks for client certificates, and its connections."""

    def __init__(
        self, directory: Path, *authorized: Pair, also_plaintext: bool = False, second: Sequence[Pair] = ()
    ) -> None:
        """``second``: whom another address of the server lets in."""
        self.repo = directory / "repo"
        self._files = TlsFiles(directory / "server.key", directory / "server.crt", directory / "authorized.crt")
        self._files.server_key.write_bytes(_SERVER.key_pem)
        self._files.server_cert.write_bytes(_SERVER.cert_pem)
        self.authorize(*authorized)
        self._opened = ExitStack()
        self.port, self.other_port = self._port(), self._port()
        listeners = (Listener("127.0.0.1", self.port, self._files),)
        if also_plaintext:
            listeners += (Listener("127.0.0.1", self.other_port),)
        if second:
            others = directory / "second.crt"
            others.write_bytes(b"".join(one.cert_pem for one in second))
            files = TlsFiles(self._files.server_key, self._files.server_cert, others)
            listeners += (Listener("127.0.0.1", self.other_port, files),)
        self._settings = Settings(repo=self.repo, listeners=listeners, enable_push=True, quota=Quota(10**9))
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="encrypted-server", daemon=True)
        self._thread.start()

    def authorize(self, *pairs: Pair) -> None:
        """Change the list as the how-to says: beside it, then renamed."""
        path = self._files.client_certs
        assert path is not None
        path.with_suffix(".new").write_bytes(b"".join(one.cert_pem for one in pairs))
        path.with_suffix(".new").replace(path)

    def connect(self, *shown: Pair, second: bool = False) -> Client:
        """A connection of its own, of whoever has the first key and shows these certificates."""
        credentials = grpc.ssl_channel_credentials(
            _SERVER.cert_pem, shown[0].key_pem, b"".join(one.cert_pem for one in shown)
        )
        client = self._opened.enter_context(Client("127.0.0.1:1"))
        client.channel.close()
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
        client.channel = grpc.secure_channel(
            f"127.0.0.1:{self.other_port if second else self.port}", credentials, options
        )
        return client

    def wait(self) -> Encrypted:
        assert self._ready.wait(_SECONDS)
        return self

    def __enter__(self) -> Encrypted:
        return self

    def stop(self) -> None:
        self._opened.close()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive()

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def _port(self) -> int:
        """A free port that nobody else is given while we are there."""
        claim = self._opened.enter_context(socket.socket())
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        claim.bind(("127.0.0.1", 0))
        return int(claim.getsockname()[1])

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(app.serve(self._settings, worker=0, ready=lambda *_: self._ready.set(), stop=self._stop))


Serve = Callable[..., Encrypted]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A server whose file has these certificates in it."""
    with ExitStack() as running:

        def start(*authorized: Pair, also_plaintext: bool = False) -> Encrypted:
            server = Encrypted(tmp_path, *authorized, also_plaintext=also_plaintext)
            return running.enter_context(server).wait()

        yield start


def outcome(client: Client) -> str:
    """What becomes of an RPC: OK, or how it was refused."""
    try:
        client.call("GetCapabilities")
    except grpc.RpcError as refusal:
        return str(refusal.code().name)
    return "OK"


def outcomes_of_every_rpc(client: Client) -> set[tuple[str, str]]:
    """How every RPC that is served ends, gRPC's own services included, with a request that is right in every way."""
    requests = {path: (call.valid("").SerializeToString(), call.shape) for path, call in CALLS.items()}
    requests |= {path: (message.SerializeToString(), shape) for path, (message, shape) in OPEN_TO_ALL.items()}
    requests["/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs"] = (b"\xff", "unary_unary")
    outcomes = set()
    for path, (request, shape) in requests.items():
        rpc = getattr(client.channel, shape)(path, request_serializer=None, response_deserializer=None)
        try:
            answer = rpc(iter([request]) if shape.startswith("stream") else request, timeout=_SECONDS)
            if shape.endswith("stream"):
                next(answer, None)
                answer.cancel()
            outcomes.add((path, "OK"))
        except grpc.RpcError as refusal:
            outcomes.add((refusal.code().name, refusal.details()))
    return outcomes


def test_who_is_in_the_file_gets_in_whatever_the_certificate_says_of_itself(serve: Serve) -> None:
    kinds: list[Sequence[x509.ExtensionType]] = [
        (),
        (_CA,),
        (NO_AUTHORITY,),
        (NO_AUTHORITY, key_usage(cert_sign=False)),
    ]
    pairs = [pair(None, *extensions) for extensions in kinds]
    issued = pair(pair(None, _CA, name="an authority that is not in the file"))
    server = serve(*pairs, issued)
    assert [outcome(server.connect(one)) for one in (*pairs, issued)] == ["OK"] * 5
    assert outcome(server.connect(pair())) == "UNAVAILABLE"  # by TLS


@pytest.mark.parametrize("extensions", [(NO_AUTHORITY,), (), (NO_AUTHORITY, key_usage(cert_sign=True))])
def test_the_key_of_a_client_that_is_no_authority_lets_nobody_else_in(
    serve: Serve, extensions: Sequence[x509.ExtensionType]
) -> None:
    client = pair(None, *extensions, name="ada")
    server = serve(client)
    issued = pair(client)
    for shown in ([issued], [issued, client]):
        assert outcome(server.connect(*shown)) in STRANGER
    assert outcome(server.connect(client)) == "OK"


def test_an_authority_that_may_sign_no_certificates_lets_nobody_in(serve: Serve) -> None:
    usage = key_usage(cert_sign=False)
    lame = pair(None, _CA, usage, name="ada")
    server = serve(lame)
    assert outcome(server.connect(pair(lame))) in STRANGER
    assert outcome(server.connect(lame)) == "OK"


@pytest.mark.parametrize("extensions", [(_CA,), (_CA, key_usage(cert_sign=True)), (authority(path_length=0),)])
def test_whom_an_authority_in_the_file_knows_gets_in(serve: Serve, extensions: Sequence[x509.ExtensionType]) -> None:
    issuer = pair(None, *extensions, name="authority")
    server = serve(issuer)
    assert outcome(server.connect(pair(issuer, NO_AUTHORITY))) == "OK"


def test_a_chain_with_an_intermediate_authority_gets_in(serve: Serve) -> None:
    root = pair(None, _CA, key_usage(cert_sign=True), name="root")
    middle = pair(root, _CA, key_usage(cert_sign=True), name="middle")
    leaf = pair(middle, NO_AUTHORITY)
    server = serve(root)
    assert outcome(server.connect(leaf, middle)) == "OK"
    assert outcome(server.connect(leaf)) == "UNAVAILABLE"
    server.authorize(middle)
    time.sleep(0.3)
    assert outcome(server.connect(leaf)) == "OK"


def test_keys_are_read_by_tls_again_only_when_they_have_changed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them takes the better part of a millisecond, and every job of BuildStream 1 opens a connection."""
    read: list[Any] = []
    real = app.context_of

    def context_of(identity: Any, **more: Any) -> Any:
        read.append(identity)
        return real(identity, **more)

    monkeypatch.setattr(app, "context_of", context_of)
    early, late = pair(name="early"), pair(name="late")
    server = serve(early)
    assert [outcome(server.connect(early)) for _ in range(3)] == ["OK"] * 3
    assert len(read) == 1
    server.authorize(late)
    time.sleep(0.3)
    assert [outcome(server.connect(late)) for _ in range(3)] == ["OK"] * 3
    assert len(read) == 2


def test_a_chain_that_is_longer_than_its_authority_allows_is_refused(serve: Serve) -> None:
    root = pair(None, authority(path_length=0), name="root")
    middle = pair(root, _CA, name="middle")
    assert outcome(serve(root).connect(pair(middle), middle)) in STRANGER


def test_no_rpc_answers_who_is_not_authorized(serve: Serve) -> None:
    ada, bob = pair(None, NO_AUTHORITY, name="ada"), pair(None, NO_AUTHORITY, name="bob")
    server = serve(ada, bob)
    client = server.connect(ada)
    told = dict(outcomes_of_every_rpc(client))
    assert "UNAUTHENTICATED" not in told
    assert told.keys() >= OPEN_TO_ALL.keys()
    server.authorize(bob)
    time.sleep(0.3)
    ((code, sentence),) = outcomes_of_every_rpc(client)
    assert (code, "not authorized here" in sentence) == ("UNAUTHENTICATED", True)
    assert {code for code, _ in outcomes_of_every_rpc(server.connect(pair(bob)))} == {"UNAVAILABLE"}  # by TLS


def test_even_before_the_cache_is_open_a_stranger_learns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, really = threading.Event(), app._open

    def slowly(*args: Any) -> Any:
        assert go_on.wait(_SECONDS)
        return really(*args)

    monkeypatch.setattr(app, "_open", slowly)
    client = pair(None, NO_AUTHORITY, name="ada")
    with Encrypted(tmp_path, client) as server:
        try:
            former = pair(None, NO_AUTHORITY, name="bob")
            server.authorize(client, former)
            time.sleep(0.3)
            friend, rogue = server.connect(client), server.connect(former)
            assert outcome(rogue) == "UNAVAILABLE"  # not open yet
            server.authorize(client)
            time.sleep(0.3)
            health = health_pb2_grpc.HealthStub(friend.channel)
            check = health_pb2.HealthCheckRequest()
            state = health.Check(check, wait_for_ready=True, timeout=_SECONDS).status
            assert state == health_pb2.HealthCheckResponse.NOT_SERVING
            with refused("UNAVAILABLE", "the cache is starting"):
                friend.call("GetCapabilities")
            assert {code for code, _ in outcomes_of_every_rpc(rogue)} == {"UNAUTHENTICATED"}
        finally:
            go_on.set()
        server.wait()
        assert health.Check(check).status == health_pb2.HealthCheckResponse.SERVING
        assert outcome(friend) == "OK"


def test_who_is_taken_out_of_the_file_is_out_although_connected(serve: Serve) -> None:
    ada, bob, root = pair(None, _CA), pair(None, _CA), pair(None, _CA, name="root")
    server = serve(ada, bob, root)
    clients = [server.connect(one) for one in (ada, bob, pair(root))]
    assert list(map(outcome, clients)) == ["OK"] * 3
    server.authorize(bob)
    time.sleep(0.3)
    assert list(map(outcome, clients)) == ["UNAUTHENTICATED", "OK", "UNAUTHENTICATED"]
    assert {code for code, _ in outcomes_of_every_rpc(clients[0])} == {"UNAUTHENTICATED"}
    server.authorize(ada, bob, root)
    time.sleep(0.3)
    assert list(map(outcome, clients)) == ["OK"] * 3  # on the same connections


def test_a_certificate_that_expires_ends_while_connected(serve: Serve) -> None:
    end = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=3)
    short = make_pair("client", begin=_LIFE["begin"], end=end)
    client = serve(short).connect(short)
    assert outcome(client) == "OK"
    time.sleep((end - datetime.datetime.now(datetime.UTC)).total_seconds() + 0.1)
    with refused("UNAUTHENTICATED", "expired on"):
        client.call("GetCapabilities")


def test_users_of_the_same_subject_are_told_apart_in_what_they_bind(serve: Serve) -> None:
    ada, bob, root = pair(None, _CA), pair(None, _CA), pair(None, _CA, name="root")
    issued = pair(root)
    server = serve(ada, bob, root)
    for number, one in enumerate((ada, bob, issued)):
        client = server.connect(one)
        (digest,) = client.put(b"what somebody pushed")
        client.rpc("PushBlob")(ra_pb2.PushBlobRequest(uris=[f"urn:test:{number}"], blob_digest=message_of(digest)))
    server.stop()
    names = LmdbNames(server.repo / "names", read_only=True)
    pushed_by = [names.resolve(Name("", Namespace.ASSET_BLOB, f"urn:test:{number}")).pushed_by for number in range(3)]
    names.close()
    spkis = [
        one.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for one in (ada, bob, issued)
    ]
    assert pushed_by == [f"key:{hashlib.sha256(spki).hexdigest()}" for spki in spkis]


def test_certificates_that_only_their_keys_tell_apart_all_get_in(serve: Serve) -> None:
    twins = [make_pair("client", **_LIFE) for _ in range(3)]
    server = serve(*twins)
    assert [outcome(server.connect(one)) for one in twins] == ["OK"] * 3


def test_an_address_without_encryption_beside_it_is_open_and_no_way_around(serve: Serve) -> None:
    client = pair(None, NO_AUTHORITY, name="ada")
    server = serve(client, also_plaintext=True)
    with Client(f"127.0.0.1:{server.other_port}") as anybody:
        assert outcome(anybody) == "OK"
    assert outcome(server.connect(client)) == "OK"
    assert outcome(server.connect(pair(client))) in STRANGER


def test_each_address_has_a_list_of_its_own(tmp_path: Path) -> None:
    ada, bob = pair(None, NO_AUTHORITY, name="ada"), pair(None, NO_AUTHORITY, name="bob")
    with Encrypted(tmp_path, ada, second=[bob]) as server:
        server.wait()
        assert [outcome(server.connect(one)) for one in (ada, bob)] == ["OK", "UNAVAILABLE"]
        assert [outcome(server.connect(one, second=True)) for one in (ada, bob)] == ["UNAVAILABLE", "OK"]
