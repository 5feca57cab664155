"""``buildstream.v2.ReferenceStorage``, and that its refs are names of the Remote Asset API."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, digest_of, message_of, refused
from contract.trees import Tree, new_tree

from millpond.core.digest import EMPTY, Digest
from millpond.core.names import Name, Namespace, spoken
from millpond.names.binding import Binding

URN = "urn:fdc:buildstream.build:2020:v1:"
PARTS = pytest.mark.parametrize("part", ["root", "below", "file"])


def key() -> str:
    return f"project/element/{uuid4().hex}"


@pytest.fixture
def tree(client: Client) -> Tree:
    """Held."""
    return new_tree().put(client)


def update(client: Client, *keys: str, digest: Digest, **fields: Any) -> None:
    client.call("UpdateReference", keys=keys, digest=message_of(digest), **fields)


def got(client: Client, key: str, **fields: Any) -> Digest:
    return digest_of(client.call("GetReference", key=key, **fields).digest)


def push(client: Client, uri: str, digest: Digest) -> None:
    client.call("PushDirectory", uris=[uri], root_directory_digest=message_of(digest))


def fetched(client: Client, uri: str) -> Digest:
    return digest_of(client.call("FetchDirectory", uris=[uri]).root_directory_digest)


def binding(server: LoopbackServer, key: str, digest: Digest) -> None:
    """As if its blobs had been evicted since: bound past all checks."""
    name = Name("", Namespace.ASSET_DIRECTORY, URN + key)
    server.cache.names.bind([(name, Binding(digest, server.cache.clock()))])


# -- refs -------------------------------------------------------------------------------------------------------------


def test_a_ref_points_to_what_it_was_updated_to_last(client: Client, tree: Tree) -> None:
    one, two, later = key(), key(), new_tree().put(client)
    update(client, one, two, one, digest=tree.root)
    assert got(client, one) == got(client, two) == tree.root
    update(client, one, digest=later.root)
    assert (got(client, one), got(client, two)) == (later.root, tree.root)


def test_a_ref_that_is_not_there_is_not_found(client: Client) -> None:
    with refused("NOT_FOUND"):
        got(client, key())


@PARTS
def test_a_ref_is_written_only_when_its_tree_is_whole(client: Client, part: str) -> None:
    one, two, tree = key(), key(), new_tree()
    lacking: Digest = getattr(tree, part)
    tree.put(client, without=lacking)
    with refused("FAILED_PRECONDITION", str(lacking)):
        update(client, one, two, digest=tree.root)
    for name in (one, two):
        with refused("NOT_FOUND"):
            got(client, name)
    client.put(tree.contents[lacking])
    update(client, one, two, digest=tree.root)
    assert got(client, two) == tree.root


def test_a_ref_none_of_whose_blobs_are_here_is_not_written_by_either_protocol(client: Client) -> None:
    # BuildStream 1 has no split caches: what another asset may be, a ref is not.
    name, tree = key(), new_tree()
    with refused("FAILED_PRECONDITION", str(tree.root)):
        update(client, name, digest=tree.root)
    with refused("FAILED_PRECONDITION", str(tree.root)):
        push(client, URN + name, tree.root)
    with refused("FAILED_PRECONDITION", str(tree.root)):
        client.call("PushDirectory", uris=["urn:x", URN + name], root_directory_digest=message_of(tree.root))
    with refused("NOT_FOUND"):
        got(client, name)


@PARTS
def test_a_ref_is_answered_only_while_its_tree_is_whole_and_again_when_it_is(
    server: LoopbackServer, client: Client, part: str
) -> None:
    name, tree = key(), new_tree()
    lacking: Digest = getattr(tree, part)
    tree.put(client, without=lacking)
    binding(server, name, tree.root)
    for _ in range(2):  # the first reader takes nothing away
        with refused("NOT_FOUND"):
            got(client, name)
        with refused("NOT_FOUND"):
            fetched(client, URN + name)
    client.put(tree.contents[lacking])
    assert got(client, name) == fetched(client, URN + name) == tree.root


def test_answering_promises_the_whole_tree(server: LoopbackServer, client: Client, tree: Tree) -> None:
    name, promised = key(), list[Digest]()
    binding(server, name, tree.root)
    promise = server.cache.closures.promise
    server.cache.closures.promise = lambda asked, **how: promised.extend(*asked) or promise(asked, **how)  # type: ignore[method-assign, func-returns-value]
    try:
        assert got(client, name) == tree.root
    finally:
        del server.cache.closures.promise
    assert set(promised) == set(tree.contents)


def test_what_is_no_directory_does_not_become_a_ref(client: Client) -> None:
    (digest,) = client.put(b"\xff\xff is no Directory")
    with refused("INVALID_ARGUMENT", "Directory"):
        update(client, key(), digest=digest)


def test_no_keys_are_no_mistake_and_an_empty_tree_is_a_tree(client: Client) -> None:
    client.call("UpdateReference")
    client.call("UpdateReference", digest=message_of(Digest.of(b"nowhere")))
    update(client, name := key(), digest=EMPTY)
    assert got(client, name) == EMPTY


BAD_KEYS = {"an empty key": "", "a NUL": "a\0b", "too long": "k" * 16_384}


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_that_cannot_be_is_refused_and_takes_the_others_with_it(client: Client, tree: Tree, bad: str) -> None:
    with refused("INVALID_ARGUMENT", "key"):
        got(client, bad)
    with refused("INVALID_ARGUMENT", "key"):
        update(client, good := key(), bad, digest=tree.root)
    with refused("NOT_FOUND"):
        got(client, good)


def test_more_keys_than_a_push_may_have_and_what_is_no_digest_are_refused(client: Client, tree: Tree) -> None:
    with refused("INVALID_ARGUMENT"):
        update(client, *(key() for _ in range(65)), digest=tree.root)
    with refused("INVALID_ARGUMENT"):
        update(client, *["k"] * 1_000_000, digest=tree.root)
    with refused("INVALID_ARGUMENT", "hash"):
        client.call("UpdateReference", keys=[key()])
    with refused("INVALID_ARGUMENT", "hash"):
        client.call("UpdateReference", keys=[key()], digest={"hash": "../../etc/passwd", "size_bytes": 1})


@pytest.mark.parametrize("odd", ["a", "/", "../..", "a/../b", "wörld/ b/\n", "urn:x", "k" * 9000, f"{URN}a/b/c"])
def test_a_key_may_be_any_text(client: Client, tree: Tree, odd: str) -> None:
    name = odd + uuid4().hex
    update(client, name, digest=tree.root)
    assert got(client, name) == fetched(client, URN + name) == tree.root


# -- one name for both protocols --------------------------------------------------------------------------------------


def test_what_one_protocol_pushed_the_other_finds_and_replaces(client: Client, tree: Tree) -> None:
    name, later, last = key(), new_tree().put(client), new_tree().put(client)
    update(client, name, digest=tree.root)
    assert fetched(client, URN + name) == tree.root
    push(client, URN + name, later.root)
    assert got(client, name) == fetched(client, URN + name) == later.root
    update(client, name, digest=last.root)
    assert got(client, name) == fetched(client, URN + name) == last.root


def test_it_is_one_binding_of_the_kind_ref(server: LoopbackServer, client: Client, tree: Tree) -> None:
    name = key()
    update(client, name, digest=tree.root)
    push(client, URN + name, tree.root)
    found = [one for one, _ in server.cache.names.names() if one.key.endswith(name)]
    assert found == [Name("", Namespace.ASSET_DIRECTORY, URN + name)]
    assert spoken(found[0]) == ("ref", name)


def test_blobs_other_urns_and_qualifiers_are_other_names(client: Client, tree: Tree) -> None:
    name = key()
    client.call("PushBlob", uris=[URN + name], blob_digest=message_of(tree.root))
    for urn in ("urn:fdc:buildstream.build:2020:artifact:", "urn:fdc:buildstream.build:2020:source:", ""):
        push(client, urn + name, tree.root) if urn != URN else None
    client.call(
        "PushDirectory",
        uris=[URN + name],
        root_directory_digest=message_of(tree.root),
        qualifiers=[{"name": "q", "value": "v"}],
    )
    with refused("NOT_FOUND"):
        got(client, name)


def test_a_ref_that_expired_is_a_miss_in_both(server: LoopbackServer, client: Client, tree: Tree) -> None:
    name = key()
    expired = Binding(tree.root, 1, expires_at_ms=server.cache.clock() - 1)
    server.cache.names.bind([(Name("", Namespace.ASSET_DIRECTORY, URN + name), expired)])
    with refused("NOT_FOUND"):
        got(client, name)
    with refused("NOT_FOUND"):
        fetched(client, URN + name)


def test_instances_have_refs_of_their_own(server: LoopbackServer, client: Client, tree: Tree) -> None:
    name, other = key(), new_tree().put(client)
    update(client, name, digest=tree.root)
    with refused("NOT_FOUND"):
        got(client, name, instance_name=INSTANCE)
    update(client, name, digest=other.root, instance_name=INSTANCE)
    assert (got(client, name), got(client, name, instance_name=INSTANCE)) == (tree.root, other.root)
    with refused("NOT_FOUND", "instance name"):
        got(client, name, instance_name="nowhere")


# -- other servers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Servers on one repository, one after the other; each with a client."""
    running: list[tuple[LoopbackServer, Client]] = []

    def stop() -> None:
        while running:
            server, client = running.pop()
            client.channel.close()
            server.stop()

    def start(**how: Any) -> Client:
        stop()
        server = LoopbackServer(tmp_path / "repo", **how)
        running.append((server, Client(server.target)))
        return running[-1][1]

    yield start
    stop()


def test_without_push_refs_are_read_and_status_says_so(servers: Callable[..., Client]) -> None:
    client, name = servers(), key()
    assert client.call("Status").allow_updates
    update(client, name, digest=(root := new_tree().put(client).root))
    client = servers(push=False)
    assert not client.call("Status").allow_updates
    assert got(client, name) == root
    for fields in ({}, {"keys": [name]}, {"keys": [""]}, {"instance_name": "nowhere"}):
        with refused("PERMISSION_DENIED", "push"):
            client.call("UpdateReference", **fields)
    with refused("NOT_FOUND", "instance name"):
        client.call("Status", instance_name="nowhere")


def test_an_index_keeps_refs_without_their_trees(servers: Callable[..., Client]) -> None:
    client, name, tree = servers(index_only=True), key(), new_tree()
    update(client, name, digest=tree.root)
    assert got(client, name) == fetched(client, URN + name) == tree.root
    assert client.call("Status").allow_updates


def test_where_the_empty_instance_is_not_served_nothing_answers_who_names_none(servers: Callable[..., Client]) -> None:
    client = servers(instances=(INSTANCE,))
    for name, fields in (("Status", {}), ("GetReference", {"key": "k"}), ("UpdateReference", {})):
        with refused("NOT_FOUND", "instance name"):
            client.call(name, **fields)
    assert client.call("Status", instance_name=INSTANCE).allow_updates


def test_refs_are_there_after_a_restart(servers: Callable[..., Client]) -> None:
    client, name = servers(), key()
    update(client, name, digest=(root := new_tree().put(client).root))
    assert got(servers(), name) == root
