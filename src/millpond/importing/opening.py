"""Opening an old store of a kind that somebody named.

The rule: what is not such a store is refused with what was expected, and with the kind that it looks like.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from millpond.core.errors import RefusedToStart
from millpond.importing.bst1 import REFS, read_ref
from millpond.importing.bst19 import ARTIFACTS, SOURCES, read_artifact, read_source
from millpond.importing.casd import ASSETS, read_asset
from millpond.importing.interface import OldStore
from millpond.importing.store import OBJECTS, FileStore, ReadName
from millpond.importing.tree import Tree


class Kind(StrEnum):
    """What an old store is called on the command line."""

    BST1 = "bst1"
    BST19 = "bst19"
    CASD = "casd"


class _Shape(NamedTuple):
    what: str
    signs: tuple[str, ...]
    """By one of these directories, beside the blobs, it is known."""
    names: Mapping[str, ReadName]
    """Where names lie, and how one is read."""
    accepted: tuple[str, ...] = ()
    """Or by one of these, which another kind is known by as well."""


_SHAPES = {
    Kind.BST19: _Shape(
        "a BuildStream 1.91 to 1.93 bst-artifact-server",
        (ARTIFACTS, SOURCES),
        {ARTIFACTS: read_artifact, SOURCES: read_source, REFS: read_ref, ASSETS: read_asset},
        accepted=(ASSETS,),
    ),
    Kind.BST1: _Shape("a BuildStream 1.1.4 to 1.6 bst-artifact-server", (REFS,), {REFS: read_ref}),
    Kind.CASD: _Shape("buildbox-casd", (ASSETS, "cas/staging"), {ASSETS: read_asset}),
}
"""The most particular kind first."""


def open_old_store(kind: Kind, path: str) -> OldStore:
    """Open the old store at ``path``, to read it only.

    Raises:
        RefusedToStart: it is no such store, or cannot be read.
    """
    shape = _SHAPES[kind]
    tree = Tree(path)
    try:
        if not tree.holds_directory(OBJECTS):
            _refuse(path, shape, f"there is no directory {OBJECTS} in it", tree)
        signs = shape.signs + shape.accepted
        if not any(map(tree.holds_directory, signs)):
            _refuse(path, shape, f"there is no directory {' or '.join(signs)} in it", tree)
        return FileStore(tree, shape.names)
    except BaseException:
        tree.close()
        raise


def _refuse(path: str, shape: _Shape, why: str, tree: Tree) -> None:
    advice = "name the directory that its server was started with"
    for kind, other in _SHAPES.items():
        if other is not shape and tree.holds_directory(OBJECTS) and any(map(tree.holds_directory, other.signs)):
            advice = f"it looks like the store of {other.what}: try millpond import {kind}"
            break
    else:
        for inner in ("objects", "refs/heads"):
            if tree.holds_directory(inner):  # the directory below
                advice = "name the directory above it, that its server was started with"
    raise RefusedToStart(f"{path} is not the store of {shape.what}: {why} (links are not followed); {advice}")
