"""Who may call what: every RPC that the server registers, in every kind of server.

The rule (I7): whoever lacks the right learns nothing and changes nothing. An RPC that this file does not know fails it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, message_of, refused
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as ra_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, buildstream_pb2, source_pb2
from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import EMPTY, Digest
from millpond.wire.calling import Caller
from millpond.wire.gate import Gate
from millpond.wire.rpc import Access
from millpond.wire.server import EdgeServer
from millpond.wire.services import rpcs

NEW = b"something that nobody has"
BAD = re_pb2.Digest(hash="no hash", size_bytes=-1)
GARBAGE = b"\xff\xff\xff\xff"
NOWHERE = "nowhere"
URI = "urn:test:every-rpc"
KEY = "project/element/every-rpc"


@dataclass(frozen=True)
class Call:
    """What to send. ``valid`` is right in every way; ``wrong`` is so in every way, an instance to be named included."""

    valid: Callable[[str], Message]
    wrong: Callable[[str], Message]
    push: bool = False
    shape: str = "unary_unary"


def _stream_name(instance: str, rest: str) -> str:
    return f"{instance}/{rest}".removeprefix("/")


def _cas(kind: Any, valid: dict[str, Any], wrong: dict[str, Any]) -> dict[str, Callable[[str], Message]]:
    return {
        "valid": lambda instance: kind(instance_name=instance, **valid),
        "wrong": lambda instance: kind(instance_name=instance, digest_function=99, **wrong),
    }


_ITEM = {"digest": message_of(Digest.of(NEW)), "data": NEW}
_PUSHED = Digest.of(NEW)
CAS = "build.bazel.remote.execution.v2.ContentAddressableStorage"
BYTESTREAM = "google.bytestream.ByteStream"
ASSET = "build.bazel.remote.asset.v1"
BLOB_SERVICES = (CAS, BYTESTREAM)

CALLS = {
    "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities": Call(
        lambda instance: re_pb2.GetCapabilitiesRequest(instance_name=instance),
        lambda instance: re_pb2.GetCapabilitiesRequest(instance_name=instance),
    ),
    f"/{CAS}/FindMissingBlobs": Call(
        **_cas(re_pb2.FindMissingBlobsRequest, {"blob_digests": [message_of(EMPTY)]}, {"blob_digests": [BAD]})
    ),
    f"/{CAS}/BatchUpdateBlobs": Call(
        **_cas(re_pb2.BatchUpdateBlobsRequest, {"requests": [_ITEM]}, {"requests": [{"digest": BAD}]}), push=True
    ),
    f"/{CAS}/BatchReadBlobs": Call(
        **_cas(re_pb2.BatchReadBlobsRequest, {"digests": [message_of(EMPTY)]}, {"digests": [BAD]})
    ),
    f"/{CAS}/GetTree": Call(
        **_cas(re_pb2.GetTreeRequest, {"root_digest": message_of(EMPTY)}, {"root_digest": BAD, "page_size": -1}),
        shape="unary_stream",
    ),
    f"/{CAS}/SplitBlob": Call(
        **_cas(re_pb2.SplitBlobRequest, {"blob_digest": message_of(EMPTY)}, {"blob_digest": BAD})
    ),
    f"/{CAS}/SpliceBlob": Call(
        **_cas(re_pb2.SpliceBlobRequest, {"blob_digest": message_of(EMPTY)}, {"blob_digest": BAD}), push=True
    ),
    f"/{BYTESTREAM}/Read": Call(
        lambda instance: bytestream_pb2.ReadRequest(resource_name=_stream_name(instance, f"blobs/{EMPTY}")),
        lambda instance: bytestream_pb2.ReadRequest(resource_name=_stream_name(instance, "blobs/x/y"), read_offset=-1),
        shape="unary_stream",
    ),
    f"/{BYTESTREAM}/Write": Call(
        lambda instance: bytestream_pb2.WriteRequest(
            resource_name=_stream_name(instance, f"uploads/u/blobs/{_PUSHED}"), data=NEW, finish_write=True
        ),
        lambda instance: bytestream_pb2.WriteRequest(
            resource_name=_stream_name(instance, "uploads/u/blobs/x/y"), write_offset=-1
        ),
        push=True,
        shape="stream_unary",
    ),
    f"/{BYTESTREAM}/QueryWriteStatus": Call(
        lambda instance: bytestream_pb2.QueryWriteStatusRequest(
            resource_name=_stream_name(instance, f"uploads/u/blobs/{_PUSHED}")
        ),
        lambda instance: bytestream_pb2.QueryWriteStatusRequest(
            resource_name=_stream_name(instance, "uploads/u/blobs/x/y")
        ),
        push=True,
    ),
    f"/{ASSET}.Fetch/FetchBlob": Call(**_cas(ra_pb2.FetchBlobRequest, {"uris": ["urn:unknown"]}, {})),
    f"/{ASSET}.Fetch/FetchDirectory": Call(**_cas(ra_pb2.FetchDirectoryRequest, {"uris": ["urn:unknown"]}, {})),
    f"/{ASSET}.Push/PushBlob": Call(
        **_cas(
            ra_pb2.PushBlobRequest, {"uris": [URI], "blob_digest": message_of(_PUSHED)}, {"references_blobs": [BAD]}
        ),
        push=True,
    ),
    f"/{ASSET}.Push/PushDirectory": Call(
        **_cas(
            ra_pb2.PushDirectoryRequest,
            {"uris": [URI], "root_directory_digest": message_of(EMPTY)},
            {"references_directories": [BAD]},
        ),
        push=True,
    ),
    "/buildstream.v2.ReferenceStorage/GetReference": Call(
        lambda instance: buildstream_pb2.GetReferenceRequest(instance_name=instance, key="unknown"),
        lambda instance: buildstream_pb2.GetReferenceRequest(instance_name=instance, key="\0"),
    ),
    "/buildstream.v2.ReferenceStorage/UpdateReference": Call(
        lambda instance: buildstream_pb2.UpdateReferenceRequest(
            instance_name=instance, keys=[KEY], digest=message_of(EMPTY)
        ),
        lambda instance: buildstream_pb2.UpdateReferenceRequest(instance_name=instance, keys=[KEY, ""], digest=BAD),
        push=True,
    ),
    "/buildstream.v2.ReferenceStorage/Status": Call(
        lambda instance: buildstream_pb2.StatusRequest(instance_name=instance),
        lambda instance: buildstream_pb2.StatusRequest(instance_name=instance),
    ),
    "/buildstream.v2.Capabilities/GetCapabilities": Call(
        lambda instance: buildstream_pb2.GetCapabilitiesRequest(instance_name=instance),
        lambda instance: buildstream_pb2.GetCapabilitiesRequest(instance_name=instance),
    ),
    "/buildstream.v2.ArtifactService/GetArtifact": Call(
        lambda instance: artifact_pb2.GetArtifactRequest(instance_name=instance, cache_key="unknown"),
        lambda instance: artifact_pb2.GetArtifactRequest(instance_name=instance),
    ),
    "/buildstream.v2.ArtifactService/UpdateArtifact": Call(
        lambda instance: artifact_pb2.UpdateArtifactRequest(
            instance_name=instance, cache_key=KEY, artifact={"files": message_of(EMPTY)}
        ),
        lambda instance: artifact_pb2.UpdateArtifactRequest(
            instance_name=instance, cache_key="\0", artifact={"files": BAD}
        ),
        push=True,
    ),
    "/buildstream.v2.SourceService/GetSource": Call(
        lambda instance: source_pb2.GetSourceRequest(instance_name=instance, cache_key="unknown"),
        lambda instance: source_pb2.GetSourceRequest(instance_name=instance),
    ),
    "/buildstream.v2.SourceService/UpdateSource": Call(
        lambda instance: source_pb2.UpdateSourceRequest(
            instance_name=instance, cache_key=KEY, source={"files": message_of(EMPTY)}
        ),
        lambda instance: source_pb2.UpdateSourceRequest(instance_name=instance, cache_key=KEY, source={"files": BAD}),
        push=True,
    ),
}

# Theirs, not ours: no instance, no arguments that reach the store; anybody may ask.
OPEN_TO_ALL = {
    "/grpc.health.v1.Health/Check": (health_pb2.HealthCheckRequest(), "unary_unary"),
    "/grpc.health.v1.Health/List": (health_pb2.HealthListRequest(), "unary_unary"),
    "/grpc.health.v1.Health/Watch": (health_pb2.HealthCheckRequest(), "unary_stream"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        "stream_stream",
    ),
}


@dataclass(frozen=True)
class Kind:
    """One of the four servers."""

    push: bool
    index_only: bool

    def __str__(self) -> str:
        return f"{'index only' if self.index_only else 'full'}, {'push' if self.push else 'no push'}"

    def serves(self, path: str) -> bool:
        return not (self.index_only and path.split("/")[1] in BLOB_SERVICES)


KINDS = [Kind(push, index_only) for push in (True, False) for index_only in (False, True)]


@dataclass(frozen=True)
class Walked:
    kind: Kind
    server: LoopbackServer
    client: Client
    repo: Path

    def send(self, path: str, *requests: bytes) -> None:
        shape = CALLS[path].shape
        rpc = getattr(self.client.channel, shape)(path, request_serializer=None, response_deserializer=None)
        if shape == "unary_stream":
            list(rpc(*requests, timeout=30))
        else:
            rpc(iter(requests) if shape == "stream_unary" else requests[0], timeout=30)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def walked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walked]:
    kind: Kind = request.param
    repo = tmp_path_factory.mktemp("every-rpc") / "repo"
    with (
        LoopbackServer(repo, push=kind.push, index_only=kind.index_only) as server,
        Client(server.target) as client,
    ):
        yield Walked(kind, server, client, repo)


def registered(*, index_only: bool) -> set[str]:
    """The path of every RPC that an EdgeServer answers."""
    return {rpc.path.decode() for rpc in EdgeServer(Gate(), index_only=index_only).rpcs}


def test_this_file_knows_every_rpc_of_the_server() -> None:
    assert registered(index_only=False) == CALLS.keys() | OPEN_TO_ALL.keys()
    assert registered(index_only=True) == {path for path in CALLS if Kind(True, True).serves(path)} | OPEN_TO_ALL.keys()


def test_the_table_says_of_each_rpc_what_it_takes_to_call_it() -> None:
    caller = Caller()
    table = {f"/{rpc.service}/{rpc.method}": rpc.access for rpc in rpcs(Gate(), caller, index_only=False)}
    caller.close()
    assert table == {path: Access.PUSH if call.push else Access.PULL for path, call in CALLS.items()}


def test_every_method_of_a_service_that_is_served_is_in_the_table(walked: Walked) -> None:
    # Reflection tells clients what there is; a method that only the descriptor knows would be a surprise.
    stub = reflection_pb2_grpc.ServerReflectionStub(walked.client.channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    told = {service.name for service in answer.list_services_response.service}
    assert told == {path.split("/")[1] for path in registered(index_only=walked.kind.index_only)}
    for service in told:
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
        (answer,) = stub.ServerReflectionInfo(iter([asked]))
        assert answer.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize("path", CALLS)
def test_whoever_may_not_push_is_told_so_before_anything_is_looked_at(walked: Walked, path: str) -> None:
    call = CALLS[path]
    if walked.kind.push or not call.push or not walked.kind.serves(path):
        return
    for request in (
        call.valid("").SerializeToString(),
        call.valid(NOWHERE).SerializeToString(),
        call.wrong("").SerializeToString(),
        call.wrong(NOWHERE).SerializeToString(),
        GARBAGE,
        b"",
    ):
        with refused("PERMISSION_DENIED", "push"):
            walked.send(path, request)


@pytest.mark.parametrize("path", CALLS)
def test_an_instance_that_is_not_served_is_not_found_whatever_the_arguments(walked: Walked, path: str) -> None:
    call = CALLS[path]
    if not walked.kind.serves(path) or (call.push and not walked.kind.push):
        return
    for instance in (NOWHERE, "team", f"{INSTANCE}/deeper", "../etc"):
        for request in (call.valid(instance), call.wrong(instance)):
            with refused("NOT_FOUND", "instance name"):
                walked.send(path, request.SerializeToString())


@pytest.mark.parametrize("path", CALLS)
def test_who_is_admitted_gets_an_answer_about_the_request(walked: Walked, path: str) -> None:
    call = CALLS[path]
    if not walked.kind.serves(path) or (call.push and not walked.kind.push):
        return
    outcomes = set()
    for instance in ("", INSTANCE):
        try:
            walked.send(path, call.valid(instance).SerializeToString())
            outcomes.add("OK")
        except grpc.RpcError as outcome:
            outcomes.add(outcome.code().name)
    expected = {"SplitBlob": "UNIMPLEMENTED", "SpliceBlob": "UNIMPLEMENTED"}
    expected |= dict.fromkeys(["FetchBlob", "FetchDirectory", "GetReference", "GetArtifact", "GetSource"], "NOT_FOUND")
    assert outcomes == {expected.get(path.split("/")[2], "OK")}
    if path.split("/")[2] not in ("GetCapabilities", "SplitBlob", "SpliceBlob", "Status"):
        for request in (call.wrong("").SerializeToString(), GARBAGE):
            with refused("INVALID_ARGUMENT"):
                walked.send(path, request)


@pytest.mark.parametrize("path", CALLS)
def test_an_index_serves_no_blobs(walked: Walked, path: str) -> None:
    if walked.kind.serves(path):
        return
    for request in (CALLS[path].valid("").SerializeToString(), GARBAGE):
        with refused("UNIMPLEMENTED"):
            walked.send(path, request)


@pytest.mark.parametrize("path", OPEN_TO_ALL)
def test_health_and_reflection_answer_everybody(walked: Walked, path: str) -> None:
    request, shape = OPEN_TO_ALL[path]
    encoded = request.SerializeToString()
    rpc = getattr(walked.client.channel, shape)(path, request_serializer=None, response_deserializer=None)
    answers = rpc(iter([encoded]) if shape.startswith("stream") else encoded, timeout=30)
    if shape.endswith("stream"):
        assert next(answers)
        answers.cancel()
    else:
        assert answers


@pytest.mark.parametrize("name", ["PushBlob", "PushDirectory"])
@pytest.mark.row("Asset Push")
def test_the_empty_probe_tells_the_truth(walked: Walked, name: str) -> None:
    with refused("INVALID_ARGUMENT" if walked.kind.push else "PERMISSION_DENIED"):
        walked.client.call(name)
    with refused("NOT_FOUND" if walked.kind.push else "PERMISSION_DENIED"):
        walked.client.call(name, instance_name=NOWHERE)
    for fetch in ("FetchBlob", "FetchDirectory"):
        with refused("INVALID_ARGUMENT"):
            walked.client.call(fetch)
        with refused("NOT_FOUND", "instance name"):
            walked.client.call(fetch, instance_name=NOWHERE)


@pytest.mark.row("Write")
def test_a_write_is_refused_before_any_data_is_read(walked: Walked) -> None:
    if walked.kind.push or walked.kind.index_only:
        return

    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(20)
        yield from ()

    rpc = walked.client.channel.stream_unary(f"/{BYTESTREAM}/Write")
    with refused("PERMISSION_DENIED", "push"):
        rpc(nothing(), timeout=10)
    over.set()


def test_without_push_nothing_was_written_by_any_of_them(walked: Walked) -> None:
    if walked.kind.push:
        return
    before = _stored(walked.repo)
    for path, call in CALLS.items():
        for request in (call.valid(""), call.valid(INSTANCE), call.wrong("")):
            try:
                walked.send(path, request.SerializeToString())
            except grpc.RpcError:
                continue
    assert _stored(walked.repo) == before
    assert list((walked.repo / "segments").iterdir()) == []
    assert list((walked.repo / "uploads").iterdir()) == []
    assert walked.server.cache.blobs.find_missing([_PUSHED]) == [_PUSHED]
    assert list(walked.server.cache.names.names()) == []


def _stored(repo: Path) -> dict[str, str]:
    """What is stored: everything but the log of what was read."""
    parts = ("segments", "uploads", "names/data.mdb", "index/data.mdb", "millpond.json", "refusals")
    files = [file for part in parts for file in [repo / part, *(repo / part).glob("**/*")] if file.is_file()]
    assert len(files) >= 4
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
