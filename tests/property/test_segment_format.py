"""Segments: whatever happens to their bytes, only true digests are listed, and only right bytes are served.

A client chooses the data and knows this format. What it does not know is the segment's secret.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millpond.core.digest import Digest, DigestFunction
from millpond.store.index import Index
from millpond.store.segments.files import SegmentFile, SegmentFiles, segment_name
from millpond.store.segments.format import (
    FOOTER_END_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Damaged,
    Record,
    SegmentHeader,
    checksum_table,
    digest_of,
    footer,
    footer_begin,
    parse_footer,
    parse_record_header,
    record_bytes,
    record_header,
    scan,
    table_checksum,
)
from millpond.store.segments.lookup import SegmentLookup
from millpond.store.segments.rebuild import read_records, rebuild

NUMBER = 7
SECRET = bytes(range(16))
OTHER_SECRET = bytes(16)
HEADER = SegmentHeader(NUMBER, 1_700_000_000_000, SECRET)

Laid = tuple[bytearray, list[Record]]


def lay_out(blobs: list[bytes], header: SegmentHeader = HEADER, *, begin: int = 0, sealed: bool = False) -> Laid:
    """A segment that stands ``begin`` bytes into a file."""
    content = bytearray(header.encode())
    records = []
    for data in blobs:
        table = checksum_table(data, header.seed)
        at = begin + len(content)
        key = Digest.of(data).key
        records.append(Record(key, at, len(data), table_checksum(table, header.seed)))
        content += record_header(key, len(data), at, header.seed) + data + table
    if sealed:
        content += footer(records, begin + len(content), header.seed)
    return content, records


def forge(payload: bytes, seed_bytes: bytes, *, at: int, sealed: bool) -> bytes:
    """A blob whose content is a segment full of lies about ``payload``, right in all but the secret."""
    header = SegmentHeader(NUMBER, HEADER.created_ms, seed_bytes)
    lie = Digest.of(b"what the forger wants to plant").key
    table = checksum_table(payload, header.seed)
    record = record_header(lie, len(payload), at, header.seed) + payload + table
    listed = [Record(lie, at, len(payload), table_checksum(table, header.seed))]
    return record + (footer(listed, at + len(record), header.seed) if sealed else b"")


@st.composite
def forgeries(draw: st.DrawFn) -> Callable[[int], bytes]:
    """Blobs that look like records and footers of this very segment, their offsets right wherever they come to lie."""
    payload = draw(st.binary(min_size=1, max_size=40))
    secret = draw(st.sampled_from([OTHER_SECRET, b"\xff" * 16, SECRET[::-1]]))
    sealed = draw(st.booleans())
    return lambda at: forge(payload, secret, at=at, sealed=sealed)


contents = st.lists(st.binary(max_size=300) | forgeries(), max_size=8)


def blobs_of(drawn: list[bytes | Callable[[int], bytes]]) -> list[bytes]:
    blobs: list[bytes] = []
    at = SEGMENT_HEADER_BYTES
    for one in drawn:
        data = one if isinstance(one, bytes) else one(at + RECORD_HEADER_BYTES)
        blobs.append(data)
        at += record_bytes(len(data))
    return blobs


damages = st.lists(
    st.tuples(st.just("flip"), st.integers(0, 1 << 20), st.integers(0, 7))
    | st.tuples(st.just("cut"), st.integers(0, 1 << 20), st.just(0))
    | st.tuples(st.just("splice"), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
    | st.tuples(st.just("insert"), st.integers(0, 1 << 20), st.integers(1, 200))
    | st.tuples(st.just("drop"), st.integers(0, 1 << 20), st.integers(1, 200)),
    max_size=4,
)


def harm(content: bytearray, damage: list[tuple[str, int, int]], *, spare: int = SEGMENT_HEADER_BYTES) -> None:
    """Damage everything but the first ``spare`` bytes."""
    for kind, where, what in damage:
        if len(content) <= spare:
            return
        at = spare + where % (len(content) - spare)
        if kind == "flip":
            content[at] ^= 1 << what
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + what]
        elif kind == "insert":
            content[at:at] = bytes(what)
        else:  # bytes of this segment at another place of it
            begin = what % len(content)
            piece = content[begin : begin + 200]
            content[at : at + len(piece)] = piece


def scanned(content: bytearray, *, verify_data: bool = True) -> list[Record]:
    return list(
        scan(
            lambda at, size: bytes(content[at : at + size]),
            HEADER,
            start=SEGMENT_HEADER_BYTES,
            end=len(content),
            verify_data=verify_data,
        )
    )


def data_of(content: bytes | bytearray, record: Record) -> bytes:
    at = record.offset + RECORD_HEADER_BYTES
    return bytes(content[at : at + record.size_bytes])


@settings(deadline=None)
@given(contents)
def test_a_scan_finds_what_was_laid_out(drawn: list[bytes | Callable[[int], bytes]]) -> None:
    blobs = blobs_of(drawn)
    content, records = lay_out(blobs)
    assert scanned(content) == records == scanned(content, verify_data=False)
    assert [data_of(content, record) for record in records] == blobs
    assert [digest_of(record) for record in records] == [Digest.of(data) for data in blobs]


@settings(deadline=None)
@given(contents, damages)
def test_a_scan_of_a_damaged_segment_finds_only_what_is_true(
    drawn: list[bytes | Callable[[int], bytes]], damage: list[tuple[str, int, int]]
) -> None:
    content, _ = lay_out(blobs_of(drawn), sealed=True)
    harm(content, damage)
    for record in scanned(content):
        assert digest_of(record).matches(data_of(content, record))


@settings(deadline=None)
@given(contents, st.data())
def test_a_footer_says_what_is_there_or_nothing(
    drawn: list[bytes | Callable[[int], bytes]], data: st.DataObject
) -> None:
    content, records = lay_out(blobs_of(drawn), sealed=True)
    begin = footer_begin(content[-FOOTER_END_BYTES:], HEADER.seed)
    assert parse_footer(bytes(content[begin:]), HEADER) == records
    harmed = bytearray(content[begin:])
    harm(harmed, data.draw(damages), spare=0)
    try:
        found = parse_footer(bytes(harmed), HEADER)
    except Damaged:
        return
    assert found == records


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_nothing_else_is_a_record_header(garbage: bytes, offset: int) -> None:
    try:
        parse_record_header(garbage, offset, HEADER.seed)
    except Damaged:
        return
    raise AssertionError("64 random bits were guessed")


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_nothing_else_is_a_segment_header(garbage: bytes) -> None:
    for encoded in (garbage, HEADER.encode()[: len(garbage)], HEADER.encode()[:50] + garbage[:14]):
        try:
            assert SegmentHeader.decode(encoded).encode() == encoded[:64]
        except Damaged:
            continue


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16))
def test_a_segment_header_is_read_as_written(number: int, created_ms: int, secret: bytes) -> None:
    header = SegmentHeader(number, created_ms, secret, DigestFunction.SHA256)
    assert SegmentHeader.decode(header.encode() + b"more") == header


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(contents, damages, st.booleans()), min_size=1, max_size=3))
def test_a_rebuilt_index_serves_right_bytes_only(
    drawn: list[tuple[list[bytes | Callable[[int], bytes]], list[tuple[str, int, int]], bool]],
) -> None:
    with tempfile.TemporaryDirectory() as place:
        segments = Path(place, "segments")
        segments.mkdir()
        stored: dict[Digest, bytes] = {}
        for number, (contents_of_one, damage, sealed) in enumerate(drawn, NUMBER):
            header = SegmentHeader(number, HEADER.created_ms, SECRET)
            blobs = blobs_of(contents_of_one)
            content, _ = lay_out(blobs, header, sealed=sealed)
            stored |= {Digest.of(data): data for data in blobs}
            harm(content, damage, spare=0 if len(damage) == 3 else SEGMENT_HEADER_BYTES)
            (segments / segment_name(number)).write_bytes(content)
        os.mkdir(Path(place, "index"))
        index = Index(str(Path(place, "index")))
        try:
            rebuild(index, str(segments))
            lost: list[Digest] = []
            lookup = SegmentLookup(index, SegmentFiles(str(segments)), lambda digest, _: lost.append(digest))
            with index.reading() as txn:
                listed = dict(txn.cursor(index.blobs))
            true_keys = {digest.key for digest in stored}
            assert set(listed) <= true_keys
            for digest, data in zip(stored, lookup.read_many(list(stored), wait=True), strict=True):
                assert data is None or bytes(data) == stored[digest]
            with index.reading() as txn:
                rows = dict(index.all_segments(txn))
            for number, row in rows.items():
                assert read_records(SegmentFile(str(segments / segment_name(number)), number))[1] == row.end
        finally:
            index.close()
