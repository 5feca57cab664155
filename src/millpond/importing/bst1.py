"""The store of a ``bst-artifact-server`` of BuildStream 1.1.4 to 1.6.9.

``cas/refs/heads/PROJECT/ELEMENT/KEY`` holds an encoded ``Digest``, the root ``Directory`` of an artifact; the server sets
its time of change to now whenever it answers or binds it. Beside it lie the blobs, ``cas/objects``.
"""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.core.names import REFERENCE_URN, Namespace
from millpond.importing.interface import Entry, Left, OldName, Reason
from millpond.importing.objects import Objects
from millpond.importing.tree import Tree

OBJECTS = "cas/objects"
REFS = "cas/refs/heads"
_REF_BYTES = 4 * limits.KIB


class Bst1Store:
    """See the module; an :class:`~millpond.importing.interface.OldStore`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._objects = Objects(tree, OBJECTS)
        self.size_bytes = self._objects.size_bytes
        self.chunks = self._objects.chunks
        self.blobs = self._objects.listed

    def entries(self) -> Iterator[Entry]:
        """See :meth:`OldStore.entries`."""
        return listed(self._tree, REFS)

    def read(self, entry: Entry) -> OldName:
        """See :meth:`OldStore.read`."""
        return read_ref(self._tree, entry.path)

    def close(self) -> None:
        """See :meth:`OldStore.close`."""
        self._objects.close()
        self._tree.close()


def listed(tree: Tree, top: str) -> Iterator[Entry]:
    """Every file below ``top`` as a name that is still to be read."""
    for found in tree.files(top):
        yield Entry(f"{top}/{found.path}", found.changed_ms, found.trouble)


def read_ref(tree: Tree, path: str) -> OldName:
    """The ref in the file at ``path``.

    Raises:
        Left: there is none.
    """
    content = tree.read(path, _REF_BYTES)
    try:
        digest = digest_of(re_pb2.Digest.FromString(content))
    except DecodeError:
        raise Left(Reason.GARBAGE, "it is no digest") from None
    return OldName(REFERENCE_URN + path.removeprefix(f"{REFS}/"), Namespace.ASSET_DIRECTORY, digest)


def digest_of(message: re_pb2.Digest) -> Digest:
    """The digest that an old store speaks of.

    Raises:
        Left: it is none.
    """
    try:
        return Digest.parse(message.hash, message.size_bytes)
    except InvalidRequest as why:
        raise Left(Reason.GARBAGE, str(why)) from None
