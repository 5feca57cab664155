"""Looking after a cache that serves: bit rot is found and heals, numbers are true, content goes when told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contract.rpc_client import Client, message_of, refused
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.server_process import Millpond
from unit.store.repositories import flip, noise

from millpond.core.digest import Digest

CONTENT = [noise(4000 + i, "content") for i in range(20)]
LARGE = noise(3_000_000, "large")
URI = "urn:fdc:buildstream.build:2020:source:project/element/key"
SECONDS = 30


def stats(repo: Path) -> dict[str, Any]:
    document: dict[str, Any] = millpond("stats", "--json", repo).json
    return document


def damaged_blobs(repo: Path) -> int:
    """That clients' reads have found."""
    ever = stats(repo)["requests"]["ever"]
    return ever["damaged_blobs"] if ever else 0


def until(question: Callable[[], object]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(answer)


@contextmanager
def client_of(server: Millpond) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client


def push_all(client: Client) -> list[Digest]:
    """A name that needs all of the content."""
    digests = [*client.put(*CONTENT), Digest.of(LARGE)]
    client.upload(LARGE)
    push(client, digests)
    return digests


def push(client: Client, digests: list[Digest]) -> None:
    first, *others = map(message_of, digests)
    client.call("PushBlob", uris=[URI], blob_digest=first, references_blobs=others)


def rot(repo: Path, data: bytes) -> None:
    """Flip a bit of a blob where it lies."""
    for path in (repo / "segments").iterdir():
        at = path.read_bytes().find(data)
        if at >= 0:
            flip(path, at + len(data) // 2, bit=2)
            return
    raise AssertionError("it lies nowhere")


@pytest.mark.parametrize("data", [CONTENT[7], LARGE], ids=["small", "large"])
def test_a_flipped_bit_is_a_miss_logged_counted_and_healed_by_an_upload(site: BuildSite, data: bytes) -> None:
    server = site.server("--enable-push", "--scrub-days", "0", repo=site.root / "repo")
    with client_of(server) as client:
        digests = push_all(client)
        rot(site.root / "repo", data)
        rotten = Digest.of(data)
        with refused("NOT_FOUND"):
            client.read(client.read_name(rotten))
        assert until(lambda: client.find_missing(digests) == [rotten])
        with refused("NOT_FOUND"):
            client.call("FetchBlob", uris=[URI])
        assert f"blob {rotten} is damaged" in server.stderr
        assert until(lambda: damaged_blobs(site.root / "repo") == 1)
        client.upload(data)
        assert client.read(client.read_name(rotten)) == data
        assert client.call("FetchBlob", uris=[URI]).blob_digest == message_of(digests[0])
    server.stop()
    assert millpond("check", "--deep", site.root / "repo").status == 0


def test_what_nobody_reads_is_scrubbed_in_the_background(site: BuildSite) -> None:
    repo = site.root / "repo"
    server = site.server("--enable-push", "--scrub-days", "0", repo=repo)
    with client_of(server) as client:
        digests = push_all(client)
    server.stop()
    rot(repo, CONTENT[3])
    server = site.server("--enable-push", "--scrub-days", "1", "--scrub-rate", "100M", repo=repo)
    assert until(lambda: stats(repo)["scrub"]["damaged_ever"] == 1)
    rotten = Digest.of(CONTENT[3])
    assert f"scrub: blob {rotten} is damaged" in server.stderr
    with client_of(server) as client:
        assert client.find_missing(digests) == [rotten]
        client.put(CONTENT[3])
        assert client.find_missing(digests) == []
        assert client.call("FetchBlob", uris=[URI]).blob_digest == message_of(digests[0])
    assert until(lambda: stats(repo)["scrub"]["finished_ms"])
    assert "everything was verified" in millpond("stats", repo).output
    server.stop()
    assert millpond("check", "--deep", repo).status == 0


def test_check_repairs_beside_a_server_that_goes_on(site: BuildSite) -> None:
    repo = site.root / "repo"
    server = site.server("--enable-push", "--scrub-days", "0", repo=repo)
    with client_of(server) as client:
        digests = push_all(client)
        rot(repo, CONTENT[5])
        found = millpond("check", "--deep", repo)
        assert (found.status, found.errors) == (1, "")
        assert f"blob {Digest.of(CONTENT[5])}: segment" in found.output
        assert millpond("check", "--rebuild", repo).status == 2
        repaired = millpond("check", "--deep", "--repair", repo)
        assert (repaired.status, "    repaired\n" in repaired.output) == (1, True)
        assert client.find_missing(digests) == [Digest.of(CONTENT[5])]
        client.put(CONTENT[5])
        push(client, digests)
        assert millpond("check", "--deep", repo).status == 0
        assert client.get(digests[:20]) == CONTENT
    server.stop()


def test_the_numbers_of_a_server_are_true(site: BuildSite) -> None:
    repo = site.root / "repo"
    server = site.server("--enable-push", "--quota", "1G", repo=repo)
    with client_of(server) as client:
        digests = push_all(client)
        for _ in range(3):
            client.call("FetchBlob", uris=[URI])
        with refused("NOT_FOUND"):
            client.call("FetchBlob", uris=["urn:nobody"])
        client.get([*digests[:5], Digest.of(b"nobody")])

        def counted() -> bool:
            ever = stats(repo)["requests"]["ever"]
            return ever is not None and (ever["names"]["found"], ever["names"]["missed"]) == (3, 1)

        assert until(counted)
        document = stats(repo)
        assert document["requests"]["ever"]["blobs"] == {"found": 5, "missed": 1, "hit_rate": 0.8333}
        assert document["requests"]["ever"]["bytes_written"] == sum(map(len, [*CONTENT, LARGE]))
        assert document["requests"]["ever"]["bytes_read"] == sum(map(len, CONTENT[:5]))
        assert document["room"]["quota_bytes"] == 10**9
        assert document["content"]["blobs"] == len(digests)
        assert document["names"]["by_kind"]["source"]["total"] == 1
    server.stop()
    assert stats(repo)["requests"]["ever"] == document["requests"]["ever"]


def test_content_goes_when_told_beside_a_server(site: BuildSite) -> None:
    repo = site.root / "repo"
    server = site.server("--enable-push", "--quota", "1G", repo=repo)
    with client_of(server) as client:
        digests = push_all(client)
        client.call("FetchBlob", uris=[URI])
        young = millpond("evict", "--older-than", "1h", repo)
        assert (young.status, young.output.splitlines()[0]) == (0, "nothing had to go")
        gone = millpond("evict", "--everything", repo)
        assert (gone.status, gone.errors) == (0, "")
        assert "21 blobs" in gone.output
        assert client.find_missing(digests) == digests
        with refused("NOT_FOUND"):
            client.call("FetchBlob", uris=[URI])
        push_all(client)
        assert client.call("FetchBlob", uris=[URI]).blob_digest == message_of(digests[0])
    server.stop()
    assert millpond("check", "--deep", repo).status == 0
