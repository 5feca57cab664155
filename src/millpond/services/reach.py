"""Which blobs names lead to, whether or not they are all here.

A closure is what must be there for a name to be served (``services.closure``). This is less strict and asks for more:
everything that a name leads to as far as it can be followed, optional trees and trees with holes included, because what
is to be forgotten must be found wherever a name leads.

The rule: following promises nothing, and each directory is read once for all names together.
"""

from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import InvalidRequest
from millpond.core.names import ARTIFACT_URN, Name, Namespace
from millpond.names.binding import Binding
from millpond.services import trees
from millpond.services.closure import named_by
from millpond.store.interface import BlobStore

_AT_ONCE = 256
_ARTIFACT_BYTES = 16 * limits.MIB
_FIELDS = ("files", "public_data", "buildtree", "sources", "buildroot", "low_diversity_meta", "high_diversity_meta")


class Reach:
    """Follows names; what it has followed once it does not follow again."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._followed: set[bytes] = set()

    def of(self, name: Name, binding: Binding) -> Iterator[Digest]:
        """What ``name`` leads to, but for what was below a directory that was followed before. May repeat itself."""
        roots = {*binding.directories}
        if name.namespace is Namespace.ASSET_DIRECTORY:
            roots.add(binding.digest)
        yield from (binding.digest, *binding.blobs)
        if name.key.startswith(ARTIFACT_URN) and binding.digest.size_bytes <= _ARTIFACT_BYTES:
            named = self._named_by_artifact(binding.digest)
            yield from named
            roots.update(named)  # which of them are directories shows when they are read
        yield from self._below(roots)

    def _named_by_artifact(self, digest: Digest) -> list[Digest]:
        (content,) = self._blobs.read_many([digest])
        if content is None:
            return []
        try:
            artifact = artifact_pb2.Artifact.FromString(bytes(content))
            return [*named_by(artifact, *_FIELDS), *(trees.parse(log.digest) for log in artifact.logs)]
        except (DecodeError, InvalidRequest):
            return []

    def _below(self, roots: Iterable[Digest]) -> Iterator[Digest]:
        waiting = list(roots)
        while waiting:
            fresh = [
                digest
                for digest in dict.fromkeys(waiting)
                if digest.key not in self._followed and digest.size_bytes <= limits.DIRECTORY_BYTES and digest != EMPTY
            ]
            waiting = []
            for start in range(0, len(fresh), _AT_ONCE):
                batch = fresh[start : start + _AT_ONCE]
                for digest, content in zip(batch, self._blobs.read_many(batch), strict=True):
                    self._followed.add(digest.key)
                    yield digest
                    if content is None:
                        continue
                    try:
                        directory = trees.parse_directory(digest, content)
                        yield from [trees.parse(node.digest) for node in directory.files]
                        waiting += trees.subdirectories(digest, content)
                    except InvalidRequest:
                        continue  # a log or another file


def only_reached_by(
    removed: Iterable[tuple[Name, Binding]], others: Iterable[tuple[Name, Binding]], blobs: BlobStore
) -> tuple[set[Digest], set[Digest]]:
    """What ``removed`` lead to and ``others`` do not; and what both do."""
    reach = Reach(blobs)
    found = {digest for name, binding in removed for digest in reach.of(name, binding)} - {EMPTY}
    return still_needed(found, others, blobs)


def still_needed(
    found: set[Digest], others: Iterable[tuple[Name, Binding]], blobs: BlobStore
) -> tuple[set[Digest], set[Digest]]:
    """Those of ``found`` that ``others`` do not lead to; and those that they do."""
    reach, shared = Reach(blobs), set[Digest]()
    for name, binding in others:
        shared.update(digest for digest in reach.of(name, binding) if digest in found)
    return found - shared, shared
