"""Trees and artifacts, as BuildStream makes them, in a store in memory."""

from collections.abc import Mapping, Sequence

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.core.digest import EMPTY, Digest
from millpond.core.names import Namespace
from millpond.services.closure import ARTIFACT_URN
from millpond.store.memory import MemoryStore

BLOB, DIRECTORY = Namespace.ASSET_BLOB, Namespace.ASSET_DIRECTORY
URI = ARTIFACT_URN + "project/element/key"
WEAK_URI = ARTIFACT_URN + "project/element/weak"
OTHER_URI = "https://example.org/sources.tar"


def message(digest: Digest) -> re_pb2.Digest:
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


class Content:
    """What is made is stored, unless it is made in the hand only."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def blob(self, data: bytes | str, *, held: bool = True) -> Digest:
        data = data.encode() if isinstance(data, str) else data
        digest = Digest.of(data)
        if held:
            assert self.store.put_many([(digest, data)]) == [None]
        return digest

    def directory(
        self, files: Sequence[Digest] = (), directories: Mapping[str, Digest] | None = None, *, held: bool = True
    ) -> Digest:
        made = re_pb2.Directory(
            files=[re_pb2.FileNode(name=f"file {i}", digest=message(digest)) for i, digest in enumerate(files)],
            directories=[
                re_pb2.DirectoryNode(name=name, digest=message(digest)) for name, digest in (directories or {}).items()
            ],
            symlinks=[re_pb2.SymlinkNode(name="link", target="/nowhere")],
        )
        return self.blob(made.SerializeToString(), held=held)

    def artifact(self, *, logs: Sequence[Digest] = (), held: bool = True, **fields: Digest) -> Digest:
        made = artifact_pb2.Artifact(
            version=1,
            strong_key="key",
            logs=[artifact_pb2.Artifact.LogFile(name="log", digest=message(digest)) for digest in logs],
            **{name: message(digest) for name, digest in fields.items()},
        )
        return self.blob(made.SerializeToString(), held=held)

    def drop(self, *digests: Digest) -> None:
        """Evict."""
        for digest in digests:
            assert digest != EMPTY
            del self.store._blobs[digest]
        self.store._intact.clear()


def chain(content: Content, depth: int) -> tuple[Digest, list[Digest]]:
    """A tree of ``depth`` directories, one in the other, and all of them."""
    digest = content.directory([content.blob("at the bottom")])
    found = [digest]
    for _ in range(depth - 1):
        digest = content.directory(directories={"d": digest})
        found.append(digest)
    return digest, found
