"""How clients of BuildStream 1.1 to 1.93 work, and what makes them stop working: see ``test_old_servers.py`` for each call.

Every job of theirs is a process of its own with a connection of its own, which begins with empty requests; what these are
answered decides which protocol the client speaks, and whether it uses the server at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from contract.loopback import LoopbackServer
from contract.rpc_client import Client, message_of, refused
from contract.trees import new_tree

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import NotReady

MIB = limits.MIB
KINDS = [(push, index_only) for push in (True, False) for index_only in (False, True)]

OK, PROBED = "OK", "INVALID_ARGUMENT"
DENIED, NOT_OFFERED = "PERMISSION_DENIED", "UNIMPLEMENTED"
PROBES: dict[str, tuple[str, str, str, str, str]] = {
    # the empty request: answers of (full, full index, no push, no push index); what the client makes of it
    "GetCapabilities": (OK, OK, OK, OK, "any other status drops the remote"),
    "BatchReadBlobs": (OK, NOT_OFFERED, OK, NOT_OFFERED, "OK: read in batches; any other but UNIMPLEMENTED drops it"),
    "FetchDirectory": (PROBED, PROBED, PROBED, PROBED, "INVALID_ARGUMENT: speak Remote Asset"),
    "FetchBlob": (PROBED, PROBED, PROBED, PROBED, "1.93.5 and later: anything else drops the remote"),
    "BatchUpdateBlobs": (OK, NOT_OFFERED, DENIED, NOT_OFFERED, "OK: write in batches; DENIED, NOT_OFFERED: do not"),
    "PushDirectory": (PROBED, PROBED, DENIED, DENIED, "INVALID_ARGUMENT: may push; DENIED: may not"),
    "PushBlob": (PROBED, PROBED, DENIED, DENIED, "as PushDirectory, for 1.93.5 and later"),
    "Status": (OK, OK, OK, OK, "says whether refs may be updated"),
    "buildstream.v2.Capabilities": (OK, OK, OK, OK, "1.91 to 1.93.4: any other status drops the remote"),
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"push={kind[0]},index={kind[1]}")
def probed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, int]]:
    push, index_only = request.param
    repo = tmp_path_factory.mktemp("probed") / "repo"
    with LoopbackServer(repo, push=push, index_only=index_only) as server, Client(server.target) as client:
        yield client, KINDS.index(request.param)


@pytest.mark.parametrize("name", PROBES)
def test_an_empty_request_is_answered_as_the_client_needs(probed: tuple[Client, int], name: str) -> None:
    client, kind = probed
    try:
        client.call(name)
        outcome = OK
    except grpc.RpcError as refusal:
        outcome = refusal.code().name
    assert outcome == PROBES[name][kind]


def test_an_instance_that_is_not_served_looks_like_no_success_to_any_probe(probed: tuple[Client, int]) -> None:
    client, kind = probed
    for name, expected in PROBES.items():
        told = expected[kind] if expected[kind] in (DENIED, NOT_OFFERED) else "NOT_FOUND"
        with refused(told):
            client.call(name, instance_name="nowhere")


# -- pushing -----------------------------------------------------------------------------------------------------------


def upload(client: Client, name: str, data: bytes, *, up_to: int | None = None) -> int:
    """As 1.x does: 1 MiB in a message, the name in each. Broken off at ``up_to``."""

    def messages() -> Iterator[bytestream_pb2.WriteRequest]:
        for at in range(0, max(1, len(data)), MIB):
            if up_to is not None and at >= up_to:
                raise InterruptedError
            part, last = data[at : at + MIB], at + MIB >= len(data)
            yield bytestream_pb2.WriteRequest(resource_name=name, write_offset=at, data=part, finish_write=last)

    return client.write(messages())


def test_all_uploads_of_a_process_share_one_uuid_and_begin_again_at_0(client: Client) -> None:
    uuid = uuid4()
    contents = [os.urandom(size) for size in (MIB, 3 * MIB + 5, 5 * MIB, 17)]
    for data in contents:
        name = f"uploads/{uuid}/blobs/{Digest.of(data)}"
        if len(data) > MIB:
            with pytest.raises(grpc.RpcError):
                upload(client, name, data, up_to=2 * MIB)
        assert upload(client, name, data) == len(data)
    for data in contents:
        assert client.read(f"blobs/{Digest.of(data)}") == data


def test_the_names_of_1_1_clients_read_and_write_whatever_the_size(client: Client) -> None:
    for size in (0, 1, 17, MIB, 3 * MIB + 5):
        data = os.urandom(size)
        name = str(Digest.of(data))
        assert upload(client, name, data) == size
        assert client.read(name) == data
        assert upload(client, name, data) == size  # and again, of what is there
    data = os.urandom(3 * MIB)
    with pytest.raises(grpc.RpcError):
        upload(client, str(Digest.of(data)), data, up_to=2 * MIB)
    assert upload(client, str(Digest.of(data)), data) == 3 * MIB


def test_the_empty_blob_is_uploaded_and_read_like_any_other(client: Client) -> None:
    assert client.update([(EMPTY, b""), (EMPTY, b"")]) == [0, 0]
    assert upload(client, f"uploads/{uuid4()}/blobs/{EMPTY}", b"") == 0
    answer = client.call("BatchReadBlobs", digests=[message_of(EMPTY)])
    assert [(item.status.code, item.data) for item in answer.responses] == [(0, b"")]
    assert client.read(f"blobs/{EMPTY}") == b""


@pytest.mark.parametrize("count", [1, 2, 1024])
def test_a_batch_of_exactly_1_mib_is_written_and_read(client: Client, count: int) -> None:
    contents = [os.urandom(MIB // count) for _ in range(count)]
    digests = list(map(Digest.of, contents))
    assert set(client.update(zip(digests, contents, strict=True))) == {0}
    assert client.get(digests) == contents


def test_a_digest_may_be_asked_for_twice_in_the_512_of_a_call(client: Client) -> None:
    tree = new_tree().put(client)
    absent = [Digest.of(os.urandom(8)) for _ in range(128)]
    asked = [*absent, tree.root, tree.file] * 2
    assert set(client.find_missing((asked * 2)[:512])) == set(absent)


LARGE_BYTES = 3_500_000
"""More than ``full`` may hold, and less than a batch may."""

# -- no room -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server that has room, but never for what is large."""
    repo: Path = tmp_path_factory.mktemp("full") / "repo"
    with LoopbackServer(repo, quota_bytes=3_000_000) as server, Client(server.target) as client:
        yield client


@pytest.mark.row("BatchUpdateBlobs")
def test_no_room_for_one_of_a_batch_is_the_status_of_the_call(full: Client) -> None:
    # 1.x goes on with its build when the call says so, and fails the job when an item does; 2.x copes with both.
    small, large, wrong = os.urandom(10), os.urandom(LARGE_BYTES), os.urandom(10)
    with refused("RESOURCE_EXHAUSTED"):
        full.update([(Digest.of(small), small), (Digest.of(wrong), b"!"), (Digest.of(large), large)])
    # What had room was stored all the same; whoever asks again is told.
    assert full.find_missing([Digest.of(small), Digest.of(large)]) == [Digest.of(large)]
    assert full.update([(Digest.of(small), small)]) == [0]


@pytest.mark.row("BatchUpdateBlobs")
def test_a_store_that_cannot_write_now_is_the_status_of_the_call(server: LoopbackServer, client: Client) -> None:
    # 1.4 and later, and 2.x, try a call again that is UNAVAILABLE; an item that says so fails the job of 1.x.
    server.cache.blobs.put_many = lambda blobs: [None, NotReady("not now")][: len(blobs)]  # type: ignore[method-assign]
    try:
        with refused("UNAVAILABLE", "not now"):
            client.update([(Digest.of(data), data) for data in (b"first", b"second")])
    finally:
        del server.cache.blobs.put_many


def test_a_name_is_not_written_for_blobs_that_had_no_room(full: Client) -> None:
    tree = new_tree()
    large = os.urandom(LARGE_BYTES)
    contents = {**tree.contents, Digest.of(large): large}
    with refused("RESOURCE_EXHAUSTED"):
        full.update(contents.items())
    with refused("RESOURCE_EXHAUSTED"):
        full.upload(large)
    root = message_of(Digest.of(large))
    for name, fields in {
        "UpdateReference": {"keys": ["project/element/key"], "digest": root},
        "UpdateSource": {"cache_key": "local/key", "source": {"files": root}},
        "UpdateArtifact": {"cache_key": "project/element/key", "artifact": {"files": root}},
        "PushDirectory": {"uris": ["urn:fdc:buildstream.build:2020:v1:k"], "root_directory_digest": root},
    }.items():
        with refused("FAILED_PRECONDITION"):
            full.call(name, **fields)


def test_an_artifact_for_whose_message_there_is_no_room_is_refused(tmp_path: Path) -> None:
    with LoopbackServer(tmp_path / "repo", quota_bytes=300_000) as server, Client(server.target) as client:
        with refused("RESOURCE_EXHAUSTED"):
            client.call("UpdateArtifact", cache_key="k", artifact={"build_error": "e" * MIB})
        with refused("NOT_FOUND"):
            client.call("GetArtifact", cache_key="k")
