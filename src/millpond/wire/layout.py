"""Messages of the hot path, read and laid out as bytes by hand.

Through message objects every blob would be copied twice more and cost a few Python objects. Only what profiles showed
to matter is here; ``tests/property/test_layout.py`` holds each function against the generated classes.

Source: https://protobuf.dev/programming-guides/encoding: a field is a varint ``number << 3 | wire type``; wire type 0
is a varint, 2 a length and that many bytes.
"""

from collections.abc import Sequence
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


def find_missing_response(missing: Sequence[Digest]) -> bytes:
    """A ``FindMissingBlobsResponse``."""
    parts: list[bytes] = []
    for blob in missing:
        encoded = digest(blob)
        parts += (b"\x12", varint(len(encoded)), encoded)
    return b"".join(parts)


def batch_read_item(blob: Digest, data: Bytes) -> tuple[bytes, Bytes]:
    """One ``BatchReadBlobsResponse.Response`` that carries data, as field 1 of the response: what precedes, the data."""
    encoded = digest(blob)
    head = b"\x0a" + varint(len(encoded)) + encoded
    if blob.size_bytes:
        head += b"\x12" + varint(len(data))
    return b"\x0a" + varint(len(head) + len(data)) + head, data


def read_response(data: Bytes) -> bytes:
    """A ``ReadResponse``."""
    return b"".join((_DATA_10, varint(len(data)), data))


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
            return number & (1 << 64) - 1, at
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
