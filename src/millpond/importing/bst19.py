"""The store of a ``bst-artifact-server`` of BuildStream 1.91 to 1.93.6, which keeps blobs with buildbox-casd.

``artifacts/refs/PROJECT/ELEMENT/KEY`` holds an encoded ``buildstream.v2.Artifact``, ``source_protos/…`` a
``buildstream.v2.Source``, ``cas/refs/heads/…`` what older clients have pushed (``bst1``), and ``assets/objects`` what
casd keeps for 1.93.5 and 1.93.6, which do not have the first two (``casd``). Of each the time of change is the last use. The messages move as
they are, with fields that we do not know.
"""

from collections.abc import Iterator

from google.protobuf.message import DecodeError

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.names import ARTIFACT_URN, SOURCE_URN, Namespace
from millpond.importing.bst1 import OBJECTS, REFS, digest_of, listed, read_ref
from millpond.importing.casd import ASSETS, read_asset
from millpond.importing.interface import Entry, Left, OldName, Reason
from millpond.importing.objects import Objects
from millpond.importing.tree import Tree

ARTIFACTS = "artifacts/refs"
SOURCES = "source_protos"


class Bst19Store:
    """See the module; an :class:`~millpond.importing.interface.OldStore`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._objects = Objects(tree, OBJECTS)
        self.size_bytes = self._objects.size_bytes
        self.chunks = self._objects.chunks
        self.blobs = self._objects.listed

    def entries(self) -> Iterator[Entry]:
        """See :meth:`OldStore.entries`."""
        for top in (ARTIFACTS, SOURCES, REFS, ASSETS):
            yield from listed(self._tree, top)

    def read(self, entry: Entry) -> OldName:
        """See :meth:`OldStore.read`."""
        if entry.path.startswith(f"{REFS}/"):
            return read_ref(self._tree, entry.path)
        if entry.path.startswith(f"{ASSETS}/"):
            return read_asset(self._tree, entry.path)
        if entry.path.startswith(f"{ARTIFACTS}/"):
            return self._artifact(entry.path)
        return self._source(entry.path)

    def _artifact(self, path: str) -> OldName:
        message = self._tree.read(path, limits.ARTIFACT_MESSAGE_BYTES)
        try:
            artifact = artifact_pb2.Artifact.FromString(message)
        except DecodeError:
            raise Left(Reason.GARBAGE, "it is no artifact") from None
        if not artifact.HasField("files"):  # which an empty file is
            raise Left(Reason.GARBAGE, "it is an artifact without files")
        uri = ARTIFACT_URN + path.removeprefix(f"{ARTIFACTS}/")
        return OldName(uri, Namespace.ASSET_BLOB, Digest.of(message), message=message)

    def _source(self, path: str) -> OldName:
        message = self._tree.read(path, limits.SOURCE_MESSAGE_BYTES)
        try:
            source = source_pb2.Source.FromString(message)
        except DecodeError:
            raise Left(Reason.GARBAGE, "it is no source") from None
        uri = SOURCE_URN + path.removeprefix(f"{SOURCES}/")
        return OldName(uri, Namespace.ASSET_DIRECTORY, digest_of(source.files), message=message)

    def close(self) -> None:
        """See :meth:`OldStore.close`."""
        self._objects.close()
        self._tree.close()
