"""What old clients push: a tree of directories and files, unlike every other."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from contract.rpc_client import Client, message_of

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest


@dataclass(frozen=True)
class Tree:
    """A directory with a file and a directory in it, in which there is another file."""

    contents: dict[Digest, bytes]
    root: Digest
    below: Digest
    file: Digest
    """That in ``below``."""

    def put(self, client: Client, *, without: Digest | None = None) -> Tree:
        """Upload it, but for ``without``."""
        client.put(*(data for digest, data in self.contents.items() if digest != without))
        return self


def new_tree() -> Tree:
    """In memory only."""
    contents: dict[Digest, bytes] = {}

    def blob(data: bytes) -> Digest:
        contents[Digest.of(data)] = data
        return Digest.of(data)

    above, file = (blob(f"{text} {uuid4()}".encode()) for text in ("above", "below"))
    below = blob(re_pb2.Directory(files=[{"name": "below", "digest": message_of(file)}]).SerializeToString())
    root = blob(
        re_pb2.Directory(
            files=[{"name": "above", "digest": message_of(above)}],
            directories=[{"name": "directory", "digest": message_of(below)}],
        ).SerializeToString()
    )
    return Tree(contents, root, below, file)
