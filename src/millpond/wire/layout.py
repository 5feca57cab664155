"""Messages of the hot path, read and laid out as bytes by hand.

Through message objects every blob would be copied twice more and cost a few Python objects. Only what profiles showed
to matter is here; ``tests/property/test_layout.py`` holds each function against the generated classes.

Source: https://protobuf.dev/programming-guides/encoding: a field is a varint ``number << 3 | wire type``; wire type 0
is a varint, 2 a length and that many bytes.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import Digest
from millpond.store.interface import Bytes

_DATA_10 = b"\x52"  # field 10, length-delimited: ReadResponse.data, WriteRequest.data
_VARINTS = [bytes([n]) for n in range(0x80)] + [bytes([n & 0x7F | 0x80, n >> 7]) for n in range(0x80, 0x4000)]


def varint(number: int) -> bytes:
    """``number`` (not negative) as a protobuf varint."""
    if number < 0x4000:
        return _VARINTS[number]
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def digest(of: Digest) -> bytes:
    """An encoded ``Digest`` message."""
    hash_hex = of.key[1:].hex().encode()
    size = b"\x10" + varint(of.size_bytes) if of.size_bytes else b""
    return b"\x0a" + varint(len(hash_hex)) + hash_hex + size


class DigestList(NamedTuple):
    """A request that is a list of digests.

    ``encoded``: its digests as they came, which in a response have the same bytes; None where they had to be parsed the
    generated way. These are validated when they are asked for, because admission comes first (I7).
    """

    instance_name: str
    digest_function: int
    digests: list[Digest] | Sequence[re_pb2.Digest]
    encoded: bytes | None

    def validated(self) -> list[Digest]:
        """The digests.

        Raises:
            InvalidRequest: one is none.
        """
        return parse_digests(self.digests) if self.encoded is None else self.digests  # type: ignore[arg-type, return-value]


_HASH_FOLLOWS = b"\x0a\x40"  # field 1 of a Digest, 64 bytes long: a SHA256 hash in hex, which never contains these two
_HEX_CHARS = 64
_hash = operator.itemgetter(slice(_HEX_CHARS))
_after_hash = operator.itemgetter(slice(_HEX_CHARS, None))
_last_byte = operator.itemgetter(-1)


class _Sizes(dict[bytes, int]):
    """What stands between two hashes: a size, and the head of the next digest. Few differ, so they are remembered."""

    def __missing__(self, between: bytes) -> int:
        size, end = _varint_at(between, 1) if between[:1] == b"\x10" else (0, 0)
        if len(between) != end + 2 or between[end] != 0x12 or size >> 63:
            raise IndexError
        if len(self) > 100_000:
            self.clear()
        self[between] = size
        return size


_SIZES = _Sizes()


def parse_find_missing(message: bytes) -> DigestList:
    """A ``FindMissingBlobsRequest``.

    Raises:
        google.protobuf.message.DecodeError: not such a request.
    """
    cut = _cut(message, b"\x18\x01")
    if cut is not None:
        return cut
    request = re_pb2.FindMissingBlobsRequest.FromString(message)
    return DigestList(request.instance_name, request.digest_function, request.blob_digests, None)


def parse_batch_read(message: bytes) -> DigestList:
    """A ``BatchReadBlobsRequest``, but for the compressors that it would accept.

    Raises:
        google.protobuf.message.DecodeError: not such a request.
    """
    cut = _cut(message, b"\x20\x01")
    if cut is not None:
        return cut
    request = re_pb2.BatchReadBlobsRequest.FromString(message)
    return DigestList(request.instance_name, request.digest_function, request.digests, None)


def _cut(message: bytes, named_sha256: bytes) -> DigestList | None:
    """A request that is a list of digests, cut at its hashes instead of turned into a message object per digest.

    ``named_sha256`` is its ``digest_function`` field. None for whatever does not look as every protobuf library writes
    it: that goes the generated way.
    """
    if _HASH_FOLLOWS not in message:
        return None
    head, *rest = message.split(_HASH_FOLLOWS)
    begin, instance_name = _leading_name(head)
    if len(head) != begin + 2 or head[begin] != 0x12:
        return None
    last = rest[-1][_HEX_CHARS:]
    named = last.endswith(named_sha256)
    try:
        # As if one more digest followed the last one.
        rest[-1] = rest[-1][:_HEX_CHARS] + (last[:-2] if named else last) + b"\x12\x44"
        # A digest's length stands before the cut: two bytes, the hash, the size; a part: the hash, the size, two bytes.
        if list(map(_last_byte, [head, *rest[:-1]])) != list(map(len, rest)):
            return None
        sizes = list(map(_SIZES.__getitem__, map(_after_hash, rest)))
        digests = Digest.from_hashes(list(map(_hash, rest)), sizes)
    except (IndexError, ValueError):
        return None
    end = len(message) - 2 if named else len(message)
    return DigestList(instance_name, int(named), digests, message[begin:end])


def _leading_name(head: bytes) -> tuple[int, str]:
    """The ``instance_name`` with which a request begins, and where what follows it begins."""
    if len(head) < 2 or head[0] != 0x0A or head[1] > 0x7F:
        return 0, ""
    begin = 2 + head[1]
    try:
        return begin, head[2:begin].decode()
    except UnicodeDecodeError:
        return 0, ""  # the generated parser says what is wrong


def find_missing_response(missing: Sequence[Digest]) -> bytes:
    """A ``FindMissingBlobsResponse``."""
    parts: list[bytes] = []
    for blob in missing:
        encoded = digest(blob)
        parts += (b"\x12", varint(len(encoded)), encoded)
    return b"".join(parts)


class _Frames(dict[int, tuple[bytes, bytes]]):
    """What stands before a hash, and between it and the data, in an item of that size. Few sizes differ much."""

    def __missing__(self, size_bytes: int) -> tuple[bytes, bytes]:
        size = b"\x10" + varint(size_bytes) if size_bytes else b""
        data = b"\x12" + varint(size_bytes) if size_bytes else b""
        digest_length = len(_HASH_FOLLOWS) + _HEX_CHARS + len(size)
        before = b"\x0a" + varint(digest_length) + _HASH_FOLLOWS
        length = len(before) + _HEX_CHARS + len(size) + len(data) + size_bytes
        frame = b"\x0a" + varint(length) + before, size + data
        if len(self) > 100_000:
            self.clear()
        self[size_bytes] = frame
        return frame


_FRAMES = _Frames()


def batch_read_items(blobs: Sequence[Digest], contents: Iterable[Bytes]) -> list[Bytes]:
    """``BatchReadBlobsResponse.Response`` messages that carry data, as field 1 of the response: four parts for each."""
    hashes = b"".join([blob[0] for blob in blobs]).hex().encode()
    parts: list[Bytes] = []
    at = 2  # a key is a byte for the function, then the hash
    for blob, data in zip(blobs, contents, strict=True):
        before, between = _FRAMES[blob[1]]
        parts += (before, hashes[at : at + _HEX_CHARS], between, data)
        at += _HEX_CHARS + 2
    return parts


def read_response(data: Bytes) -> tuple[bytes, Bytes]:
    """A ``ReadResponse``, in two parts, so that the data is sent as it lies."""
    return _DATA_10 + varint(len(data)), data


class WriteMessage(NamedTuple):
    """What a ``WriteRequest`` says."""

    resource_name: str
    write_offset: int
    finish_write: bool
    data: Bytes


def parse_write(message: bytes) -> WriteMessage:
    """A ``WriteRequest``; its data is a view into ``message``.

    Messages have the four known fields, each once, data last or not; anything else goes the generated way.

    Raises:
        google.protobuf.message.DecodeError: not a ``WriteRequest``.
    """
    name, offset, finish, data = "", 0, False, memoryview(b"")
    at, end = 0, len(message)
    try:
        while at < end:
            tag = message[at]
            number, at = _varint_at(message, at + 1)
            if tag == 0x0A:
                name = message[at : at + number].decode()
                at += number
            elif tag == 0x10:
                offset = number if number < 1 << 63 else number - (1 << 64)
            elif tag == 0x18:
                finish = bool(number)
            elif tag == 0x52:
                data = memoryview(message)[at : at + number]
                at += number
            else:
                return _parse_write_generated(message)
    except (IndexError, UnicodeDecodeError):
        return _parse_write_generated(message)
    if at != end:
        return _parse_write_generated(message)
    return WriteMessage(name, offset, finish, data)


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            if number >> 64:
                raise IndexError  # what that means, the generated classes know
            return number, at
        shift += 7
        if shift > 63:
            raise IndexError


def _parse_write_generated(message: bytes) -> WriteMessage:
    request = bytestream_pb2.WriteRequest.FromString(message)
    return WriteMessage(request.resource_name, request.write_offset, request.finish_write, request.data)


def parse_digests(messages: Sequence[re_pb2.Digest]) -> list[Digest]:
    """Digest messages, validated.

    Raises:
        InvalidRequest: one is none.
    """
    return Digest.parse_many([(message.hash, message.size_bytes) for message in messages])
