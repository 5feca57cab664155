"""Every RPC of this server in one table: its shape, who may call it, and what answers it.

The rule: what is not in the table does not exist, but for health and reflection, which come with gRPC; the contract
tests walk the table and fail for an RPC whose access they have not tried.
"""

from typing import Any

from millpond.wire.artifacts import SERVICE as ARTIFACTS
from millpond.wire.artifacts import ArtifactServicer
from millpond.wire.bytestream import SERVICE as BYTESTREAM
from millpond.wire.bytestream import ByteStreamServicer
from millpond.wire.calling import Caller
from millpond.wire.capabilities import BST_SERVICE as BST_CAPABILITIES
from millpond.wire.capabilities import SERVICE as CAPABILITIES
from millpond.wire.capabilities import BuildStreamCapabilitiesServicer, CapabilitiesServicer
from millpond.wire.cas import SERVICE as CAS
from millpond.wire.cas import ContentAddressableStorageServicer
from millpond.wire.gate import Gate
from millpond.wire.references import SERVICE as REFERENCES
from millpond.wire.references import ReferenceStorageServicer
from millpond.wire.remote_asset import FETCH, PUSH, FetchServicer, PushServicer
from millpond.wire.rpc import Access, Answer, Rpc, Stream, streaming
from millpond.wire.sources import SERVICE as SOURCES
from millpond.wire.sources import SourceServicer


def rpcs(gate: Gate, caller: Caller, *, index_only: bool) -> list[Rpc]:
    """The RPCs that are served; an index has no blobs and serves none."""
    table = _capabilities(gate) + _assets(gate, caller) + _older_names(gate, caller)
    if not index_only:
        table += _storage(gate, caller)
    return table


def _capabilities(gate: Gate) -> list[Rpc]:
    servicer = CapabilitiesServicer(gate)
    return [_unary(CAPABILITIES, "GetCapabilities", Access.PULL, servicer.get_capabilities)]


def _assets(gate: Gate, caller: Caller) -> list[Rpc]:
    fetch, push = FetchServicer(gate, caller), PushServicer(gate, caller)
    return [
        _unary(FETCH, "FetchBlob", Access.PULL, fetch.fetch_blob),
        _unary(FETCH, "FetchDirectory", Access.PULL, fetch.fetch_directory),
        _unary(PUSH, "PushBlob", Access.PUSH, push.push_blob),
        _unary(PUSH, "PushDirectory", Access.PUSH, push.push_directory),
    ]


def _older_names(gate: Gate, caller: Caller) -> list[Rpc]:
    """Names as BuildStream kept them before it used the Remote Asset API."""
    references, capabilities = ReferenceStorageServicer(gate, caller), BuildStreamCapabilitiesServicer(gate)
    artifacts, sources = ArtifactServicer(gate, caller), SourceServicer(gate, caller)
    return [
        _unary(REFERENCES, "GetReference", Access.PULL, references.get_reference),
        _unary(REFERENCES, "UpdateReference", Access.PUSH, references.update_reference),
        _unary(REFERENCES, "Status", Access.PULL, references.status),
        _unary(BST_CAPABILITIES, "GetCapabilities", Access.PULL, capabilities.get_capabilities),
        _unary(ARTIFACTS, "GetArtifact", Access.PULL, artifacts.get_artifact),
        _unary(ARTIFACTS, "UpdateArtifact", Access.PUSH, artifacts.update_artifact),
        _unary(SOURCES, "GetSource", Access.PULL, sources.get_source),
        _unary(SOURCES, "UpdateSource", Access.PUSH, sources.update_source),
    ]


def _storage(gate: Gate, caller: Caller) -> list[Rpc]:
    cas, stream = ContentAddressableStorageServicer(gate, caller), ByteStreamServicer(gate, caller)
    return [
        _unary(CAS, "FindMissingBlobs", Access.PULL, cas.find_missing_blobs),
        _unary(CAS, "BatchUpdateBlobs", Access.PUSH, cas.batch_update_blobs),
        _unary(CAS, "BatchReadBlobs", Access.PULL, cas.batch_read_blobs),
        _stream(CAS, "GetTree", Access.PULL, cas.get_tree),
        _unary(CAS, "SplitBlob", Access.PULL, cas.split_blob),
        _unary(CAS, "SpliceBlob", Access.PUSH, cas.splice_blob),
        _stream(BYTESTREAM, "Read", Access.PULL, stream.read),
        Rpc(BYTESTREAM.full_name, "Write", Access.PUSH, stream.write, reads=True),
        _unary(BYTESTREAM, "QueryWriteStatus", Access.PUSH, stream.query_write_status),
    ]


def _unary(service: Any, method: str, access: Access, handler: Answer) -> Rpc:
    return Rpc(service.full_name, method, access, handler)


def _stream(service: Any, method: str, access: Access, handler: Stream) -> Rpc:
    return Rpc(service.full_name, method, access, streaming(handler))
