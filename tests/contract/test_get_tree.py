"""``ContentAddressableStorage.GetTree``: a whole tree, in pages."""

from __future__ import annotations

import os

import pytest
from contract.rpc_client import Client, message_of, refused

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import EMPTY, Digest


def directory(salt: str, *below: re_pb2.Directory, files: int = 0) -> re_pb2.Directory:
    made = re_pb2.Directory(directories=[{"name": f"{n:04}", "digest": digest(one)} for n, one in enumerate(below)])
    made.symlinks.add(name="salt", target=salt)
    for n in range(files):
        made.files.add(name=f"{n:05}", digest=message_of(EMPTY))
    return made


def digest(one: re_pb2.Directory) -> re_pb2.Digest:
    return message_of(Digest.of(one.SerializeToString()))


def store(client: Client, *directories: re_pb2.Directory) -> Digest:
    """Store them; the digest of the last one."""
    for one in directories:
        assert client.upload(one.SerializeToString()) == one.ByteSize()
    return Digest.of(directories[-1].SerializeToString())


def directories(pages: list[re_pb2.GetTreeResponse]) -> list[re_pb2.Directory]:
    return [one for page in pages for one in page.directories]


def names(pages: list[re_pb2.GetTreeResponse]) -> list[str]:
    return sorted(one.symlinks[0].target for one in directories(pages))


@pytest.mark.row("GetTree")
def test_every_directory_at_and_below_the_root_comes_once_the_root_first(client: Client) -> None:
    shared = directory("shared")
    left, right = directory("left", shared), directory("right", shared, directory("deep"))
    root = store(client, shared, directory("deep"), left, right, directory("root", left, right))
    pages = client.tree(root)
    assert names(pages) == ["deep", "left", "right", "root", "shared"]
    assert directories(pages)[0].symlinks[0].target == "root"
    assert pages[-1].next_page_token == ""


@pytest.mark.row("GetTree")
def test_missing_children_are_left_out_and_only_a_missing_root_is_not_found(client: Client) -> None:
    gone = directory("gone", directory("below what is gone"))
    root = store(client, directory("still here"), directory("with holes", gone, directory("still here")))
    assert names(client.tree(root)) == ["still here", "with holes"]
    with refused("NOT_FOUND", "root"):
        client.tree(Digest.of(gone.SerializeToString()))


@pytest.mark.row("GetTree")
@pytest.mark.parametrize("page_size", [1, 2, 3, 7, 8, 100])
def test_page_size_is_a_cap_and_page_token_goes_on(client: Client, page_size: int) -> None:
    leaves = [directory(f"leaf {n}") for n in range(7)]
    root = store(client, *leaves, directory("root", *leaves))
    found: list[str] = []
    token = ""
    answers = 0
    while True:
        pages = client.tree(root, page_size=page_size, page_token=token)
        assert len(directories(pages)) <= page_size
        found += names(pages)
        answers += 1
        token = pages[-1].next_page_token
        if not token:
            break
    assert sorted(found) == sorted(["root", *(f"leaf {n}" for n in range(7))])
    assert answers == -(-8 // page_size)


@pytest.mark.row("GetTree")
def test_a_token_beyond_the_end_is_an_empty_page(client: Client) -> None:
    root = store(client, directory("alone"))
    assert directories(client.tree(root, page_token="5")) == []


@pytest.mark.row("GetTree")
@pytest.mark.parametrize("fields", [{"page_size": -1}, {"page_token": "made up"}, {"page_token": "-1"}], ids=str)
def test_a_size_or_a_token_that_cannot_be_is_refused(client: Client, fields: dict[str, object]) -> None:
    with refused("INVALID_ARGUMENT", "page"):
        client.tree(store(client, directory("alone")), **fields)


@pytest.mark.row("GetTree")
def test_a_blob_that_is_no_directory_is_refused(client: Client) -> None:
    (root,) = client.put(b"\xff" * 100)
    with refused("INVALID_ARGUMENT", "not a Directory"):
        client.tree(root)


@pytest.mark.row("GetTree")
def test_a_tree_deeper_than_a_stack_is_followed(client: Client) -> None:
    one = directory("bottom")
    chain = [one]
    for level in range(500):
        one = directory(str(level), one)
        chain.append(one)
    client.put(*(link.SerializeToString() for link in chain))
    assert len(directories(client.tree(Digest.of(one.SerializeToString())))) == 501


@pytest.mark.row("versions")
def test_a_large_tree_comes_in_messages_of_at_most_4_mib(client: Client) -> None:
    # Whatever lies next to each other: 1.9 MB and 3 MB in one message would be too much.
    sizes = [25_000, 40_000, 25_000, 100, 40_000, 100]
    leaves = [directory(os.urandom(8).hex(), files=files) for files in sizes]
    root = store(client, *leaves, directory("root of a large tree", *leaves))
    pages = client.tree(root)
    assert len(directories(pages)) == len(sizes) + 1
    assert max(page.ByteSize() for page in pages) <= 4 * 2**20
    assert len(pages) > 3
