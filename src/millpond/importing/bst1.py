"""Names in the store of a ``bst-artifact-server`` of BuildStream 1.1.4 to 1.6.9.

``cas/refs/heads/PROJECT/ELEMENT/KEY`` holds an encoded ``Digest``, the root ``Directory`` of an artifact; the server sets
its time of change to now whenever it answers or binds it.
"""

from google.protobuf.message import DecodeError

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.names import REFERENCE_URN, Namespace
from millpond.importing.interface import Left, OldName, Reason
from millpond.importing.store import digest_of
from millpond.importing.tree import Tree

REFS = "cas/refs/heads"
_REF_BYTES = 4 * limits.KIB


def read_ref(tree: Tree, top: str, path: str) -> OldName:
    """The ref in the file at ``path`` below ``top``.

    Raises:
        Left: there is none.
    """
    content = tree.read(f"{top}/{path}", _REF_BYTES)
    try:
        digest = digest_of(re_pb2.Digest.FromString(content))
    except DecodeError:
        raise Left(Reason.GARBAGE, "it is no digest") from None
    return OldName(REFERENCE_URN + path, Namespace.ASSET_DIRECTORY, digest)
