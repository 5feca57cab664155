"""Blobs in batches: ``build.bazel.remote.execution.v2.ContentAddressableStorage``."""

from __future__ import annotations

import os

import grpc
import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, message_of, refused

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest

OK = 0
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def wrong_size(digest: Digest, by: int = 1) -> Digest:
    return Digest(digest.key, digest.size_bytes + by)


def small_blobs(count: int, size_bytes: int = 32) -> list[bytes]:
    noise = os.urandom(8 * count)
    return [noise[at : at + 8].ljust(size_bytes, b".") for at in range(0, len(noise), 8)]


# -- FindMissingBlobs -------------------------------------------------------------------------------------------------


@pytest.mark.row("FindMissingBlobs")
def test_those_that_are_not_held_come_back_in_the_order_of_the_request(client: Client) -> None:
    held = client.put(b"find me")
    missing = [Digest.of(b"not here"), Digest.of(b"nor here")]
    assert client.find_missing([missing[0], *held, missing[1]]) == missing
    assert client.find_missing([]) == []


@pytest.mark.row("FindMissingBlobs")
def test_sixty_thousand_digests_in_one_call(client: Client) -> None:
    held = client.put(*small_blobs(5_000))
    absent = list(map(Digest.of, small_blobs(55_000)))
    assert client.find_missing([*held, *absent]) == absent


@pytest.mark.row("FindMissingBlobs")
def test_sixty_thousand_absent_digests_answer_as_much_as_was_asked(server: LoopbackServer) -> None:
    # Each is both in the request and in the answer; whoever asks more than 4 MiB has to accept more than 4 MiB.
    absent = list(map(Digest.of, small_blobs(60_000, size_bytes=200)))
    with Client(server.target, options=[("grpc.max_receive_message_length", -1)]) as client:
        assert client.find_missing(absent) == absent


@pytest.mark.row("FindMissingBlobs")
def test_a_blob_that_is_reported_present_is_leased(server: LoopbackServer, client: Client) -> None:
    digests = client.put(*small_blobs(3))
    promised: list[Digest] = []
    real = server.cache.blobs.find_missing
    try:
        server.cache.blobs.find_missing = lambda asked, **how: promised.extend(asked) or real(asked, **how)  # type: ignore[method-assign, func-returns-value]
        assert client.find_missing(digests) == []
    finally:
        del server.cache.blobs.find_missing
    assert promised == digests


# -- digests ----------------------------------------------------------------------------------------------------------


@pytest.mark.row("digest")
@pytest.mark.parametrize("by", [1, -1, 5 * 10**6, 10**12])
def test_the_right_hash_with_a_wrong_size_is_not_present_and_serves_nothing(client: Client, by: int) -> None:
    (digest,) = client.put(b"one size only")
    lie = wrong_size(digest, by)
    assert client.find_missing([lie, digest]) == [lie]
    with refused("NOT_FOUND"):
        client.read(client.read_name(lie))
    if by == 1:
        assert client.get([lie, digest]) == [NOT_FOUND, b"one size only"]
        with refused("NOT_FOUND"):
            client.tree(lie)


@pytest.mark.row("digest")
def test_a_blob_cannot_be_stored_under_a_wrong_size(client: Client) -> None:
    data = b"exactly so long"
    for lie in (wrong_size(Digest.of(data)), wrong_size(Digest.of(data), -1)):
        assert client.update([(lie, data)]) == [INVALID_ARGUMENT]
        with refused("INVALID_ARGUMENT"):
            client.upload(data, client.write_name(lie))
        assert client.find_missing([lie, Digest.of(data)]) == [lie, Digest.of(data)]


BAD_DIGESTS = {
    "upper case": re_pb2.Digest(hash="A" * 64, size_bytes=1),
    "white space": re_pb2.Digest(hash="aa " * 32, size_bytes=1),
    "too short": re_pb2.Digest(hash="a" * 63, size_bytes=1),
    "no hex": re_pb2.Digest(hash="g" * 64, size_bytes=1),
    "another alphabet": re_pb2.Digest(hash="١" * 64, size_bytes=1),
    "a path": re_pb2.Digest(hash="../" * 20 + "etc/", size_bytes=1),
    "a NUL": re_pb2.Digest(hash="\0" * 64, size_bytes=1),
    "nothing": re_pb2.Digest(),
    "negative size": re_pb2.Digest(hash="a" * 64, size_bytes=-1),
    "a length of another function": re_pb2.Digest(hash="a" * 40, size_bytes=1),
}


@pytest.mark.row("digest")
@pytest.mark.parametrize("bad", BAD_DIGESTS.values(), ids=BAD_DIGESTS)
def test_what_is_no_digest_is_refused_alone_where_items_fail_alone(client: Client, bad: re_pb2.Digest) -> None:
    (good,) = client.put(b"good company")
    with refused("INVALID_ARGUMENT"):
        client.call("FindMissingBlobs", blob_digests=[message_of(good), bad])
    answer = client.call("BatchReadBlobs", digests=[message_of(good), bad])
    assert [item.status.code for item in answer.responses] == [OK, INVALID_ARGUMENT]
    assert answer.responses[0].data == b"good company"
    new = {"digest": message_of(Digest.of(b"newcomer")), "data": b"newcomer"}
    answer = client.call("BatchUpdateBlobs", requests=[{"digest": bad, "data": b"x"}, new])
    assert [item.status.code for item in answer.responses] == [INVALID_ARGUMENT, OK]
    with refused("INVALID_ARGUMENT"):
        list(client.rpc("GetTree")(re_pb2.GetTreeRequest(root_digest=bad)))


@pytest.mark.row("digest_function")
@pytest.mark.parametrize("function", ["SHA1", "MD5", "SHA512", "BLAKE3", "SHA256TREE", "VSO", 99])
def test_a_function_that_is_not_offered_is_never_taken_for_sha256(client: Client, function: str | int) -> None:
    number = re_pb2.DigestFunction.Value.Value(function) if isinstance(function, str) else function
    (digest,) = client.put(b"hashed by sha256")
    with refused("INVALID_ARGUMENT", "digest function"):
        client.find_missing([digest], digest_function=number)
    with refused("INVALID_ARGUMENT", "digest function"):
        client.get([digest], digest_function=number)
    with refused("INVALID_ARGUMENT", "digest function"):
        client.update([(digest, b"hashed by sha256")], digest_function=number)
    with refused("INVALID_ARGUMENT", "digest function"):
        client.tree(digest, digest_function=number)
    for name in ("FetchBlob", "FetchDirectory"):
        with refused("INVALID_ARGUMENT", "digest function"):
            client.call(name, uris=["urn:x"], digest_function=number)
    for name, field in (("PushBlob", "blob_digest"), ("PushDirectory", "root_directory_digest")):
        with refused("INVALID_ARGUMENT", "digest function"):
            client.call(name, uris=["urn:x"], digest_function=number, **{field: message_of(digest)})


@pytest.mark.row("digest_function")
def test_sha256_may_be_named_or_left_out(client: Client) -> None:
    (digest,) = client.put(b"named or not")
    for number in (re_pb2.DigestFunction.UNKNOWN, re_pb2.DigestFunction.SHA256):
        assert client.find_missing([digest], digest_function=number) == []
        assert client.get([digest], digest_function=number) == [b"named or not"]


# -- BatchUpdateBlobs -------------------------------------------------------------------------------------------------


@pytest.mark.row("BatchUpdateBlobs")
def test_items_succeed_or_fail_alone(client: Client) -> None:
    liar, honest = Digest.of(b"what I said"), Digest.of(b"what I am")
    assert client.update([(liar, b"what I sent"), (honest, b"what I am")]) == [INVALID_ARGUMENT, OK]
    assert client.find_missing([liar, honest]) == [liar]
    assert client.update([(liar, b"what I said")]) == [OK]  # the name is not poisoned
    assert client.get([liar]) == [b"what I said"]


@pytest.mark.row("BatchUpdateBlobs")
def test_a_batch_of_exactly_the_advertised_size_works_and_one_byte_more_is_refused(client: Client) -> None:
    limit = client.call("GetCapabilities").cache_capabilities.max_batch_total_size_bytes
    assert limit == 4 * 2**20 - 2**18
    whole = os.urandom(limit)
    assert client.update([(Digest.of(whole), whole)]) == [OK]
    assert client.get([Digest.of(whole)]) == [whole]
    halves = [os.urandom(limit // 2), os.urandom(limit - limit // 2)]
    assert client.update([(Digest.of(half), half) for half in halves]) == [OK, OK]
    assert client.get(map(Digest.of, halves)) == halves
    with refused("INVALID_ARGUMENT", "ByteStream"):
        client.update([(Digest.of(whole), whole), (Digest.of(b"!"), b"!")])
    assert client.find_missing([Digest.of(b"!")]) == [Digest.of(b"!")]
    with refused("INVALID_ARGUMENT", "ByteStream"):
        client.get([Digest.of(whole), Digest.of(b"!")])


@pytest.mark.row("BatchUpdateBlobs")
def test_the_same_digest_twice_and_an_empty_batch_are_legal(client: Client) -> None:
    twice = (Digest.of(b"twice"), b"twice")
    assert client.update([twice, twice]) == [OK, OK]
    assert client.update([]) == []
    # Sent twice, once wrong: each answers for itself.
    again = Digest.of(b"twice, once wrong")
    assert client.update([(again, b"wrong"), (again, b"twice, once wrong")]) == [INVALID_ARGUMENT, OK]


@pytest.mark.row("BatchUpdateBlobs")
def test_a_compressor_that_is_not_offered_fails_its_item_only(client: Client) -> None:
    plain, packed = Digest.of(b"plain"), Digest.of(b"packed")
    answer = client.call(
        "BatchUpdateBlobs",
        requests=[
            {"digest": message_of(packed), "data": b"packed", "compressor": re_pb2.Compressor.ZSTD},
            {"digest": message_of(plain), "data": b"plain"},
        ],
    )
    assert [item.status.code for item in answer.responses] == [INVALID_ARGUMENT, OK]
    assert client.find_missing([packed, plain]) == [packed]


# -- BatchReadBlobs ---------------------------------------------------------------------------------------------------


@pytest.mark.row("BatchReadBlobs")
def test_every_item_has_its_status(client: Client) -> None:
    (here,) = client.put(b"here")
    assert client.get([here, Digest.of(b"gone"), here, EMPTY]) == [b"here", NOT_FOUND, b"here", b""]
    assert client.get([]) == []


@pytest.mark.row("BatchReadBlobs")
def test_identity_is_always_allowed_and_what_is_sent_says_so(client: Client) -> None:
    (here,) = client.put(b"as it is")
    for accepted in ([], [re_pb2.Compressor.ZSTD], [re_pb2.Compressor.IDENTITY, re_pb2.Compressor.ZSTD]):
        answer = client.call("BatchReadBlobs", digests=[message_of(here)], acceptable_compressors=accepted)
        assert (answer.responses[0].compressor, answer.responses[0].data) == (re_pb2.Compressor.IDENTITY, b"as it is")


def put_all(client: Client, contents: list[bytes]) -> list[Digest]:
    return [digest for at in range(0, len(contents), 10_000) for digest in client.put(*contents[at : at + 10_000])]


@pytest.mark.row("versions")
def test_twenty_thousand_blobs_of_180_bytes_answer_at_most_4_mib(client: Client) -> None:
    contents = small_blobs(20_000, size_bytes=180)
    digests = put_all(client, contents)
    answer = client.call("BatchReadBlobs", digests=map(message_of, digests))
    assert answer.ByteSize() <= 4 * 2**20
    assert [item.digest for item in answer.responses] == list(map(message_of, digests))
    codes = [item.status.code for item in answer.responses]
    assert set(codes) == {OK, RESOURCE_EXHAUSTED}
    assert codes.count(OK) > 10_000
    left = [digest for digest, code in zip(digests, codes, strict=True) if code]
    assert client.get(left) == [content for content, code in zip(contents, codes, strict=True) if code]


@pytest.mark.row("versions")
@pytest.mark.parametrize("size_bytes", [8, 60], ids=["tiny", "small"])
def test_more_small_blobs_than_an_answer_can_name_are_refused(client: Client, size_bytes: int) -> None:
    # Even "ask again" for each of them would be more than 4 MiB.
    digests = list(map(Digest.of, small_blobs(60_000, size_bytes)))
    with refused("INVALID_ARGUMENT", "blobs"):
        client.get(digests)
    with refused("INVALID_ARGUMENT", "blobs"):
        client.call("BatchReadBlobs", digests=[re_pb2.Digest()] * 200_000)
    with refused("INVALID_ARGUMENT", "blobs"):
        client.call("BatchUpdateBlobs", requests=[{}] * 200_000)


@pytest.mark.row("versions")
def test_forty_thousand_tiny_blobs_are_written_and_read_in_one_batch(client: Client) -> None:
    # BuildStream 1 fills a batch to 1 MiB, however many files that are, and its messages end at 4 MiB.
    contents = small_blobs(40_000, 8)
    digests = list(map(Digest.of, contents))
    assert set(client.update(zip(digests, contents, strict=True))) == {OK}
    assert client.get(digests) == contents
    absent = list(map(Digest.of, small_blobs(40_000, 9)))
    assert set(client.get(absent)) == {NOT_FOUND}
    answer = client.call("BatchReadBlobs", digests=map(message_of, [*digests[:30_000], *absent[:15_000]]))
    assert answer.ByteSize() <= 4 * 2**20
    assert {item.status.code for item in answer.responses[30_000:]} == {NOT_FOUND}


@pytest.mark.row("versions")
def test_absent_blobs_by_the_ten_thousand_answer_at_most_4_mib(client: Client) -> None:
    digests = list(map(Digest.of, small_blobs(30_000, 100)))
    assert set(client.get(digests)) == {NOT_FOUND}


@pytest.mark.row("versions")
def test_messages_of_16_mib_are_accepted_and_more_is_not(client: Client) -> None:
    digest = message_of(*client.put(b"again and again"))
    room = limits.RECEIVE_BYTES - 2 - len(INSTANCE)
    request = re_pb2.FindMissingBlobsRequest(instance_name=INSTANCE)
    request.blob_digests.extend([digest] * (room // (digest.ByteSize() + 2)))
    assert 16 * 2**20 - 100 < request.ByteSize() <= 16 * 2**20
    assert client.rpc("FindMissingBlobs")(request, timeout=60) == re_pb2.FindMissingBlobsResponse()
    with refused("RESOURCE_EXHAUSTED"):
        client.rpc("FindMissingBlobs")(bytes(limits.RECEIVE_BYTES + 1))
    assert client.find_missing([]) == []


# -- the empty blob ---------------------------------------------------------------------------------------------------


@pytest.mark.row("empty blob")
def test_the_empty_blob_is_present_without_upload(client: Client) -> None:
    assert client.find_missing([EMPTY]) == []
    assert client.get([EMPTY]) == [b""]
    assert client.read(client.read_name(EMPTY)) == b""
    assert client.update([(EMPTY, b"")]) == [OK]
    assert client.update([(EMPTY, b"?")]) == [INVALID_ARGUMENT]
    assert client.upload(b"") == 0
    assert client.status(client.write_name(EMPTY)) == (0, True)
    assert [len(page.directories) for page in client.tree(EMPTY)] == [1]


# -- SplitBlob, SpliceBlob --------------------------------------------------------------------------------------------


@pytest.mark.row("SplitBlob")
def test_split_blob_says_that_it_is_not_offered(client: Client) -> None:
    with refused("UNIMPLEMENTED", "SplitBlob"):
        client.call("SplitBlob", blob_digest=message_of(EMPTY))


@pytest.mark.row("SpliceBlob")
def test_splice_blob_says_that_it_is_not_offered(client: Client) -> None:
    with refused("UNIMPLEMENTED", "SpliceBlob"):
        client.call("SpliceBlob", blob_digest=message_of(EMPTY))


@pytest.mark.row("ByteStream names")
def test_blobs_are_shared_by_all_instances(server: LoopbackServer, client: Client) -> None:
    (digest,) = client.put(b"shared")
    with Client(server.target, instance=INSTANCE) as other:
        assert other.find_missing([digest]) == []
        assert other.get([digest]) == [b"shared"]
        assert other.read(other.read_name(digest)) == b"shared"
