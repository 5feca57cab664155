"""Requests laid out as bytes and answers read field by field, without generated classes.

The judge shares no code with the judged: these few messages are written down from the public definitions
(``remote_execution.proto``, ``remote_asset.proto``, ``bytestream.proto``; the wire format is
https://protobuf.dev/programming-guides/encoding/). Names of fields stand beside their numbers.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage"
GET_CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
FIND_MISSING_BLOBS = f"{_CAS}/FindMissingBlobs"
BATCH_UPDATE_BLOBS = f"{_CAS}/BatchUpdateBlobs"
BATCH_READ_BLOBS = f"{_CAS}/BatchReadBlobs"
READ = "/google.bytestream.ByteStream/Read"
WRITE = "/google.bytestream.ByteStream/Write"
PUSH_BLOB = "/build.bazel.remote.asset.v1.Push/PushBlob"
PUSH_DIRECTORY = "/build.bazel.remote.asset.v1.Push/PushDirectory"
FETCH_BLOB = "/build.bazel.remote.asset.v1.Fetch/FetchBlob"
FETCH_DIRECTORY = "/build.bazel.remote.asset.v1.Fetch/FetchDirectory"

# What a job of BuildStream 1.6.9 asks a cache that it may push to, each with an empty request, before it begins its work; and the
# answers that it goes on with. Who has no Remote Asset services says UNIMPLEMENTED where the others say INVALID_ARGUMENT.
PROBES = {
    GET_CAPABILITIES: {"OK"},
    BATCH_READ_BLOBS: {"OK"},
    FETCH_DIRECTORY: {"INVALID_ARGUMENT", "UNIMPLEMENTED"},
    BATCH_UPDATE_BLOBS: {"OK"},
    PUSH_DIRECTORY: {"INVALID_ARGUMENT", "UNIMPLEMENTED"},
}

_VARINT, _LENGTH_DELIMITED = 0, 2
_TRUE = 1


class UnexpectedAnswer(Exception):
    """A server answered something else than what was stored; its numbers would mean nothing."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 in lower-case hex, and the number of bytes that it stands for."""

    hash: str
    size_bytes: int

    @classmethod
    def of(cls, data: bytes) -> Digest:
        return cls(hashlib.sha256(data).hexdigest(), len(data))

    def encoded(self) -> bytes:
        # Digest: hash = 1, size_bytes = 2; proto3 leaves a zero out.
        return _bytes_field(1, self.hash.encode()) + _int_field(2, self.size_bytes)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def find_missing_blobs(digests: Iterable[Digest]) -> bytes:
    # FindMissingBlobsRequest: blob_digests = 2
    return b"".join(_bytes_field(2, digest.encoded()) for digest in digests)


def batch_update_item(digest: Digest, data: bytes) -> bytes:
    # BatchUpdateBlobsRequest: requests = 2 (digest = 1, data = 2)
    return _bytes_field(2, _bytes_field(1, digest.encoded()) + _bytes_field(2, data))


def batch_read_blobs(digests: Iterable[Digest]) -> bytes:
    # BatchReadBlobsRequest: digests = 2
    return b"".join(_bytes_field(2, digest.encoded()) for digest in digests)


def read(digest: Digest) -> bytes:
    # ReadRequest: resource_name = 1
    return _bytes_field(1, f"blobs/{digest.hash}/{digest.size_bytes}".encode())


def write(digest: Digest, data: bytes, *, chunk_bytes: int) -> list[bytes]:
    """All messages of one upload: the name in the first one only, as the definition allows."""
    name = f"uploads/{uuid.uuid4()}/blobs/{digest.hash}/{digest.size_bytes}".encode()
    messages = []
    for offset in range(0, len(data), chunk_bytes):
        # WriteRequest: resource_name = 1, write_offset = 2, finish_write = 3, data = 10
        head = _bytes_field(1, name) if offset == 0 else _int_field(2, offset)
        last = _int_field(3, _TRUE) if offset + chunk_bytes >= len(data) else b""
        messages.append(head + last + _bytes_field(10, data[offset : offset + chunk_bytes]))
    return messages


def push_blob(uri: str, digest: Digest, references: Iterable[Digest]) -> bytes:
    # PushBlobRequest: uris = 2, blob_digest = 5, references_blobs = 6
    return (
        _bytes_field(2, uri.encode())
        + _bytes_field(5, digest.encoded())
        + b"".join(_bytes_field(6, reference.encoded()) for reference in references)
    )


def fetch_blob(uri: str) -> bytes:
    # FetchBlobRequest: uris = 4
    return _bytes_field(4, uri.encode())


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values, in the order of the message."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        if key & 7 == _VARINT:
            number, position = _read_varint(message, position)
            yield key >> 3, number
        elif key & 7 == _LENGTH_DELIMITED:
            length, position = _read_varint(message, position)
            yield key >> 3, message[position : position + length]
            position += length
        else:
            raise UnexpectedAnswer(f"a field of wire type {key & 7}, which no message used here has")


def _message(message: bytes, number: int) -> bytes:
    """The sub-message or bytes ``number``; empty when it is absent."""
    return b"".join(value for field, value in _fields(message) if field == number and isinstance(value, bytes))


def _int(message: bytes, number: int) -> int:
    return next((value for field, value in _fields(message) if field == number and isinstance(value, int)), 0)


def _parse_digest(message: bytes) -> Digest:
    return Digest(_message(message, 1).decode(), _int(message, 2))


def _require_ok(status: bytes, what: str) -> None:
    # google.rpc.Status: code = 1, message = 2
    if code := _int(status, 1):
        raise UnexpectedAnswer(f"{what}: status {code} ({_message(status, 2).decode()})")


def require_probed(codes: Iterable[str]) -> None:
    """The codes of one opening's probes, in their order."""
    for (method, expected), code in zip(PROBES.items(), codes, strict=True):
        if code not in expected:
            raise UnexpectedAnswer(f"{method} with an empty request was answered {code}")


def require_missing(answer: bytes, expected: int) -> None:
    """FindMissingBlobsResponse: missing_blob_digests = 2."""
    missing = sum(1 for field, _ in _fields(answer) if field == 2)
    if missing != expected:
        raise UnexpectedAnswer(f"FindMissingBlobs reported {missing} blobs missing where {expected} are")


def require_updated(answers: Iterable[bytes], expected: int) -> None:
    """BatchUpdateBlobsResponse: responses = 1 (digest = 1, status = 2)."""
    updated = 0
    for answer in answers:
        for field, item in _fields(answer):
            if field == 1 and isinstance(item, bytes):
                _require_ok(_message(item, 2), "BatchUpdateBlobs")
                updated += 1
    if updated != expected:
        raise UnexpectedAnswer(f"BatchUpdateBlobs acknowledged {updated} blobs of {expected}")


def require_batches(answers: Iterable[bytes], expected: int) -> None:
    """BatchReadBlobsResponse: responses = 1 (digest = 1, data = 2, status = 3); every blob must hash to its digest."""
    read_back = 0
    for answer in answers:
        for field, item in _fields(answer):
            if field != 1 or not isinstance(item, bytes):
                continue
            _require_ok(_message(item, 3), "BatchReadBlobs")
            if Digest.of(_message(item, 2)) != _parse_digest(_message(item, 1)):
                raise UnexpectedAnswer("BatchReadBlobs returned bytes that are not the blob")
            read_back += 1
    if read_back != expected:
        raise UnexpectedAnswer(f"BatchReadBlobs returned {read_back} blobs of {expected}")


def require_stream(answer: Iterable[bytes], digest: Digest) -> None:
    """ReadResponse: data = 10."""
    if Digest.of(b"".join(_message(message, 10) for message in answer)) != digest:
        raise UnexpectedAnswer("ByteStream.Read returned bytes that are not the blob")


def require_at_least(received_bytes: int, digest: Digest) -> None:
    """The messages of a stream hold the blob and a few bytes of framing each."""
    if received_bytes < digest.size_bytes:
        raise UnexpectedAnswer(f"ByteStream.Read returned {received_bytes} bytes of {digest.size_bytes}")


def require_committed(answer: bytes, digest: Digest) -> None:
    """WriteResponse: committed_size = 1."""
    if _int(answer, 1) != digest.size_bytes:
        raise UnexpectedAnswer(f"ByteStream.Write committed {_int(answer, 1)} bytes of {digest.size_bytes}")


def require_asset(answer: bytes, digest: Digest) -> None:
    """FetchBlobResponse: status = 1, blob_digest = 5."""
    _require_ok(_message(answer, 1), "FetchBlob")
    if _parse_digest(_message(answer, 5)) != digest:
        raise UnexpectedAnswer("FetchBlob returned another digest than the one pushed")
