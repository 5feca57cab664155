"""Messages laid out by hand are what the generated classes would have written, and are read as these would."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.wire import layout

int64 = st.integers(-(2**63), 2**63 - 1)
digests = st.builds(
    Digest,
    st.binary(min_size=32, max_size=32).map(lambda raw: b"\x01" + raw),
    st.integers(0, 2**63 - 1) | st.integers(0, 300),
)


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def delimited(tag: int, data: bytes) -> bytes:
    return bytes([tag]) + varint(len(data)) + data


# Fields of a WriteRequest as they may stand on the wire: known and unknown, in any order, more than once, with numbers
# that take more bytes than they need, of a wrong type.
known_fields = st.one_of(
    st.text(max_size=200).map(lambda name: delimited(0x0A, name.encode())),
    int64.map(lambda offset: b"\x10" + varint(offset % 2**64)),
    st.sampled_from([b"\x18\x00", b"\x18\x01", b"\x18\x02", b"\x18\x80\x01", b"\x18\x80\x00"]),
    st.binary(max_size=300).map(lambda data: delimited(0x52, data)),
)
unknown_fields = st.one_of(
    st.binary(max_size=20).map(lambda data: delimited(0x7A, data)),  # field 15
    int64.map(lambda number: b"\x20" + varint(number % 2**64)),  # field 4
    st.binary(min_size=8, max_size=8).map(lambda raw: b"\x29" + raw),  # fixed64
    st.binary(min_size=4, max_size=4).map(lambda raw: b"\x35" + raw),  # fixed32
    st.just(b"\x43\x44"),  # a group, empty
    st.just(b"\x82\x01\x03abc"),  # field 16
    st.just(b"\x08\x05"),  # resource_name as a number
    st.just(b"\x12\x01x"),  # write_offset as bytes
    st.just(b"\x1a\x00"),  # finish_write as bytes
    st.just(b"\x50\x07"),  # data as a number
)
odd_fields = st.one_of(
    st.just(b"\x10" + b"\x80" * 9 + b"\x01"),
    st.just(b"\x10\x85\x80\x00"),  # 5, with padding
    st.just(b"\x10" + b"\xff" * 9 + b"\x7f"),  # more than 64 bits
    st.just(b"\x10" + b"\xff" * 10 + b"\x01"),  # eleven bytes
    st.just(b"\x52\x80\x00"),
    st.just(b"\x0a\x02\xff\xfe"),  # not UTF-8
    st.just(b"\x52\xff\xff\xff\xff\x0f"),
    st.just(b"\x00\x00"),  # field 0
    st.binary(max_size=5),
)
wires = st.lists(known_fields | unknown_fields, max_size=8).map(b"".join)
odd_wires = st.lists(known_fields | unknown_fields | odd_fields, max_size=8).map(b"".join)


def generated(message: bytes) -> tuple[str, int, bool, bytes] | None:
    try:
        request = bytestream_pb2.WriteRequest.FromString(message)
    except DecodeError:
        return None
    return request.resource_name, request.write_offset, request.finish_write, request.data


def by_hand(message: bytes) -> tuple[str, int, bool, bytes] | None:
    try:
        parsed = layout.parse_write(message)
    except DecodeError:
        return None
    return parsed.resource_name, parsed.write_offset, parsed.finish_write, bytes(parsed.data)


@given(wires)
def test_a_write_request_is_read_as_the_generated_class_does(message: bytes) -> None:
    assert generated(message) is not None
    assert by_hand(message) == generated(message)


@given(odd_wires, st.data())
@example(b"\x52\x05abc", None)
@example(b"\x0a\x01", None)
@example(b"\x10", None)
@example(b"\x52", None)
@example(b"\x10" + b"\xff" * 9 + b"\x02", None)
@example(b"\x10" + b"\xff" * 9 + b"\x7f", None)
@example(b"\x18" + b"\x80" * 9 + b"\x02", None)
@example(b"\x0a" + b"\x80" * 9 + b"\x02", None)
def test_cut_short_or_odd_it_is_still_read_the_same_or_refused_by_both(message: bytes, data: st.DataObject) -> None:
    if data is not None:
        message = message[: data.draw(st.integers(0, len(message)))]
    assert by_hand(message) == generated(message)


@given(st.binary(max_size=40))
def test_garbage_is_read_the_same_or_refused_by_both(message: bytes) -> None:
    assert by_hand(message) == generated(message)


@given(st.text(), int64, st.booleans(), st.binary(max_size=70_000))
def test_what_a_client_library_writes_is_read_back(name: str, offset: int, finish: bool, data: bytes) -> None:
    request = bytestream_pb2.WriteRequest(resource_name=name, write_offset=offset, finish_write=finish, data=data)
    assert by_hand(request.SerializeToString()) == (name, offset, finish, data)


@given(st.integers(0, 2**64 - 1) | st.integers(0, 70_000))
@example(0x3FFF)
@example(0x4000)
def test_varints(number: int) -> None:
    assert layout.varint(number) == varint(number)


def message_of(digest: Digest) -> re_pb2.Digest:
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


@given(digests)
def test_a_digest(digest: Digest) -> None:
    assert layout.digest(digest) == message_of(digest).SerializeToString()


@given(st.lists(digests, max_size=20))
def test_a_find_missing_response(missing: list[Digest]) -> None:
    expected = re_pb2.FindMissingBlobsResponse(missing_blob_digests=map(message_of, missing))
    assert re_pb2.FindMissingBlobsResponse.FromString(layout.find_missing_response(missing)) == expected
    assert layout.find_missing_response(missing) == expected.SerializeToString()


@given(st.lists(st.binary(max_size=300), max_size=10), st.booleans())
def test_a_batch_read_response(contents: list[bytes], as_view: bool) -> None:
    expected = re_pb2.BatchReadBlobsResponse()
    for content in contents:
        expected.responses.add(digest=message_of(Digest.of(content)), data=content)
    sent = [memoryview(content) if as_view else content for content in contents]
    items = b"".join(layout.batch_read_items(list(map(Digest.of, contents)), sent))
    assert re_pb2.BatchReadBlobsResponse.FromString(items) == expected


@given(st.binary(max_size=40_000), st.booleans())
def test_a_read_response(data: bytes, as_view: bool) -> None:
    encoded = b"".join(layout.read_response(memoryview(data) if as_view else data))
    assert bytestream_pb2.ReadResponse.FromString(encoded) == bytestream_pb2.ReadResponse(data=data)


bad_digests = st.builds(lambda text, size: re_pb2.Digest(hash=text, size_bytes=size), st.text(max_size=70), int64)


@given(st.lists(digests.map(message_of) | bad_digests, max_size=10))
def test_digests_are_validated_many_at_once_as_one_by_one(messages: list[re_pb2.Digest]) -> None:
    assert outcome(lambda: layout.parse_digests(messages)) == outcome(
        lambda: [Digest.parse(message.hash, message.size_bytes) for message in messages]
    )


def outcome(parse: Callable[[], list[Digest]]) -> list[Digest] | str:
    try:
        return parse()
    except InvalidRequest as refusal:
        return str(refusal)


@given(digests, digests, st.integers(1, 63))
def test_hashes_that_only_together_have_the_right_length_are_refused(one: Digest, two: Digest, cut: int) -> None:
    joined = one.hash + two.hash
    messages = [re_pb2.Digest(hash=joined[: 64 + cut]), re_pb2.Digest(hash=joined[64 + cut :])]
    with pytest.raises(InvalidRequest):
        layout.parse_digests(messages)


# -- FindMissingBlobsRequest ------------------------------------------------------------------------------------------

Found = tuple[str, int, list[tuple[str, int]]]


def find_missing_generated(message: bytes) -> Found | None:
    try:
        request = re_pb2.FindMissingBlobsRequest.FromString(message)
    except DecodeError:
        return None
    digests = [(digest.hash, digest.size_bytes) for digest in request.blob_digests]
    return request.instance_name, request.digest_function, digests


def find_missing_by_hand(message: bytes) -> Found | None:
    try:
        request = layout.parse_find_missing(message)
    except DecodeError:
        return None
    digests = [(digest.hash, digest.size_bytes) for digest in request.digests]
    if request.encoded is not None:
        # Sent back as the answer, it says the same.
        answer = re_pb2.FindMissingBlobsResponse.FromString(request.encoded)
        assert [(digest.hash, digest.size_bytes) for digest in answer.missing_blob_digests] == digests
        assert [*map(Digest.parse, *zip(*digests, strict=True))] == request.validated()
    return request.instance_name, request.digest_function, digests


few_sizes = st.sampled_from([0, 1, 10, 0x0A40, 127, 128, 0x40, 300, 2**31, 2**63 - 1])
request_digests = st.builds(Digest, st.binary(min_size=32, max_size=32).map(lambda raw: b"\x01" + raw), few_sizes)
requests = st.builds(
    lambda name, function, asked: re_pb2.FindMissingBlobsRequest(
        instance_name=name, digest_function=function, blob_digests=asked
    ),
    st.sampled_from(["", "main", "a/b", "\n@", "\n@\n@", "x" * 200, "é"]) | st.text(max_size=5),
    st.sampled_from([0, 1, 2, 9, 99]),
    st.lists(request_digests.map(message_of) | request_digests.map(message_of) | bad_digests, max_size=6)
    | st.lists(request_digests.map(message_of), max_size=6),
)


@given(requests)
def test_a_find_missing_request_is_read_as_the_generated_class_does(request: re_pb2.FindMissingBlobsRequest) -> None:
    message = request.SerializeToString()
    assert find_missing_by_hand(message) == find_missing_generated(message)


@given(requests, st.data())
def test_a_damaged_find_missing_request_is_read_the_same_or_refused_by_both(
    request: re_pb2.FindMissingBlobsRequest, data: st.DataObject
) -> None:
    message = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(message)))
        cut = data.draw(st.integers(0, 2))
        message[at : at + cut] = data.draw(
            st.sampled_from([b"", b"\x0a\x40", b"\x12", b"\x44", b"\x43", b"\x10", b"\x18\x01", b"\x80", b"\xff"])
            | st.binary(max_size=3)
        )
    assert find_missing_by_hand(bytes(message)) == find_missing_generated(bytes(message))


HASH = b"\x0a\x40" + b"a" * 64


@pytest.mark.parametrize(
    "message",
    [
        b"\x12\x44" + HASH + b"\x10" + b"\xff" * 9 + b"\x01",
        b"\x12\x4d" + HASH + b"\x10" + b"\xff" * 9 + b"\x01",
        b"\x12\x44" + HASH + b"\x10\x05",
        b"\x12\x43" + HASH + b"\x10\x05",
        b"\x12\x42" + HASH + b"\x10\x05",
        b"\x12\x44" + HASH + b"\x10\x05\x12\x48" + HASH + b"\x10\x05",
        b"\x12\x44" + HASH + b"\x10\x05\x18\x01\x18\x01",
        b"\x12\x46" + HASH + b"\x10\x05\x18\x01",
        b"\x12\x45" + HASH + b"\x10\x85\x00",
    ],
    ids=bytes.hex,
)
def test_lengths_that_lie_and_sizes_that_overflow(message: bytes) -> None:
    assert find_missing_by_hand(message) == find_missing_generated(message)
