"""One entry point per parser: ``fuzz_one(data)`` returns for whatever bytes, or raises because there is a bug.

The rule of every target: a parser answers or refuses with its own named exception, and what it answers is what an
independent look at the same bytes says. ``CORPUS`` holds true inputs to start from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond._protos.google.bytestream import bytestream_pb2
from millpond._protos.millpond.v1.keyed_message_pb2 import KeyedMessage
from millpond.config import sizes
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import IncompleteClosure, InvalidRequest, TooMuch
from millpond.core.names import ARTIFACT_URN, REFERENCE_URN, SOURCE_URN, Name, Namespace, asset_key, spoken, uri_of
from millpond.names import values
from millpond.names.binding import Binding
from millpond.names.memory import MemoryNames
from millpond.protocol import resource_names
from millpond.services import assets, closure, messages
from millpond.services.cache import Cache
from millpond.services.reach import Reach
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.memory import MemoryStore
from millpond.store.segments import format as segment_format
from millpond.store.uses import touch_log
from millpond.wire import layout

A, B = Digest.of(b"a"), Digest.of(b"b")


@dataclass(frozen=True)
class Target:
    """A parser, and true inputs of it."""

    fuzz_one: Callable[[bytes], None]
    corpus: tuple[bytes, ...]


# -- resource names ---------------------------------------------------------------------------------------------------


def fuzz_resource_names(data: bytes) -> None:
    name = data.decode("utf-8", "surrogateescape")
    for parse in (resource_names.parse_read, resource_names.parse_write):
        with contextlib.suppress(InvalidRequest):
            parsed = parse(name)
            assert parsed.instance == resource_names.instance_of(name)
            assert len(parsed.digest.key) == 33
            assert 0 <= parsed.digest.size_bytes < 2**63


RESOURCE_NAMES = (
    f"{A}",
    f"blobs/{A}",
    f"/blobs/sha256/{A}",
    f"team/a/compressed-blobs/zstd/{A}",
    f"team/a/uploads/5c0d3b7a/blobs/{A}/what/ever",
    f"uploads/5c0d3b7a/compressed-blobs/zstd/blake3/{A}",
)

# -- messages laid out by hand ----------------------------------------------------------------------------------------


def fuzz_write_request(data: bytes) -> None:
    try:
        request = bytestream_pb2.WriteRequest.FromString(data)
        expected = (request.resource_name, request.write_offset, request.finish_write, request.data)
    except DecodeError:
        expected = None
    try:
        parsed = layout.parse_write(data)
        found = (parsed.resource_name, parsed.write_offset, parsed.finish_write, bytes(parsed.data))
    except DecodeError:
        found = None
    assert found == expected


def fuzz_find_missing(data: bytes) -> None:
    try:
        request = re_pb2.FindMissingBlobsRequest.FromString(data)
        expected = (request.instance_name, request.digest_function, _pairs(request.blob_digests))
    except DecodeError:
        expected = None
    try:
        parsed = layout.parse_find_missing(data)
        found = (parsed.instance_name, parsed.digest_function, _pairs(parsed.digests))
        if parsed.encoded is not None:
            answer = re_pb2.FindMissingBlobsResponse.FromString(parsed.encoded)
            assert _pairs(answer.missing_blob_digests) == found[2]
    except DecodeError:
        found = None
    assert found == expected


def _pairs(digests: object) -> list[tuple[str, int]]:
    return [(digest.hash, digest.size_bytes) for digest in digests]  # type: ignore[attr-defined]


WRITE_REQUESTS = (
    bytestream_pb2.WriteRequest(resource_name=f"uploads/u/blobs/{A}", data=b"a" * 300, finish_write=True),
    bytestream_pb2.WriteRequest(write_offset=2**40, data=b"b"),
    bytestream_pb2.WriteRequest(write_offset=-1, finish_write=True),
)
_MESSAGES = [re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes * 5000) for digest in (A, B, A)]
FIND_MISSING = (
    re_pb2.FindMissingBlobsRequest(blob_digests=_MESSAGES),
    re_pb2.FindMissingBlobsRequest(instance_name="main", blob_digests=_MESSAGES, digest_function=1),
)

# -- BuildStream's older protocols ------------------------------------------------------------------------------------


def fuzz_update_artifact(data: bytes) -> None:
    """What is cut out of a request is the message in it; a closure of it is walked, or refused by name."""
    try:
        request = artifact_pb2.UpdateArtifactRequest.FromString(data)
    except DecodeError:
        return
    message = b"".join(KeyedMessage.FromString(data).message)
    assert artifact_pb2.Artifact.FromString(message) == request.artifact
    store = MemoryStore(1 << 20)
    store.put_many([(Digest.of(message), message), (Digest.of(_DIRECTORY), _DIRECTORY), (A, b"a")])
    binding = Binding(Digest.of(message), 1)
    key = ARTIFACT_URN + request.cache_key
    with contextlib.suppress(InvalidRequest, IncompleteClosure, TooMuch):
        found = closure.walk(store, Namespace.ASSET_BLOB, key, binding).digests
        assert set(found) <= {EMPTY, A, Digest.of(message), Digest.of(_DIRECTORY)}
    assert Digest.of(message) in set(Reach(store).of(Name("", Namespace.ASSET_BLOB, key), binding))


def fuzz_source(data: bytes) -> None:
    """A source that is bound says later what it said when it came."""
    store = MemoryStore(1 << 20)
    store.put_many([(Digest.of(_DIRECTORY), _DIRECTORY), (A, b"a")])
    cache = Cache(store, store, MemoryNames(), lambda: 1)
    with contextlib.suppress(InvalidRequest, DecodeError, IncompleteClosure, TooMuch):
        pending = messages.begin_source(Writer(cache, "", ""), "key", data)
        pending.bound.result()
        assets.finish([pending])
        assert messages.fetch_source(Reader(cache, ""), "key") == data


def fuzz_keys(data: bytes) -> None:
    """A key is a name of its kind that people call as the client does, or is refused."""
    key = data.decode("utf-8", "replace")
    for urn, kind in ((REFERENCE_URN, "ref"), (ARTIFACT_URN, "artifact"), (SOURCE_URN, "source")):
        with contextlib.suppress(InvalidRequest):
            name = Name("", Namespace.ASSET_DIRECTORY, asset_key(uri_of(urn, key)))
            assert spoken(name) == (kind, key)
            assert len(name.row) == 32


_DIRECTORY = re_pb2.Directory(files=[{"name": "a", "digest": {"hash": A.hash, "size_bytes": 1}}]).SerializeToString()
_FILES = {"hash": Digest.of(_DIRECTORY).hash, "size_bytes": len(_DIRECTORY)}
_ARTIFACT = artifact_pb2.Artifact(
    build_success=True, files=_FILES, buildtree=_FILES, public_data={"hash": A.hash, "size_bytes": 1}
)
UPDATE_ARTIFACT = (
    artifact_pb2.UpdateArtifactRequest(instance_name="main", cache_key="p/e/k", artifact=_ARTIFACT),
    artifact_pb2.UpdateArtifactRequest(
        artifact={"logs": [{"name": "log", "digest": {"hash": A.hash, "size_bytes": 1}}]}
    ),
)
SOURCES = (source_pb2.Source(files=_FILES), source_pb2.Source(version=1, files=_FILES))

# -- segments ---------------------------------------------------------------------------------------------------------

_HEADER = segment_format.SegmentHeader(7, 1_700_000_000_000, b"0123456789abcdef")


def _segment() -> bytes:
    segment = _HEADER.encode()
    records = []
    for content in (b"a", b"content of another blob", b""):
        digest = Digest.of(content)
        table = segment_format.checksum_table(content, _HEADER.seed)
        check = segment_format.table_checksum(table, _HEADER.seed)
        records.append(segment_format.Record(digest.key, len(segment), len(content), check))
        head = segment_format.record_header(digest.key, len(content), len(segment), _HEADER.seed)
        segment += head + content + table
    return segment + segment_format.footer(records, len(segment), _HEADER.seed)


SEGMENT = _segment()
_TRUE_RECORDS = {(Digest.of(content).key, len(content)) for content in (b"a", b"content of another blob", b"")}


def fuzz_segment_header(data: bytes) -> None:
    with contextlib.suppress(segment_format.Damaged):
        header = segment_format.SegmentHeader.decode(data)
        assert header.encode() == data[: segment_format.SEGMENT_HEADER_BYTES]


def fuzz_segment_records(data: bytes) -> None:
    """Whatever is damaged, a scan finds true records only: their checksums need the secret."""

    def read(at: int, size: int) -> bytes:
        return data[at : at + size]

    start = segment_format.SEGMENT_HEADER_BYTES
    for record in segment_format.scan(read, _HEADER, start=start, end=len(data), verify_data=True):
        assert (record.key, record.size_bytes) in _TRUE_RECORDS
        assert segment_format.digest_of(record).matches(
            data[record.offset + segment_format.RECORD_HEADER_BYTES :][: record.size_bytes]
        )
        assert record.end <= len(data)


def fuzz_segment_footer(data: bytes) -> None:
    with contextlib.suppress(segment_format.Damaged):
        begin = segment_format.footer_begin(data[-segment_format.FOOTER_END_BYTES :], _HEADER.seed)
        for record in segment_format.parse_footer(data[begin:], _HEADER):
            assert (record.key, record.size_bytes) in _TRUE_RECORDS
    with contextlib.suppress(segment_format.Damaged):
        segment_format.parse_footer(data, _HEADER)


# -- touch logs -------------------------------------------------------------------------------------------------------


def fuzz_touch_log(data: bytes) -> None:
    """What is read is a prefix of what would be written."""
    groups = list(touch_log.decode(data))
    assert data.startswith(b"".join(touch_log.encode(group.kind, group.time_ms, group.rows) for group in groups))


TOUCH_LOG = touch_log.encode(touch_log.Kind.LEASED, 1_700_000_000_000, [A.key, B.key]) + touch_log.encode(
    touch_log.Kind.NAME_USED, 1_700_000_000_001, [bytes(32)]
)

# -- names ------------------------------------------------------------------------------------------------------------

_NAME = Name("main", Namespace.ASSET_BLOB, "urn:x")
_BINDING = Binding(
    A,
    1_700_000_000_000,
    "key:abc",
    (A, B),
    (B,),
    1_800_000_000_000,
    5,
    foreign=True,
    message=b"m\xff",
    extra={"new": [1]},
)


def fuzz_names_values(data: bytes) -> None:
    """Damaged is damaged: a checksum stands before everything."""
    with contextlib.suppress(values.Damaged):
        assert values.entry_of(_NAME.row, data) == (_NAME, _BINDING)
    # And behind a checksum that is right, whatever the payload is.
    with contextlib.suppress(values.Damaged):
        values.entry_of(_NAME.row, values.seal(_NAME.row, data))
    with contextlib.suppress(values.Damaged):
        values.binding_of(_NAME.row, values.seal(_NAME.row, data))


def fuzz_binding(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        binding = Binding.decode(data)
        assert Binding.decode(binding.encode()) == binding


# -- texts of users ---------------------------------------------------------------------------------------------------


def fuzz_sizes(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        assert 1 <= sizes.parse_size(text) <= 2**63 - 1
    with contextlib.suppress(ValueError):
        quota = sizes.parse_quota(text)
        assert quota.bytes_of(10**12) >= 0
        assert str(quota)


def _encoded(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


TARGETS = {
    "resource_names": Target(fuzz_resource_names, _encoded(*RESOURCE_NAMES)),
    "write_request": Target(fuzz_write_request, tuple(one.SerializeToString() for one in WRITE_REQUESTS)),
    "find_missing": Target(fuzz_find_missing, tuple(one.SerializeToString() for one in FIND_MISSING)),
    "update_artifact": Target(fuzz_update_artifact, tuple(one.SerializeToString() for one in UPDATE_ARTIFACT)),
    "source": Target(fuzz_source, tuple(one.SerializeToString() for one in SOURCES)),
    "keys": Target(fuzz_keys, _encoded("project/element/0123abcd", "../../etc/passwd", "a\0b")),
    "segment_header": Target(fuzz_segment_header, (_HEADER.encode(),)),
    "segment_records": Target(fuzz_segment_records, (SEGMENT,)),
    "segment_footer": Target(fuzz_segment_footer, (SEGMENT, SEGMENT[-300:])),
    "touch_log": Target(fuzz_touch_log, (TOUCH_LOG,)),
    "names_values": Target(
        fuzz_names_values, (values.value_of(_NAME, _BINDING), b'["main","asset-blob","k"]\n' + _BINDING.encode())
    ),
    "binding": Target(fuzz_binding, (_BINDING.encode(), Binding(A, 1).encode())),
    "sizes": Target(fuzz_sizes, _encoded("50G", "50Gi", "1.5 TB", "80%", "50000000000", "9223372036854775807")),
}
