"""The holes of the old servers, tried on every RPC of every generation.

===========================================================  ==========================================================
a server of BuildStream 1.6 or 1.93                          here
===========================================================  ==========================================================
read any file as a blob, for everybody                       ``test_no_text_of_a_peer_becomes_part_of_a_path``,
                                                             ``test_a_hash_that_is_a_path_reads_no_file``
wrote refs, artifacts and sources outside of its store       ``test_no_text_of_a_peer_becomes_part_of_a_path``,
                                                             ``test_keys_that_are_paths_are_names_like_others``
told its paths in errors                                     ``test_no_text_of_a_peer_becomes_part_of_a_path``
took pushes without --enable-push (1.91 and later)           ``test_every_rpc.py``
kept names of trees that are not there                       ``test_references.py``, ``test_artifacts.py``
evicted for a blob whose size was announced only             ``test_a_size_that_is_announced_evicts_nothing``
kept any number of streams, of any length                    ``test_writes.py``
===========================================================  ==========================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from contract.loopback import LoopbackServer
from contract.rpc_client import Client, digest_of, message_of, refused
from contract.test_every_rpc import CALLS, KINDS, Kind
from contract.trees import new_tree
from google.protobuf.message import Message

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import Digest

MARK = "escape-by-a-path"
SECRET = b"what only the operator may read"
CLEAR = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNIMPLEMENTED"}

_watching: list[set[str]] = []
_hooked = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event == "open" or event.startswith("os.")):
        for argument in arguments:
            if isinstance(argument, str | bytes):
                _watching[-1].add(os.fsdecode(argument))


@contextmanager
def watched_paths() -> Iterator[set[str]]:
    """Every path that this process, and so the server in it, hands to the system meanwhile."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hook)  # for good: there is no way to take one off
        _hooked = True
    paths: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "access", "readlink", "statvfs"):  # not audited
            patch.setattr(os, name, _noting(getattr(os, name), paths))
        _watching.append(paths)
        try:
            yield paths
        finally:
            _watching.pop()


def _noting(real: Any, paths: set[str]) -> Any:
    def call(path: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(path, int):
            paths.add(os.fsdecode(path))
        return real(path, *arguments, **named)

    return call


def attacks(outside: Path) -> list[str]:
    """Texts that lead out of a store if they are taken for a path."""
    up = "../" * 12
    return [
        f"{up}{outside}/{MARK}".replace("//", "/"),
        f"{outside}/{MARK}",
        f"{up}{MARK}",
        f"{MARK}/../../{MARK}",
        f"xx{outside}/secret",
        f"ab/{up}{MARK}".ljust(64, "0")[:64],
        f"{MARK}\0",
        f"{MARK}\n/..",
        f"blobs/{up}{MARK}/1",
        f"uploads/{up}{MARK}/blobs/{up}{MARK}/1",
        f"uploads/{up}{MARK}/blobs/{Digest.of(SECRET)}",
    ]


def fields_of(message: Message, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every text in ``message``, those that are not set and those of embedded messages included."""
    for field in message.DESCRIPTOR.fields:
        if field.type == field.TYPE_STRING:
            yield (*path, field.name)
        elif (
            field.message_type is not None and len(path) < 4 and not field.message_type.full_name.startswith("google.")
        ):
            below = getattr(message, field.name)
            if field.is_repeated:
                below = below[0] if below else below.add()
            yield from fields_of(below, (*path, field.name))


def with_text(message: Message, path: tuple[Any, ...], text: str) -> Message:
    """``message`` with ``text`` at the end of ``path``."""
    *above, last = path
    place: Any = message
    for name in above:
        place = getattr(place, name)
        if not isinstance(place, Message):  # repeated
            place = place[0] if place else place.add()
    if isinstance(getattr(place, last), str):
        setattr(place, last, text)
    else:
        del getattr(place, last)[:]
        getattr(place, last).append(text)
    return message


@pytest.fixture(scope="module", params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outside")
    (place / "secret").write_bytes(SECRET)
    return place


@pytest.fixture(scope="module")
def served(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackServer, Client]]:
    repo = tmp_path_factory.mktemp("holes") / "the-repository"
    with (
        LoopbackServer(repo, push=kind.push, index_only=kind.index_only) as server,
        Client(server.target) as client,
    ):
        yield server, client


@pytest.mark.parametrize("path", CALLS)
def test_no_text_of_a_peer_becomes_part_of_a_path(
    served: tuple[LoopbackServer, Client], outside: Path, path: str
) -> None:
    server, client = served
    told, before = [], sorted(outside.iterdir())
    with watched_paths() as paths:
        for way in set(fields_of(CALLS[path].valid(""))):
            for text in attacks(outside):
                request = with_text(CALLS[path].valid(""), way, text)
                told.append(send(client, path, request.SerializeToString()))
    assert told
    assert {code for code, _ in told} <= CLEAR
    for _, details in told:
        for ours in (str(server.repo), "site-packages", "Traceback", "Errno", "millpond/", ".py"):
            assert ours not in details
    assert [one for one in paths if MARK in one or str(outside) in one] == []
    assert sorted(outside.iterdir()) == before
    assert (outside / "secret").read_bytes() == SECRET


def send(client: Client, path: str, request: bytes) -> tuple[str, str]:
    """The status and its words."""
    shape = CALLS[path].shape
    rpc = getattr(client.channel, shape)(path, request_serializer=None, response_deserializer=None)
    try:
        answer = rpc(iter([request]) if shape == "stream_unary" else request, timeout=30)
        for part in answer if shape == "unary_stream" else [answer]:
            assert SECRET not in part
    except grpc.RpcError as refusal:
        return refusal.code().name, refusal.details() or ""
    return "OK", ""


def test_the_walk_finds_keys_hashes_instances_and_names() -> None:
    found = {path.split("/")[2]: set(fields_of(call.valid(""))) for path, call in CALLS.items()}
    assert found["GetReference"] == {("instance_name",), ("key",)}
    assert found["UpdateReference"] == {("instance_name",), ("keys",), ("digest", "hash")}
    assert ("artifact", "logs", "digest", "hash") in found["UpdateArtifact"]
    assert found["BatchUpdateBlobs"] >= {("requests", "digest", "hash"), ("instance_name",)}
    assert found["Write"] == {("resource_name",)}


def test_the_watch_sees_paths_that_are_opened_and_looked_at(tmp_path: Path) -> None:
    with watched_paths() as paths:
        (tmp_path / "made").write_bytes(b"")
        assert not (tmp_path / "looked at").exists()
        (tmp_path / "made").unlink()
    assert {str(tmp_path / "made"), str(tmp_path / "looked at")} <= paths


@pytest.mark.parametrize("hash_", ["xx{}", "{}", "../../../../../../../../../../../..{}"])
def test_a_hash_that_is_a_path_reads_no_file(client: Client, outside: Path, hash_: str) -> None:
    secret = {"hash": hash_.format(outside / "secret"), "size_bytes": len(SECRET)}
    (item,) = client.call("BatchReadBlobs", digests=[secret]).responses
    assert (item.status.code, item.data) == (3, b"")
    with refused("INVALID_ARGUMENT"):
        client.call("FindMissingBlobs", blob_digests=[secret])
    for name in (f"blobs/{secret['hash']}/{len(SECRET)}", f"{secret['hash']}/{len(SECRET)}"):
        with refused("INVALID_ARGUMENT"):
            client.read(name)


def test_keys_that_are_paths_are_names_like_others(server: LoopbackServer, client: Client, outside: Path) -> None:
    tree = new_tree().put(client)
    root, key = message_of(tree.root), "../" * 12 + f"{outside}/{MARK}"
    with watched_paths() as paths:
        client.call("UpdateReference", keys=[key], digest=root)
        client.call("UpdateArtifact", cache_key=key, artifact={"files": root})
        client.call("UpdateSource", cache_key=key, source={"files": root})
        assert digest_of(client.call("GetReference", key=key).digest) == tree.root
        assert digest_of(client.call("GetArtifact", cache_key=key).files) == tree.root
        assert digest_of(client.call("GetSource", cache_key=key).files) == tree.root
    assert [path for path in paths if MARK in path or "/../" in path] == []
    assert not (outside / MARK).exists()
    assert [path for path in server.repo.rglob("*") if MARK in path.name] == []


def test_good_hashes_and_keys_are_no_part_of_a_path_either(client: Client) -> None:
    contents = [os.urandom(size) for size in (10, 100_000, 3_000_000)]
    digests, key = list(map(Digest.of, contents)), f"project/element/{uuid4().hex}"
    with watched_paths() as paths:
        client.put(contents[0])
        for data in contents:
            client.upload(data)
            assert client.read(str(Digest.of(data))) == data
        tree = new_tree().put(client)
        client.call("UpdateReference", keys=[key], digest=message_of(tree.root))
        client.call("GetReference", key=key)
        assert client.get(digests[:2]) == contents[:2]
    named = [digest.hash for digest in (*digests, *tree.contents)]
    assert [path for path in paths for text in (*named, *key.split("/")[2:]) if text in path or text[2:] in path] == []


def test_a_size_that_is_announced_evicts_nothing(client: Client) -> None:
    tree = new_tree().put(client)
    client.call("UpdateReference", keys=[key := uuid4().hex], digest=message_of(tree.root))
    for size in (10**10, 2**62):
        for name in (f"uploads/{uuid4()}/blobs/{tree.root.hash}/{size}", f"{tree.root.hash}/{size}"):
            request = bytestream_pb2.WriteRequest(resource_name=name, data=b"x")
            with refused("RESOURCE_EXHAUSTED"):
                client.write([request])
    assert digest_of(client.call("GetReference", key=key).digest) == tree.root
    assert client.find_missing(list(tree.contents)) == []
