"""An old store as all kinds have it: blobs in ``cas/objects``, and names as files below some directories.

The rule: what a kind adds is where names lie and how one is read; nothing here depends on the kind.
"""

from collections.abc import Callable, Iterator, Mapping

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.importing.interface import Entry, Left, OldName, Reason
from millpond.importing.objects import Objects
from millpond.importing.tree import Tree

OBJECTS = "cas/objects"

ReadName = Callable[[Tree, str, str], OldName]
"""Reads a name: the tree, the directory of such names, and the path below it. Raises ``Left``."""


class FileStore:
    """An :class:`~millpond.importing.interface.OldStore` whose names lie below the keys of ``names``."""

    def __init__(self, tree: Tree, names: Mapping[str, ReadName]) -> None:
        self._tree = tree
        self._names = names
        self._objects = Objects(tree, OBJECTS)
        self.size_bytes = self._objects.size_bytes
        self.chunks = self._objects.chunks
        self.blobs = self._objects.listed

    def entries(self) -> Iterator[Entry]:
        """See :meth:`OldStore.entries`."""
        for top in self._names:
            for found in self._tree.files(top):
                yield Entry(f"{top}/{found.path}", found.changed_ms, found.trouble)

    def read(self, entry: Entry) -> OldName:
        """See :meth:`OldStore.read`."""
        top = next(top for top in self._names if entry.path.startswith(f"{top}/"))
        return self._names[top](self._tree, top, entry.path.removeprefix(f"{top}/"))

    def close(self) -> None:
        """See :meth:`OldStore.close`."""
        self._objects.close()
        self._tree.close()


def digest_of(message: re_pb2.Digest) -> Digest:
    """The digest that an old store speaks of.

    Raises:
        Left: it is none.
    """
    try:
        return Digest.parse(message.hash, message.size_bytes)
    except InvalidRequest as why:
        raise Left(Reason.GARBAGE, str(why)) from None
