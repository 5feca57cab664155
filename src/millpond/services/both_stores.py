"""What a cache and an old store hold together, for the walk that says whether a name could move in.

The rule: what the cache holds is taken from there, so that damage in the old store does no harm to what was brought once.
What the walk reads of the old store is verified; of files it only looks whether something of their size is there, because
they are verified when they are brought.
"""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.names import ARTIFACT_URN, SOURCE_URN, Namespace
from millpond.importing.interface import Left, OldName, OldStore, Reason
from millpond.services import trees
from millpond.store.interface import BlobStore, Bytes

_ABSENT = (Reason.VANISHED, Reason.ODD)
IS_ANOTHER = "its bytes are not what its digest says"


class Lack(NamedTuple):
    """Why something cannot be had. What is remembered is no exception: these hold on to all that was at hand."""

    reason: Reason
    detail: str


class BothStores:
    """Reads from both. It has of ``BlobStore`` what a walk needs, and promises nothing."""

    def __init__(self, here: BlobStore, old: OldStore) -> None:
        """``here`` promises nothing and notes no use."""
        self.damaged: dict[Digest, Lack] = {}
        """What was read and found not to be had, and why, in all names so far."""
        self.trouble: Lack | None = None
        """What the last walk met that is there and cannot be had; set it to None before."""
        self._here = here
        self._old = old
        self._messages: dict[Digest, bytes] = {}

    def hand_over(self, name: OldName) -> None:
        """The next name is this one, with the blob that the old store keeps with it."""
        self._messages = {} if name.message is None else {Digest.of(name.message): name.message}

    def note(self, digest: Digest, reason: Reason, detail: str) -> None:
        """A blob of the old store cannot be had."""
        if reason not in _ABSENT:
            self.damaged[digest] = Lack(reason, f"blob {digest}: {detail or reason}")

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        """Those that neither has."""
        return [digest for digest in self._here.find_missing(digests, wait=wait) if not self._is_there(digest)]

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        """The bytes of each, verified, or None."""
        contents = self._here.read_many(digests, wait=wait)
        return [
            self._verified(digest) if content is None else content
            for digest, content in zip(digests, contents, strict=True)
        ]

    def unverified(self, digest: Digest) -> bytes | None:
        """What the old store has in the place of a blob that fits in memory, or None; why, is noted."""
        message = self._messages.get(digest)
        if message is not None:
            return message
        try:
            return b"".join(self._old.chunks(digest))
        except Left as why:
            self.note(digest, why.reason, why.detail)
            return None

    def _is_there(self, digest: Digest) -> bool:
        if digest in self._messages:
            return True
        if digest in self.damaged:
            self.trouble = self.damaged[digest]
            return False
        size = self._old.size_bytes(digest)
        if size not in (None, digest.size_bytes):
            self.trouble = Lack(Reason.DAMAGED, f"blob {digest}: it has {size} bytes")
        return size == digest.size_bytes

    def _verified(self, digest: Digest) -> bytes | None:
        if digest not in self.damaged:
            content = self.unverified(digest)
            if content is not None:
                if digest.matches(content):
                    return content
                self.note(digest, Reason.DAMAGED, IS_ANOTHER)
        self.trouble = self.damaged.get(digest, self.trouble)
        return None


def references(both: BothStores, name: OldName) -> tuple[tuple[Digest, ...], tuple[Digest, ...]]:
    """The blobs and the trees that BuildStream's client would have named when it pushed ``name``.

    Old stores do not keep them. What a closure finds by itself in an artifact is not repeated here.
    """
    is_artifact = name.uri.startswith(ARTIFACT_URN)
    if name.namespace is not Namespace.ASSET_BLOB or not (is_artifact or name.uri.startswith(SOURCE_URN)):
        return (), ()
    if not 0 < name.digest.size_bytes <= limits.ARTIFACT_MESSAGE_BYTES:
        return (), ()
    (content,) = both.read_many([name.digest])
    if content is None:
        return (), ()
    try:
        if not is_artifact:
            source = source_pb2.Source.FromString(bytes(content))
            return (), (trees.parse(source.files),) if source.HasField("files") else ()
        artifact = artifact_pb2.Artifact.FromString(bytes(content))
    except DecodeError:
        return (), ()
    metas = [artifact.low_diversity_meta, artifact.high_diversity_meta]
    blobs = [trees.parse(meta) for meta in metas if meta.hash]
    boxes = [trees.parse(box) for box in artifact.buildsandbox.subsandbox_digests]
    return tuple(digest for digest in blobs if digest != EMPTY), tuple(boxes)
