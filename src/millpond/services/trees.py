"""Walking trees of Directory messages.

The rule: every walk is bounded in depth, count and message size, visits each directory once however often it is
reached, and never recurses.
"""

from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.message import DecodeError

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest, TooMuch
from millpond.store.interface import BlobStore, Bytes

_DIRECTORIES_AT_ONCE = 256
"""Directories read in one go: enough to read neighbours together, few enough to hold in memory."""


def levels(blobs: BlobStore, roots: Iterable[Digest]) -> Iterator[tuple[Sequence[Digest], Sequence[Bytes | None]]]:
    """Every Directory at and below ``roots``, breadth first: digests and their bytes, in batches.

    A directory that is not held comes as None, and nothing below it.

    Raises:
        InvalidRequest: a blob that should be a Directory is none.
        TooMuch: deeper or larger than limits allow.
    """
    seen: set[Digest] = set()
    level = _fresh(roots, seen)
    for _ in range(limits.TREE_DEPTH):
        if not level:
            return
        below: list[Digest] = []
        for start in range(0, len(level), _DIRECTORIES_AT_ONCE):
            batch = level[start : start + _DIRECTORIES_AT_ONCE]
            contents = blobs.read_many([_checked_size(digest) for digest in batch])
            yield batch, contents
            for digest, content in zip(batch, contents, strict=True):
                if content is not None:
                    below += _fresh(subdirectories(digest, content), seen)
        if len(seen) > limits.CLOSURE_BLOBS:
            raise TooMuch(f"a tree of more than {limits.CLOSURE_BLOBS} directories is not followed")
        level = below
    if level:
        raise TooMuch(f"a tree deeper than {limits.TREE_DEPTH} directories is not followed")


def parse_directory(digest: Digest, content: Bytes) -> re_pb2.Directory:
    """The Directory in ``content``.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return re_pb2.Directory.FromString(content if isinstance(content, bytes) else bytes(content))
    except DecodeError:
        raise InvalidRequest(f"blob {digest} is not a Directory") from None


def subdirectories(digest: Digest, content: Bytes) -> list[Digest]:
    """The digests of a Directory's subdirectories."""
    return digests_of(parse_directory(digest, content).directories)


def digests_of(nodes: Iterable[re_pb2.FileNode | re_pb2.DirectoryNode]) -> list[Digest]:
    """The digests of a Directory's files or subdirectories."""
    return Digest.parse_many([(found.hash, found.size_bytes) for found in [node.digest for node in nodes]])


def parse(digest: re_pb2.Digest) -> Digest:
    """A digest message, validated."""
    return Digest.parse(digest.hash, digest.size_bytes)


def _fresh(digests: Iterable[Digest], seen: set[Digest]) -> list[Digest]:
    fresh = [digest for digest in dict.fromkeys(digests) if digest not in seen]
    seen.update(fresh)
    return fresh


def _checked_size(digest: Digest) -> Digest:
    if digest.size_bytes > limits.DIRECTORY_BYTES:
        raise TooMuch(f"directory {digest} is larger than {limits.DIRECTORY_BYTES} bytes")
    return digest
