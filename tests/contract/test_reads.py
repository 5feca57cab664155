"""``google.bytestream.ByteStream.Read``."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, refused

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core import limits
from millpond.core.digest import Digest

SMALL = b"0123456789"
LARGE = os.urandom(3 * limits.MIB + 12_345)
HASH = "a" * 64


@pytest.fixture(scope="module", autouse=True)
def _stored(server: LoopbackServer) -> None:
    with Client(server.target) as client:
        client.put(SMALL)
        client.upload(LARGE)


RANGES = [(0, 0), (1, 0), (0, 1), (3, 4), (9, 0), (5, 100), (limits.MIB - 1, 2), (limits.MIB, limits.MIB)]
RANGES += [(limits.MIB + 1, 2 * limits.MIB), (0, limits.MIB), (3 * limits.MIB, 0), (len(LARGE) - 1, 1)]


@pytest.mark.row("Read")
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_offset_and_limit_are_honoured(client: Client, data: bytes) -> None:
    name = client.read_name(Digest.of(data))
    for offset, limit in RANGES:
        if offset <= len(data):
            end = offset + limit if limit else len(data)
            assert client.read(name, offset=offset, limit=limit) == data[offset:end], (offset, limit)


@pytest.mark.row("Read")
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_an_offset_outside_of_the_blob_is_out_of_range_and_its_end_is_empty(client: Client, data: bytes) -> None:
    name = client.read_name(Digest.of(data))
    assert client.read(name, offset=len(data)) == b""
    assert client.read(name, offset=len(data), limit=5) == b""
    for offset in (-1, len(data) + 1, -(2**63), 2**63 - 1):
        with refused("OUT_OF_RANGE", "read_offset"):
            client.read(name, offset=offset)
    with refused("INVALID_ARGUMENT", "read_limit"):
        client.read(name, limit=-1)


@pytest.mark.row("Read")
def test_what_is_not_held_is_not_found(client: Client) -> None:
    for size in (5, 5_000_000):
        with refused("NOT_FOUND"):
            client.read(f"blobs/{HASH}/{size}")


@pytest.mark.row("versions")
def test_a_large_blob_comes_in_messages_that_every_client_accepts(client: Client) -> None:
    request = bytestream_pb2.ReadRequest(resource_name=client.read_name(Digest.of(LARGE)))
    answers = list(client.rpc("Read")(request))
    assert b"".join(answer.data for answer in answers) == LARGE
    assert max(answer.ByteSize() for answer in answers) <= 4 * 2**20


@pytest.mark.row("ByteStream names")
@pytest.mark.parametrize("prefix", ["", "/", f"{INSTANCE}/", f"/{INSTANCE}/"], ids=repr)
@pytest.mark.parametrize("function", ["", "sha256/"], ids=repr)
def test_a_name_may_have_an_instance_a_leading_slash_and_its_function(
    client: Client, prefix: str, function: str
) -> None:
    assert client.read(f"{prefix}blobs/{function}{Digest.of(SMALL)}") == SMALL


BAD_NAMES = {
    "empty": "",
    "no marker": "something/else",
    "no size": f"blobs/{HASH}",
    "negative size": f"blobs/{HASH}/-5",
    "a size of twenty digits": f"blobs/{HASH}/10000000000000000000",
    "a size beyond int64": f"blobs/{HASH}/9999999999999999999",
    "a size in other digits": f"blobs/{HASH}/١",
    "more than a size": f"blobs/{HASH}/5/more",
    "upper case": f"blobs/{HASH.upper()}/5",
    "dots for a hash": "blobs/../5",
    "dots after the hash": f"blobs/{HASH}/../../etc/passwd",
    "a NUL": f"blobs/{HASH}\0/5",
    "10 000 characters": "blobs/" + "a" * 10_000 + "/5",
    "10 000 segments": "/" * 10_000,
    "another function": f"blobs/blake3/{HASH}/5",
    "a function that is no function": f"blobs/rot13/{HASH}/5",
}


@pytest.mark.row("ByteStream names")
@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_what_is_no_name_is_refused_for_reads_and_writes(client: Client, name: str) -> None:
    with refused("INVALID_ARGUMENT"):
        client.read(name)
    # What follows the size of a write is the client's own.
    if not name.startswith(f"blobs/{HASH}/5/"):
        with refused("INVALID_ARGUMENT"):
            client.upload(b"12345", f"uploads/some-upload/{name}")
        with refused("INVALID_ARGUMENT"):
            client.status(f"uploads/some-upload/{name}")


@pytest.mark.row("ByteStream names")
@pytest.mark.parametrize(
    "instance",
    ["nowhere", "team", "team/a/b", "../team/a", "team//a", "a" * 1000, "actions", "operations", "\n"],
    ids=str,
)
def test_an_instance_that_is_not_served_is_not_found_whatever_follows(client: Client, instance: str) -> None:
    for rest in (f"{HASH}/5", "no hash/-5", "blake3/x"):
        for marker in ("blobs", "compressed-blobs/zstd"):
            with refused("NOT_FOUND", "instance name"):
                client.read(f"{instance}/{marker}/{rest}")
            with refused("NOT_FOUND", "instance name"):
                client.upload(b"12345", f"{instance}/uploads/some-upload/{marker}/{rest}")
            with refused("NOT_FOUND", "instance name"):
                client.status(f"{instance}/uploads/some-upload/{marker}/{rest}")


@pytest.mark.row("compressed")
def test_a_compressor_that_is_not_advertised_is_refused(client: Client) -> None:
    advertised = client.call("GetCapabilities").cache_capabilities
    assert list(advertised.supported_compressors) == []
    for compressor in ("zstd", "deflate", "brotli", "identity2"):
        with refused("INVALID_ARGUMENT", "compressor"):
            client.read(f"compressed-blobs/{compressor}/{Digest.of(SMALL)}")
        with refused("INVALID_ARGUMENT", "compressor"):
            client.upload(SMALL, f"uploads/some-upload/compressed-blobs/{compressor}/{Digest.of(SMALL)}")


@pytest.mark.row("Read")
def test_slices_put_together_are_the_blob(client: Client) -> None:
    name = client.read_name(Digest.of(LARGE))
    cuts = [0, 1, limits.MIB - 1, limits.MIB, 2 * limits.MIB + 7, 3 * limits.MIB, len(LARGE)]
    assert b"".join(client.read(name, offset=at, limit=end - at) for at, end in pairwise(cuts)) == LARGE
