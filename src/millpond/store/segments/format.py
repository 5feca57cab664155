"""The bytes of a segment: header, records, footer. No I/O.

::

    segment = header, record*, [footer]
    header  = magic, format version, digest function, number, time of creation, secret, checksum            (64 bytes)
    record  = magic, digest function, hash length, flags, size, its own offset, hash, checksum;   (64 bytes for SHA256)
              data; one checksum per MiB of data
    footer  = (hash, offset, size, checksum) per record; magic, count, where the footer begins, checksums

All integers are little-endian. All checksums are xxh3-64, seeded with the segment's secret: clients choose the data, and
whoever does not know the secret cannot write a blob that a rebuild would take for a record (64 random bits to guess).
A record says its own offset, so bytes that were copied to another place are not believed either. The rule: what does
not verify does not exist.
"""

import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from millpond.core import limits
from millpond.core.digest import Digest, DigestFunction
from millpond.store.interface import Bytes

FORMAT_VERSION = 1
"""Readers refuse a newer version; a change that older readers would misread raises it."""

_SEGMENT = struct.Struct("<8sHBxIQ16s16x")
_SEGMENT_MAGIC = b"MILLPOND"
_RECORD = struct.Struct("<4sBBHQQ")
_RECORD_MAGIC = b"blob"
_FOOTER_ENTRY = struct.Struct("<32sIQQ")
_FOOTER_PLACE = struct.Struct("<32s20s")
_FOOTER = struct.Struct("<8sIIQQ")
_FOOTER_MAGIC = b"MPFOOTER"
_U64 = struct.Struct("<Q")
_HASH_BYTES = 32

SEGMENT_HEADER_BYTES = _SEGMENT.size + _U64.size
RECORD_HEADER_BYTES = _RECORD.size + _HASH_BYTES + _U64.size
FOOTER_ENTRY_BYTES = _FOOTER_ENTRY.size
FOOTER_END_BYTES = _FOOTER.size + _U64.size
_HASH_AT = _RECORD.size

assert SEGMENT_HEADER_BYTES == 64
assert RECORD_HEADER_BYTES == 64


class Damaged(Exception):
    """Bytes that do not verify."""


class Newer(Damaged):
    """A segment of a format that this version does not know. Not ours to judge, and not to be removed."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Who a segment is. ``seed`` is what its checksums are seeded with."""

    number: int
    created_ms: int
    secret: bytes
    function: DigestFunction = DigestFunction.SHA256

    @classmethod
    def new(cls, number: int, now_ms: int) -> "SegmentHeader":
        """A header with a fresh secret."""
        return cls(number, now_ms, secrets.token_bytes(16))

    @property
    def seed(self) -> int:
        """The seed of this segment's checksums."""
        return _U64.unpack_from(self.secret)[0] or 1

    def encode(self) -> bytes:
        """64 bytes."""
        head = _SEGMENT.pack(_SEGMENT_MAGIC, FORMAT_VERSION, self.function, self.number, self.created_ms, self.secret)
        return head + _U64.pack(xxhash.xxh3_64_intdigest(head, self.seed))

    @classmethod
    def decode(cls, encoded: Bytes) -> "SegmentHeader":
        """The inverse of :meth:`encode`.

        Raises:
            Newer: written by a newer Millpond. Every format has its checksum here, or a flipped bit would pass for one.
            Damaged: not a segment.
        """
        if len(encoded) < SEGMENT_HEADER_BYTES:
            raise Damaged("the segment header is cut short")
        magic, version, function, number, created_ms, secret = _SEGMENT.unpack_from(encoded)
        header = cls(number, created_ms, secret)
        checksum = xxhash.xxh3_64_intdigest(bytes(encoded[: _SEGMENT.size]), header.seed)
        verifies = _U64.unpack_from(encoded, _SEGMENT.size)[0] == checksum
        if magic == _SEGMENT_MAGIC and version > FORMAT_VERSION and verifies:
            raise Newer(f"it has format {version}, this Millpond knows {FORMAT_VERSION}")
        if magic != _SEGMENT_MAGIC or version != FORMAT_VERSION or function != DigestFunction.SHA256:
            raise Damaged("not a segment of this format")
        if header.encode() != bytes(encoded[:SEGMENT_HEADER_BYTES]):
            raise Damaged("the segment header does not verify")
        return header


class Record(NamedTuple):
    """Where a blob lies in its segment. ``checksum``: of its data, or (above 1 MiB) of its checksum table."""

    key: bytes
    offset: int
    size_bytes: int
    checksum: int

    @property
    def end(self) -> int:
        """Offset of what follows it."""
        return self.offset + record_bytes(self.size_bytes)


def record_bytes(size_bytes: int) -> int:
    """The length of a record whose blob has ``size_bytes``."""
    return RECORD_HEADER_BYTES + size_bytes + table_bytes(size_bytes)


def table_bytes(size_bytes: int) -> int:
    """The length of the checksum table of a blob."""
    return 8 * -(-size_bytes // limits.CHUNK_BYTES)


def checksum(data: Bytes, seed: int) -> int:
    """The checksum of up to 1 MiB of data, of a table, or of a header."""
    value: int = xxhash.xxh3_64_intdigest(data, seed)
    return value


def checksum_table(data: Bytes, seed: int) -> bytes:
    """The checksums of ``data``, one per MiB."""
    if len(data) <= limits.CHUNK_BYTES:
        return _U64.pack(xxhash.xxh3_64_intdigest(data, seed)) if data else b""
    view = memoryview(data)
    return b"".join(
        _U64.pack(xxhash.xxh3_64_intdigest(view[at : at + limits.CHUNK_BYTES], seed))
        for at in range(0, len(data), limits.CHUNK_BYTES)
    )


def table_checksum(table: bytes, seed: int) -> int:
    """What an entry remembers of a table: the only checksum itself, or the checksum of many."""
    if len(table) <= 8:
        return _U64.unpack(table)[0] if table else 0
    return checksum(table, seed)


def record_header(key: bytes, size_bytes: int, offset: int, seed: int) -> bytes:
    """The header of a record at ``offset``."""
    head = _RECORD.pack(_RECORD_MAGIC, key[0], _HASH_BYTES, 0, size_bytes, offset) + key[1:]
    return head + _U64.pack(xxhash.xxh3_64_intdigest(head, seed))


size_and_hash = struct.Struct(f"<8xQ8x{_HASH_BYTES}s").unpack_from
"""``size_and_hash(buffer, at)``: whose record the header at ``at`` says it is; for loops over many of them."""


def names_blob(header: Bytes, key: bytes, size_bytes: int) -> bool:
    """Whether a record header is that of the blob ``key``: what every read of a blob asks first."""
    return header[_HASH_AT : _HASH_AT + _HASH_BYTES] == key[1:] and header[8:16] == _U64.pack(size_bytes)


def parse_record_header(header: Bytes, offset: int, seed: int) -> tuple[bytes, int]:
    """The (key, size) of a record header that stands at ``offset``.

    Raises:
        Damaged: it is none, or stands somewhere else than where it was written.
    """
    if len(header) < RECORD_HEADER_BYTES:
        raise Damaged("a record header is cut short")
    magic, function, hash_length, flags, size, written_at = _RECORD.unpack_from(header)
    key = bytes([function]) + bytes(header[_HASH_AT : _HASH_AT + _HASH_BYTES])
    if magic != _RECORD_MAGIC or hash_length != _HASH_BYTES or flags or written_at != offset:
        raise Damaged("not a record header")
    if record_header(key, size, offset, seed) != bytes(header[:RECORD_HEADER_BYTES]):
        raise Damaged("a record header does not verify")
    return key, size


def verify_chunk(data: Bytes, table: Bytes, index: int, seed: int) -> bool:
    """Whether ``data`` is the ``index``-th MiB of the blob whose checksum table is given."""
    wanted: int = _U64.unpack_from(table, 8 * index)[0]
    return wanted == xxhash.xxh3_64_intdigest(data, seed)


def footer(records: Sequence[Record], begin: int, seed: int) -> bytes:
    """The footer that follows the last record of a segment, at offset ``begin``."""
    entries = b"".join(map(footer_entry, records))
    return entries + _footer_end(entries, len(records), begin, seed)


def footer_entry(record: Record) -> bytes:
    """How a footer lists a record."""
    key, offset, size, value = record
    return _FOOTER_ENTRY.pack(key[1:], offset, size, value)


def _footer_end(entries: Bytes, count: int, begin: int, seed: int) -> bytes:
    end = _FOOTER.pack(_FOOTER_MAGIC, count, 0, begin, checksum(entries, seed))
    return end + _U64.pack(checksum(end, seed))


def footer_begin(end: Bytes, seed: int) -> int:
    """Where the footer begins, from the last ``FOOTER_END_BYTES`` of a segment.

    Raises:
        Damaged: the segment does not end with a footer.
    """
    if len(end) != FOOTER_END_BYTES or bytes(end[:8]) != _FOOTER_MAGIC:
        raise Damaged("no footer")
    if _U64.unpack_from(end, _FOOTER.size)[0] != checksum(bytes(end[: _FOOTER.size]), seed):
        raise Damaged("the footer does not verify")
    begin: int = _FOOTER.unpack_from(end)[3]
    return begin


def footer_entries(encoded: bytes, header: SegmentHeader) -> bytes:
    """The entries of a footer, as they stand there; ``encoded`` is all of it.

    Raises:
        Damaged: it does not verify.
    """
    end = encoded[-FOOTER_END_BYTES:]
    begin = footer_begin(end, header.seed)
    entries = encoded[:-FOOTER_END_BYTES]
    count, rest = divmod(len(entries), FOOTER_ENTRY_BYTES)
    if rest or end != _footer_end(entries, count, begin, header.seed):
        raise Damaged("the footer does not verify")
    return entries


def parse_footer(encoded: bytes, header: SegmentHeader) -> list[Record]:
    """The records that a footer lists; ``encoded`` is all of it.

    Raises:
        Damaged: it does not verify.
    """
    prefix = bytes([header.function])
    entries = footer_entries(encoded, header)
    return [Record(prefix + raw, *place) for raw, *place in _FOOTER_ENTRY.iter_unpack(entries)]


def footer_places(encoded: bytes, header: SegmentHeader) -> list[tuple[bytes, bytes]]:
    """The keys, and what an encoded ``Entry`` of the index says behind the segment's number.

    Raises:
        Damaged: it does not verify.
    """
    prefix = bytes([header.function])
    return [(prefix + raw, place) for raw, place in _FOOTER_PLACE.iter_unpack(footer_entries(encoded, header))]


def scan(
    read: Callable[[int, int], Bytes], header: SegmentHeader, *, start: int, end: int, verify_data: bool
) -> Iterator[Record]:
    """The records between two offsets, in order, that verify, up to the first header that does not.

    ``read(offset, size)`` returns at most ``size`` bytes. A header that verifies tells where the next one is, whatever
    became of its blob. It never looks for a record in the middle of another, because bytes there are a client's.
    """
    seed = header.seed
    while start + RECORD_HEADER_BYTES <= end:
        try:
            key, size = parse_record_header(read(start, RECORD_HEADER_BYTES), start, seed)
        except Damaged:
            return
        if start + record_bytes(size) > end:
            return
        table = bytes(read(start + RECORD_HEADER_BYTES + size, table_bytes(size)))
        if len(table) != table_bytes(size):
            return
        if not verify_data or _verifies(read, start, size, table, seed):
            yield Record(key, start, size, table_checksum(table, seed))
        start += record_bytes(size)


def _verifies(read: Callable[[int, int], Bytes], start: int, size: int, table: bytes, seed: int) -> bool:
    at = start + RECORD_HEADER_BYTES
    for index in range(len(table) // 8):
        length = min(limits.CHUNK_BYTES, size - index * limits.CHUNK_BYTES)
        data = read(at + index * limits.CHUNK_BYTES, length)
        if len(data) != length or not verify_chunk(data, table, index, seed):
            return False
    return True


def digest_of(record: Record) -> Digest:
    """The digest of a record's blob."""
    return Digest(record.key, record.size_bytes)
