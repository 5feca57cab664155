"""What a commit needs: its trees, their metadata, their files.

The rule: a stored object counts only when its bytes were verified in this walk.
"""

from __future__ import annotations

import os

from millpond.core.errors import IncompleteClosure, InvalidRequest
from millpond.protocol.ostree.filez import FilezCheck
from millpond.protocol.ostree.names import loose_path
from millpond.protocol.ostree.objects import Commit, DirTree, check_metadata
from millpond.store.ostree.disk import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millpond.store.ostree.staging import Key, Metadata

_PIECE_BYTES = 1 << 20


def children(metadata: Metadata) -> Iterator[Key]:
    """The objects that a commit, a directory or its metadata names."""
    if isinstance(metadata, Commit):
        yield metadata.meta, "dirmeta"
        yield metadata.tree, "dirtree"
    elif isinstance(metadata, DirTree):
        for _, content in metadata.files:
            yield content, "filez"
        for _, tree, meta in metadata.directories:
            yield meta, "dirmeta"
            yield tree, "dirtree"


def closure(commit: str, load: Callable[[Key], Metadata | None]) -> dict[Key, None]:
    """All objects of a commit, each before those that it names; ``load`` answers None for a file.

    Raises:
        Whatever ``load`` raises for an object that is not there.
    """
    found: dict[Key, None] = {}
    waiting: list[Key] = [(commit, "commit")]
    while waiting:
        key = waiting.pop()
        if key in found:
            continue
        found[key] = None
        metadata = load(key)
        if metadata is not None:
            waiting.extend(one for one in children(metadata) if one not in found)
    return found


def verify_stored(repo: str, key: Key) -> Metadata | None:
    """Read and verify an object of the repository; None for a file.

    Raises:
        IncompleteClosure: it is not there.
        InvalidRequest: it is damaged.
        OSError: it cannot be read.
    """
    checksum, kind = key
    path = f"{repo}/{loose_path(checksum, kind)}"
    try:
        if kind != "filez":
            return check_metadata(checksum, kind, read_file(path))
        check = FilezCheck(checksum)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while piece := os.read(descriptor, _PIECE_BYTES):
                check.feed(piece)
        finally:
            os.close(descriptor)
        check.finish()
    except FileNotFoundError:
        raise IncompleteClosure(f"{checksum}.{kind} is missing") from None
    return None


def is_sound(repo: str, key: Key) -> bool:
    """Whether an object lies in the repository and is what its name says."""
    try:
        verify_stored(repo, key)
    except (IncompleteClosure, InvalidRequest, OSError):
        return False
    return True
