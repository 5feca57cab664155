"""The store of buildbox-casd, which is behind BuildStream 2's share and behind every cache that it is run as.

``cas/objects`` holds the blobs. ``assets/objects/ab/cdef…`` holds a name each: an encoded ``google.protobuf.Any`` with the
``FetchBlobResponse`` or ``FetchDirectoryResponse`` that casd will give, so URI, qualifiers, expiry and digest are known,
and the references of the push are not. casd sets a name's time of change to now whenever it answers it.
"""

from collections.abc import Iterator

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.names import Namespace
from millpond.importing.bst1 import OBJECTS, digest_of, listed
from millpond.importing.interface import Entry, Left, OldName, Reason
from millpond.importing.objects import Objects
from millpond.importing.tree import Tree

ASSETS = "assets/objects"
_ASSET_BYTES = limits.URI_CHARS * (limits.QUALIFIERS + 2) * 4


class CasdStore:
    """See the module; an :class:`~millpond.importing.interface.OldStore`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._objects = Objects(tree, OBJECTS)
        self.size_bytes = self._objects.size_bytes
        self.chunks = self._objects.chunks
        self.blobs = self._objects.listed

    def entries(self) -> Iterator[Entry]:
        """See :meth:`OldStore.entries`."""
        return listed(self._tree, ASSETS)

    def read(self, entry: Entry) -> OldName:
        """See :meth:`OldStore.read`."""
        return read_asset(self._tree, entry.path)

    def close(self) -> None:
        """See :meth:`OldStore.close`."""
        self._objects.close()
        self._tree.close()


def read_asset(tree: Tree, path: str) -> OldName:
    """The asset in the file at ``path``.

    Raises:
        Left: there is none.
    """
    content = tree.read(path, _ASSET_BYTES)
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
