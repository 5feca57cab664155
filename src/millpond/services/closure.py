"""What must be held for a name: its closure.

The rule for BuildStream 2's artifacts (an asset whose URI says so and whose blob is a ``buildstream.v2.Artifact``): the
artifact itself, its files with the whole tree, its public data, its logs and all else that the pusher referenced are
required. ``buildtree``, ``sources`` and ``buildroot`` are required only where the client had them: it names them in
``references_directories`` all the same, so a tree of these with holes is left out instead of refused.
For every other asset everything referenced is required.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from google.protobuf.message import DecodeError

from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import IncompleteClosure, InvalidRequest, TooMuch, WouldBlock
from millpond.core.names import ARTIFACT_URN, Namespace
from millpond.services import trees
from millpond.store.interface import BlobStore, Bytes

_OPTIONAL_TREES = ("buildtree", "sources", "buildroot")
_ARTIFACT_BYTES = 16 * limits.MIB


class Closure(NamedTuple):
    """All blobs that a name needs, each once."""

    digests: list[Digest]

    @property
    def size_bytes(self) -> int:
        """Their sizes together."""
        return sum(digest.size_bytes for digest in self.digests)


class _Roots(NamedTuple):
    blobs: set[Digest]
    trees: set[Digest]
    optional_trees: set[Digest]


class Referring(Protocol):
    """What a name is bound to: a binding, or a push that asks for one."""

    @property
    def digest(self) -> Digest:
        """What it stands for."""

    @property
    def blobs(self) -> Sequence[Digest]:
        """Blobs that belong to it."""

    @property
    def directories(self) -> Sequence[Digest]:
        """Roots of trees that belong to it."""


class Promise(Protocol):
    """How blobs are promised; ``BlobStore.find_missing`` where nobody is told of a closure."""

    def __call__(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those that are not held; the others are promised."""
        ...


def walk(
    blobs: BlobStore,
    namespace: Namespace,
    key: str,
    referring: Referring,
    *,
    promise: Promise | None = None,
    wait: bool = True,
) -> Closure:
    """The closure of ``referring``, every blob of it held and promised (I8).

    ``promise``: how; without it ``blobs`` is asked which are missing.

    Raises:
        IncompleteClosure: something required is not held.
        InvalidRequest: something that should be a Directory is none.
        TooMuch: deeper or larger than limits allow.
        WouldBlock: there is a tree to walk, or a lock or a disk to wait for, and ``wait`` is False.
    """
    promise = promise or blobs.find_missing
    if not wait:
        treeless = without_trees(blobs, namespace, key, referring)
        _promise(promise, treeless.digests, wait=False)
        return treeless
    roots = _roots(blobs, namespace, key, referring, wait=True)
    found = _Collected()
    found.add(roots.blobs)
    _walk_tree(blobs, roots.trees, found)
    _promise(promise, found.digests)
    for root in roots.optional_trees:
        attempt = _Collected()
        try:
            _walk_tree(blobs, {root}, attempt)
            _promise(promise, attempt.digests)
        except IncompleteClosure:
            continue
        found.add(attempt.digests)
    return Closure(list(found.digests))


def without_trees(blobs: BlobStore, namespace: Namespace, key: str, referring: Referring) -> Closure:
    """The closure of ``referring`` if no tree belongs to it. Nothing is promised yet, and nobody knows what is held.

    Raises:
        IncompleteClosure, InvalidRequest, TooMuch: as :func:`walk`.
        WouldBlock: there is a tree, however small: to walk it is no work for an event loop. Or a disk to wait for.
    """
    roots = _roots(blobs, namespace, key, referring, wait=False)
    if roots.trees or roots.optional_trees:
        raise WouldBlock
    found = _Collected()
    found.add(roots.blobs)
    return Closure(list(found.digests))


def remains(blobs: BlobStore, namespace: Namespace, key: str, binding: Referring) -> list[Digest]:
    """What is held of the closure of ``binding``, whole or not. Nothing is promised.

    Raises:
        InvalidRequest, TooMuch: as :func:`walk`.
    """
    try:
        roots = _roots(blobs, namespace, key, binding, wait=True)
    except IncompleteClosure:
        roots = _Roots({binding.digest, *binding.blobs}, set(binding.directories), set())
    found = _Collected()
    found.add(roots.blobs)
    for digests, contents in trees.levels(blobs, roots.trees | roots.optional_trees):
        found.add(digests)
        for digest, content in zip(digests, contents, strict=True):
            if content is not None:
                found.add(_files(digest, content))
    wanted = [digest for digest in found.digests if digest != EMPTY]
    missing = set(blobs.find_missing(wanted))
    return [digest for digest in wanted if digest not in missing]


def _roots(blobs: BlobStore, namespace: Namespace, key: str, referring: Referring, *, wait: bool) -> _Roots:
    directories = set(referring.directories)
    if namespace is Namespace.ASSET_DIRECTORY:
        return _Roots(set(referring.blobs), directories | {referring.digest}, set())
    single = {referring.digest, *referring.blobs}
    artifact = _artifact(blobs, key, referring.digest, wait=wait)
    if artifact is None:
        return _Roots(single, directories, set())
    files, optional = named_by(artifact, "files"), named_by(artifact, *_OPTIONAL_TREES)
    optional -= files
    single.update(trees.parse(log.digest) for log in artifact.logs)
    single.update(named_by(artifact, "public_data"))
    return _Roots(single, (directories | files) - optional, optional)


def named_by(artifact: artifact_pb2.Artifact, *fields: str) -> set[Digest]:
    """The digests in ``fields``. One that is empty names nothing, as one that is not set.

    Raises:
        InvalidRequest: what stands there is none.
    """
    found = [getattr(artifact, field) for field in fields]
    return {trees.parse(digest) for digest in found if digest.hash or digest.size_bytes}


def _artifact(blobs: BlobStore, key: str, digest: Digest, *, wait: bool) -> artifact_pb2.Artifact | None:
    if not key.startswith(ARTIFACT_URN) or digest.size_bytes > _ARTIFACT_BYTES:
        return None
    (content,) = blobs.read_many([digest], wait=wait)
    if content is None:
        raise _incomplete(digest)
    try:
        return artifact_pb2.Artifact.FromString(bytes(content))
    except DecodeError:
        raise InvalidRequest(f"blob {digest} is not a buildstream.v2.Artifact, as its URI says it is") from None


class _Collected:
    """Digests found so far, each once, bounded."""

    def __init__(self) -> None:
        self.digests: dict[Digest, None] = {}

    def add(self, digests: Iterable[Digest]) -> None:
        self.digests.update(dict.fromkeys(digests))
        if len(self.digests) > limits.CLOSURE_BLOBS:
            raise TooMuch(f"a name may stand for at most {limits.CLOSURE_BLOBS} blobs")


def _walk_tree(blobs: BlobStore, roots: set[Digest], found: _Collected) -> None:
    for digests, contents in trees.levels(blobs, roots):
        found.add(digests)
        for digest, content in zip(digests, contents, strict=True):
            if content is None:
                raise _incomplete(digest)
            found.add(_files(digest, content))


def _files(digest: Digest, content: Bytes) -> list[Digest]:
    return trees.digests_of(trees.parse_directory(digest, content).files)


def _promise(promise: Promise, digests: Iterable[Digest], *, wait: bool = True) -> None:
    wanted = [digest for digest in digests if digest != EMPTY]
    missing = promise(wanted, wait=wait)
    if missing:
        raise _incomplete(missing[0], len(missing))


def _incomplete(digest: Digest, count: int = 1) -> IncompleteClosure:
    others = f" and {count - 1} more" if count > 1 else ""
    return IncompleteClosure(f"blob {digest}{others} of this name is not in the cache: upload it before the name")
