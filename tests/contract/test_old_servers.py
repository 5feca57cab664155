"""What clients of BuildStream 1.2 to 1.93 depend on, row by row of ``old_rows.py``, and the quirks that make them work."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from contract.loopback import LoopbackServer
from contract.old_rows import ARTIFACT, BROKEN, BROKEN_ARTIFACT, REF, SOURCE, Row, Scene, outcome_of, rows
from contract.rows import ROWS
from contract.rpc_client import Client, message_of, refused
from contract.trees import Tree, new_tree

from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.core.digest import Digest
from millpond.core.names import ARTIFACT_URN, REFERENCE_URN, Name, Namespace
from millpond.names.binding import Binding

TABLE = list(rows())


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    repo = tmp_path_factory.mktemp("full") / "repo"
    with LoopbackServer(repo, quota_bytes=3_000_000) as server, Client(server.target) as client:
        yield client


@pytest.fixture(scope="module", params=[True, False], ids=["push", "no push"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, full: Client) -> Iterator[Scene]:
    repo, push = tmp_path_factory.mktemp("old") / "repo", bool(request.param)
    with LoopbackServer(repo) as server, Client(server.target) as client:
        tree, public_data = _fill(server, client)
    with LoopbackServer(repo, push=push) as server, Client(server.target) as client:
        yield Scene(client, tree, public_data, server.cache.names, push, full)


def _fill(server: LoopbackServer, client: Client) -> tuple[Tree, Digest]:
    tree = new_tree().put(client)
    (public_data,) = client.put(b"public data, and a log")
    client.call("UpdateReference", keys=[REF], digest=message_of(tree.root))
    client.call("UpdateSource", cache_key=SOURCE, source={"files": message_of(tree.root)})
    absent = message_of(Digest.of(b"a build tree that nobody has"))
    whole = {"files": message_of(tree.root), "public_data": message_of(public_data), "buildtree": absent}
    client.call("UpdateArtifact", cache_key=ARTIFACT, artifact=whole)
    for part, key in BROKEN.items():
        broken = new_tree()
        broken.put(client, without=getattr(broken, part))
        _bind(server, Name("", Namespace.ASSET_DIRECTORY, REFERENCE_URN + key), broken.root)
    (digest,) = client.put(artifact_pb2.Artifact(files=message_of(broken.root)).SerializeToString())
    _bind(server, Name("", Namespace.ASSET_BLOB, ARTIFACT_URN + BROKEN_ARTIFACT), digest)
    return tree, public_data


def _bind(server: LoopbackServer, name: Name, digest: Digest) -> None:
    """Past all checks, as if something of it had gone since."""
    server.cache.names.bind([(name, Binding(digest, server.cache.clock()))])


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.call)
def test_each_call_is_answered_as_its_row_says(scene: Scene, row: Row) -> None:
    assert outcome_of(row, scene) == row.expected(push=scene.push)


def test_rows_that_differ_from_the_old_servers_name_the_rule_that_asks_for_it() -> None:
    assert len({row.call for row in TABLE}) == len(TABLE)
    differ = {row.call: row.because for row in TABLE if row.ours is not None}
    assert {
        because for because in differ.values() if because not in ROWS and not re.fullmatch(r"I\d+", because)
    } == set()
    assert [row.call for row in TABLE if row.because and row.ours in (None, row.upstream)] == []
    assert 10 < len(differ) < len(TABLE) / 2 + 5


def test_a_broken_ref_is_still_there_after_somebody_asked_for_it(scene: Scene) -> None:
    # The old server deleted it, also where nobody may push. Ours leaves that to upkeep, a day later.
    for key in BROKEN.values():
        name = Name("", Namespace.ASSET_DIRECTORY, REFERENCE_URN + key)
        with refused("NOT_FOUND"):
            scene.client.call("GetReference", key=key)
        assert scene.names.resolve(name).digest
