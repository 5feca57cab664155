"""Blobs as BuildStream's servers and buildbox-casd keep them: ``objects/ab/cdef…``, a file for each, named by its hash.

The rule: the path of a blob is made of its checked digest and of nothing else.
"""

import os
import stat
from collections.abc import Iterator

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.importing.interface import Left, Reason
from millpond.importing.tree import Tree, left


class Objects:
    """The blobs below ``top``, such as ``cas/objects``. For one thread."""

    def __init__(self, tree: Tree, top: str) -> None:
        self._tree = tree
        self._top = top
        self._directories: dict[str, int] = {}
        """At most 256, each open: a look-up is one system call."""

    def size_bytes(self, digest: Digest) -> int | None:
        """See :meth:`OldStore.size_bytes`."""
        name = digest.hash
        try:
            status = os.stat(name[2:], dir_fd=self._directory(name[:2]), follow_symlinks=False)
        except (OSError, Left):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def chunks(self, digest: Digest) -> Iterator[bytes]:
        """See :meth:`OldStore.chunks`."""
        name = digest.hash
        with self._tree.opened(self._directory(name[:2]), name[2:]) as (descriptor, size):
            if size != digest.size_bytes:
                raise Left(Reason.DAMAGED, f"it has {size} bytes instead of {digest.size_bytes}")
            rest = size
            while rest:
                try:
                    piece = os.read(descriptor, min(rest, limits.CHUNK_BYTES))
                except OSError as failure:
                    raise left(failure) from None
                if not piece:
                    raise Left(Reason.DAMAGED, "its file became shorter")
                rest -= len(piece)
                yield piece

    def listed(self) -> Iterator[tuple[Digest, int]]:
        """See :meth:`OldStore.blobs`. What is not named like a blob is none."""
        for found in self._tree.files(self._top):
            try:
                digest = Digest.parse(found.path.replace("/", "", 1), found.size_bytes)
            except InvalidRequest:
                continue
            if found.trouble is None and found.path[2:3] == "/":
                yield digest, found.changed_ms

    def _directory(self, name: str) -> int:
        descriptor = self._directories.get(name)
        if descriptor is None:
            descriptor = self._directories[name] = self._tree.open_directory(f"{self._top}/{name}")
        return descriptor

    def close(self) -> None:
        """Let go of directories."""
        while self._directories:
            os.close(self._directories.popitem()[1])
