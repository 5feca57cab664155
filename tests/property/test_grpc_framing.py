"""gRPC's framing, however its bytes are cut into pieces."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.protocol.grpc_framing import (
    Deframer,
    MessageTooLarge,
    UnknownEncoding,
    UnreadableMessage,
    prefix_of,
    status_message,
    timeout_seconds,
)

LIMIT = 1000
MESSAGES = st.lists(st.binary(max_size=60), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """``data`` in pieces, some of them empty."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[begin:end] for begin, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(MESSAGES, st.lists(st.integers(min_value=0), max_size=12))
def test_messages_come_out_as_they_went_in_wherever_they_are_cut(messages: list[bytes], places: list[int]) -> None:
    wire = b"".join(prefix_of(len(message)) + message for message in messages)
    deframer, out, came = Deframer(LIMIT), [], 0
    for piece in cut(wire, places):
        out += map(deframer.unpacked, deframer.feed(piece))
        came += len(piece)
        assert sum(5 + len(message) for message in out) + deframer.pending_bytes == came
    assert out == messages
    assert deframer.is_empty


@given(MESSAGES, st.lists(st.integers(min_value=0), max_size=12), st.sampled_from(["gzip", "deflate"]))
def test_packed_messages_and_others_may_take_turns(messages: list[bytes], places: list[int], encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    wire = b""
    for number, message in enumerate(messages):
        sent = pack(message) if number % 2 else message
        wire += bytes([number % 2]) + len(sent).to_bytes(4) + sent
    deframer, out = Deframer(LIMIT, encoding.encode()), []
    for piece in cut(wire, places):
        out += map(deframer.unpacked, deframer.feed(piece))
    assert out == messages


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0), max_size=6), st.sampled_from([b"identity", b"gzip"]))
def test_noise_is_refused_or_waited_for(noise: bytes, places: list[int], encoding: bytes) -> None:
    deframer, out = Deframer(LIMIT, encoding), []
    try:
        for piece in cut(noise, places):
            out += map(deframer.unpacked, deframer.feed(piece))
    except (MessageTooLarge, UnreadableMessage):
        return
    assert all(len(message) <= LIMIT for message in out)
    assert deframer.pending_bytes <= LIMIT + 5


def test_a_message_of_the_limit_comes_and_one_more_byte_is_refused_when_it_is_announced() -> None:
    assert Deframer(LIMIT).feed(prefix_of(LIMIT) + bytes(LIMIT)) == (bytes(LIMIT),)
    with pytest.raises(MessageTooLarge):
        Deframer(LIMIT).feed(prefix_of(LIMIT + 1))


def unpack(deframer: Deframer, packed: bytes) -> bytes:
    (message,) = deframer.feed(b"\1" + len(packed).to_bytes(4) + packed)
    return deframer.unpacked(message)


@pytest.mark.parametrize("size", [LIMIT + 1, 10**8])
def test_what_unpacks_to_more_than_the_limit_is_refused(size: int) -> None:
    packed = gzip.compress(bytes(size))
    limit = max(LIMIT, len(packed))
    with pytest.raises(MessageTooLarge):
        unpack(Deframer(limit, b"gzip"), packed)


@pytest.mark.parametrize(
    "damage",
    [lambda it: it[:-1], lambda it: it + b"x", lambda it: b"x" + it, lambda _: b""],
    ids=["cut off", "more behind it", "more before it", "nothing"],
)
def test_what_does_not_unpack_is_refused(damage: object) -> None:
    packed = damage(gzip.compress(b"true"))  # type: ignore[operator]
    with pytest.raises(UnreadableMessage):
        unpack(Deframer(LIMIT, b"gzip"), packed)


def test_a_message_is_packed_only_in_a_call_that_says_how() -> None:
    with pytest.raises(UnreadableMessage):
        Deframer(LIMIT).feed(b"\1" + prefix_of(3)[1:] + b"abc")
    with pytest.raises(UnreadableMessage):
        Deframer(LIMIT, b"gzip").feed(b"\2" + prefix_of(3)[1:] + b"abc")
    with pytest.raises(UnknownEncoding):
        Deframer(LIMIT, b"zstd")


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"1H", 3600), (b"2M", 120), (b"99999999S", 99999999), (b"5m", 0.005), (b"7u", 7e-6)]
)
def test_a_timeout_is_a_number_and_a_unit(value: bytes, seconds: float) -> None:
    assert timeout_seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b"1S ", "١S".encode()])
def test_anything_else_is_no_timeout(value: bytes) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        timeout_seconds(value)


@given(st.text())
def test_the_text_of_a_status_is_plain_ascii_and_nothing_of_it_is_lost(text: str) -> None:
    encoded = status_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    from urllib.parse import unquote_to_bytes

    assert unquote_to_bytes(encoded) == text.encode(errors="replace")


def test_crumbs_take_what_they_are_long() -> None:
    deframer = Deframer(10**6)
    deframer.feed(prefix_of(10**5))
    for _ in range(50_000):
        deframer.feed(b"x")
    assert len(deframer._buffer) < 10
