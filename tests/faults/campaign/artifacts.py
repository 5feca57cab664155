"""What the load pushes: artifacts whose every byte follows from their key.

The rule: an audit needs nothing but the key, so a campaign that ran for an hour remembers names and no content.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.core.digest import EMPTY, Digest
from millpond.services.closure import ARTIFACT_URN

KIB = 1 << 10
STREAMED_BYTES = 1 << 20
"""A blob above this goes through a spool file; the load streams those and puts the others into batches."""
_COMMON = 64
"""Blobs that many artifacts share."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """What one name stands for."""

    uri: str
    directory: bool
    """Pushed by PushDirectory, not by PushBlob."""
    digest: Digest
    blobs: tuple[Digest, ...]
    directories: tuple[Digest, ...]
    contents: dict[Digest, bytes]
    """The closure."""

    @property
    def size_bytes(self) -> int:
        return sum(digest.size_bytes for digest in self.contents)


@functools.lru_cache(maxsize=64)
def artifact(key: str) -> Artifact:
    """The artifact of ``key``, "SEED:NUMBER.WRITER". Every fifth number has the same content whoever writes it."""
    number = key.rpartition(":")[2].partition(".")[0]
    chance = random.Random(key.rpartition(".")[0] if int(number) % 5 == 0 else key)
    made = _Making(chance)
    kind = chance.randrange(3)
    if kind == 0:
        digest, *references = made.files()
        return Artifact(f"https://example.org/{key}", False, digest, tuple(references), (), made.contents)
    tree = made.tree(depth=chance.randint(1, 3))
    if kind == 1:
        log = made.blob(chance.randint(1, 4 * KIB))
        return Artifact(f"https://example.org/{key}", True, tree, (log,), (), made.contents)
    digest = made.artifact(tree)
    others = tuple(one for one in made.files() if one != EMPTY)
    return Artifact(f"{ARTIFACT_URN}{key}", False, digest, others, (tree,), made.contents)


class _Making:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.contents: dict[Digest, bytes] = {}

    def add(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        if digest != EMPTY:
            self.contents[digest] = data
        return digest

    def blob(self, size_bytes: int) -> Digest:
        return self.add(hashlib.shake_128(self._chance.randbytes(16)).digest(size_bytes))

    def files(self) -> list[Digest]:
        """A few small blobs, one of them perhaps a common one; now and then a large one."""
        chance = self._chance
        made = [self.blob(min(60 * KIB, int(chance.lognormvariate(7.5, 1.2)) + 1)) for _ in range(chance.randint(2, 8))]
        if chance.random() < 0.5:
            common = chance.randrange(_COMMON)
            made.append(self.add(hashlib.shake_128(b"common %d" % common).digest(5 * KIB + common)))
        if chance.random() < 0.2:
            made.append(self.blob(chance.randint(100 * KIB, 400 * KIB)))
        if chance.random() < 0.12:
            made.append(self.blob(chance.randint(STREAMED_BYTES + 1, 2 * STREAMED_BYTES)))
        return made

    def tree(self, *, depth: int) -> Digest:
        below = {f"d{at}": self.tree(depth=depth - 1) for at in range(2)} if depth > 1 else {}
        return self.directory(self.files(), below)

    def directory(self, files: Sequence[Digest], below: dict[str, Digest]) -> Digest:
        made = re_pb2.Directory(
            files=[re_pb2.FileNode(name=f"f{at}", digest=message(digest)) for at, digest in enumerate(files)],
            directories=[re_pb2.DirectoryNode(name=name, digest=message(digest)) for name, digest in below.items()],
        )
        return self.add(made.SerializeToString())

    def artifact(self, files: Digest) -> Digest:
        made = artifact_pb2.Artifact(version=1, strong_key=self._chance.randbytes(8).hex(), files=message(files))
        return self.add(made.SerializeToString())


def message(digest: Digest) -> re_pb2.Digest:
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)
