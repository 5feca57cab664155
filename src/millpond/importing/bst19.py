"""Names in the store of a ``bst-artifact-server`` of BuildStream 1.91 to 1.93.6, which keeps blobs with buildbox-casd.

``artifacts/refs/PROJECT/ELEMENT/KEY`` holds an encoded ``buildstream.v2.Artifact``, ``source_protos/…`` a
``buildstream.v2.Source``. Of each the time of change is the last use. The messages move as they are, with fields that we
do not know. Beside them may be what older clients have pushed (``bst1``), and what casd keeps for 1.93.5 and 1.93.6, which
do not have these two (``casd``).
"""

from google.protobuf.message import DecodeError

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.names import ARTIFACT_URN, SOURCE_URN, Namespace
from millpond.importing.interface import Left, OldName, Reason
from millpond.importing.store import digest_of
from millpond.importing.tree import Tree

ARTIFACTS = "artifacts/refs"
SOURCES = "source_protos"


def read_artifact(tree: Tree, top: str, path: str) -> OldName:
    """The artifact in the file at ``path`` below ``top``.

    Raises:
        Left: there is none.
    """
    message = tree.read(f"{top}/{path}", limits.ARTIFACT_MESSAGE_BYTES)
    try:
        artifact = artifact_pb2.Artifact.FromString(message)
    except DecodeError:
        raise Left(Reason.GARBAGE, "it is no artifact") from None
    if not artifact.HasField("files"):  # an empty file, for one
        raise Left(Reason.GARBAGE, "it is an artifact without files")
    return OldName(ARTIFACT_URN + path, Namespace.ASSET_BLOB, Digest.of(message), message=message)


def read_source(tree: Tree, top: str, path: str) -> OldName:
    """The source in the file at ``path`` below ``top``.

    Raises:
        Left: there is none.
    """
    message = tree.read(f"{top}/{path}", limits.SOURCE_MESSAGE_BYTES)
    try:
        source = source_pb2.Source.FromString(message)
    except DecodeError:
        raise Left(Reason.GARBAGE, "it is no source") from None
    return OldName(SOURCE_URN + path, Namespace.ASSET_DIRECTORY, digest_of(source.files), message=message)
