"""Names in the store of buildbox-casd, which is behind BuildStream 2's share and behind every cache that it is run as.

``assets/objects/ab/cdef…`` holds a name each: an encoded ``google.protobuf.Any`` with the
``FetchBlobResponse`` or ``FetchDirectoryResponse`` that casd will give, so URI, qualifiers, expiry and digest are known,
and the references of the push are not. casd sets a name's time of change to now whenever it answers it.
"""

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.names import Namespace
from millpond.importing.interface import Left, OldName, Reason
from millpond.importing.store import digest_of
from millpond.importing.tree import Tree

ASSETS = "assets/objects"
_ASSET_BYTES = limits.URI_CHARS * (limits.QUALIFIERS + 2) * 4


def read_asset(tree: Tree, top: str, path: str) -> OldName:
    """The asset in the file at ``path`` below ``top``.

    Raises:
        Left: there is none.
    """
    content = tree.read(f"{top}/{path}", _ASSET_BYTES)
    try:
        kept = Any.FromString(content)
        blob, directory = asset_pb2.FetchBlobResponse(), asset_pb2.FetchDirectoryResponse()
        if kept.Unpack(blob):
            return _named(blob, Namespace.ASSET_BLOB, blob.blob_digest)
        if kept.Unpack(directory):
            return _named(directory, Namespace.ASSET_DIRECTORY, directory.root_directory_digest)
    except DecodeError:
        pass
    raise Left(Reason.GARBAGE, "it is no asset")


def _named(
    kept: asset_pb2.FetchBlobResponse | asset_pb2.FetchDirectoryResponse,
    namespace: Namespace,
    digest: re_pb2.Digest,
) -> OldName:
    return OldName(
        kept.uri,
        namespace,
        digest_of(digest),
        tuple([(qualifier.name, qualifier.value) for qualifier in kept.qualifiers]),
        _milliseconds(kept.expires_at) if kept.HasField("expires_at") else None,
    )


def _milliseconds(time: Timestamp) -> int:
    return time.seconds * 1000 + time.nanos // 1_000_000
