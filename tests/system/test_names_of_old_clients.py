"""Upkeep's commands over names of BuildStream's older protocols: refs, and artifacts and sources as messages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.rpc_client import Client, digest_of, message_of, refused
from contract.trees import Tree, new_tree
from system.build_site import BuildSite
from system.millpond_command import millpond

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core.digest import Digest

REF, ARTIFACT, SOURCE = "project/element/ref", "project/element/artifact", "local/source"
MORE = b"\x9a\x06\x03new"
"""A field that nobody knows."""


class Cache:
    """A server that old clients have pushed to; each of the three names has a tree of its own."""

    def __init__(self, site: BuildSite) -> None:
        self.site, self.repo = site, site.place("repo")
        self.trees: dict[str, Tree] = {}
        self.start()
        for name in (REF, ARTIFACT, SOURCE):
            self.trees[name] = new_tree().put(self.client)
        self.client.call("UpdateReference", keys=[REF], digest=message_of(self.trees[REF].root))
        self.artifact = artifact_pb2.Artifact(files=message_of(self.trees[ARTIFACT].root)).SerializeToString() + MORE
        self.source = source_pb2.Source(files=message_of(self.trees[SOURCE].root)).SerializeToString() + MORE
        artifact = artifact_pb2.UpdateArtifactRequest(cache_key=ARTIFACT)
        artifact.artifact.MergeFromString(self.artifact)
        self.client.rpc("UpdateArtifact")(artifact)
        source = source_pb2.UpdateSourceRequest(cache_key=SOURCE)
        source.source.MergeFromString(self.source)
        self.client.rpc("UpdateSource")(source)

    def start(self) -> None:
        self.server = self.site.server("--enable-push", "--quota", "100M", repo=self.repo)
        self.client = Client(f"127.0.0.1:{self.server.port}")

    def stop(self) -> None:
        self.client.channel.close()
        self.server.stop()

    def answers(self) -> list[str]:
        """Which of the three are answered, as they were pushed."""
        found = []
        if digest_of(self.client.call("GetReference", key=REF).digest) == self.trees[REF].root:
            found.append(REF)
        for method, key, sent in (("GetArtifact", ARTIFACT, self.artifact), ("GetSource", SOURCE, self.source)):
            if self.client.call(method, cache_key=key).SerializeToString() == sent:
                found.append(key)
        return found


@pytest.fixture
def cache(site: BuildSite) -> Iterator[Cache]:
    cache = Cache(site)
    yield cache
    cache.client.channel.close()


def test_they_are_listed_shown_pinned_counted_and_checked_as_clients_call_them(cache: Cache) -> None:
    assert cache.answers() == [REF, ARTIFACT, SOURCE]
    listed = [line.split()[:2] for line in millpond("names", "list", cache.repo).output.splitlines()]
    assert listed == [["artifact", ARTIFACT], ["source", SOURCE], ["ref", REF]]
    for kind, name in listed:
        assert millpond("pin", cache.repo, f"{kind}:{name}").status == 0
        (shown,) = millpond("names", "show", cache.repo, name, "--json").json
        assert (shown["whole"], shown["pinned_by"]) == (True, [f"{kind}:{name}"])
        tree = cache.trees[name]
        message = len(cache.artifact) if kind == "artifact" else 0
        assert shown["closure_bytes"] == sum(map(len, tree.contents.values())) + message
    kinds = millpond("stats", cache.repo, "--json").json["names"]["by_kind"]
    assert {kind: (of["total"], of["pinned"]) for kind, of in kinds.items()} == {
        "artifact": (1, 1),
        "source": (1, 1),
        "ref": (1, 1),
        "asset": (0, 0),
    }
    assert millpond("check", "--deep", cache.repo).status == 0


@pytest.mark.parametrize("name", [REF, ARTIFACT, SOURCE])
def test_what_only_they_hold_is_purged_with_them(cache: Cache, name: str) -> None:
    said = millpond("names", "remove", "--purge", cache.repo, name)
    assert said.status == 0, said
    gone = [*cache.trees[name].contents] + ([Digest.of(cache.artifact)] if name == ARTIFACT else [])
    assert cache.client.find_missing(gone) == gone
    call = {
        REF: ("GetReference", {"key": REF}),
        ARTIFACT: ("GetArtifact", {"cache_key": ARTIFACT}),
        SOURCE: ("GetSource", {"cache_key": SOURCE}),
    }[name]
    with refused("NOT_FOUND"):
        cache.client.call(call[0], **call[1])
    for other in {REF, ARTIFACT, SOURCE} - {name}:
        assert cache.client.find_missing(list(cache.trees[other].contents)) == []


def test_they_are_restored_from_a_copy_messages_included(cache: Cache) -> None:
    cache.stop()
    shutil.rmtree(cache.repo / "backup", ignore_errors=True)  # one may have been made before the last push
    cache.start()
    copied(cache.repo)
    cache.stop()
    (cache.repo / "names" / "data.mdb").write_bytes(b"")
    assert millpond("names", "restore", cache.repo).status == 0
    cache.start()
    assert cache.answers() == [REF, ARTIFACT, SOURCE]


def copied(repo: Path) -> None:
    """Wait for a copy of all three names."""
    deadline = time.monotonic() + 30
    while not list((repo / "backup").glob("names-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
