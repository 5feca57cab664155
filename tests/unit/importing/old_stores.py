"""Stores as other servers write them, made by hand: what each kind has in common, and where its names lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from unit.cli.test_check import millpond
from unit.services.artifacts import message
from unit.store.repositories import Repository, noise, read_chunks

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import NameNotFound
from millpond.core.names import ARTIFACT_URN, REFERENCE_URN, Name, Namespace
from millpond.names.binding import Binding
from millpond.services import closure

KEY = "4" * 64
NOW_S = 1_600_000_000
"""In the past of every run of these tests."""


class OldStore:
    """The blobs, which all kinds keep in the same way."""

    kind = ""
    directories: Sequence[str] = ()

    def __init__(self, root: Path) -> None:
        self.root = root
        for directory in ("cas/objects", *self.directories):
            (root / directory).mkdir(parents=True, exist_ok=True)

    def path_of(self, digest: Digest) -> Path:
        return self.root / "cas" / "objects" / digest.hash[:2] / digest.hash[2:]

    def blob(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        path = self.path_of(digest)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(data)
        return digest

    def directory(self, files: Sequence[Digest] = (), below: Mapping[str, Digest] | None = None) -> Digest:
        nodes = [re_pb2.FileNode(name=f"file {i}", digest=message(digest)) for i, digest in enumerate(files)]
        trees = [re_pb2.DirectoryNode(name=name, digest=message(digest)) for name, digest in (below or {}).items()]
        return self.blob(re_pb2.Directory(files=nodes, directories=trees).SerializeToString())

    def tree(self, seed: str, sizes: Sequence[int] = (900, 1100)) -> Digest:
        """A tree with a directory in it and files of noise."""
        inner = self.directory([self.blob(noise(size, seed)) for size in sizes])
        return self.directory([self.blob(seed.encode())], {"inner": inner})

    def files_of(self, seed: str, sizes: Sequence[int] = (900, 1100)) -> list[Digest]:
        return [Digest.of(noise(size, seed)) for size in sizes]

    def name(self, name: str, root: Digest, *, used_s: int = NOW_S) -> Path:
        """Make ``name`` stand for the tree ``root``; the file that says so."""
        raise NotImplementedError

    def bound(self, name: str) -> Name:
        """What it is called here."""
        raise NotImplementedError

    def _write(self, path: Path, content: bytes, used_s: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (used_s, used_s))
        return path


class Bst1(OldStore):
    kind = "bst1"
    directories = ("cas/refs/heads", "tmp")

    def name(self, name: str, root: Digest, *, used_s: int = NOW_S) -> Path:
        return self._write(self.root / "cas/refs/heads" / name, message(root).SerializeToString(), used_s)

    def bound(self, name: str) -> Name:
        return Name("", Namespace.ASSET_DIRECTORY, REFERENCE_URN + name)


class Bst19(OldStore):
    kind = "bst19"
    directories = ("artifacts/refs", "source_protos", "cas/refs/heads")

    def name(self, name: str, root: Digest, *, used_s: int = NOW_S, **fields: Any) -> Path:
        artifact = artifact_pb2.Artifact(version=1, strong_key=KEY, files=message(root), **fields)
        unknown = b"\xfa\x3f\x04kept"  # field 1023, which nobody knows
        return self._write(self.root / "artifacts/refs" / name, artifact.SerializeToString() + unknown, used_s)

    def source(self, name: str, root: Digest, *, more: bytes = b"", used_s: int = NOW_S) -> Path:
        source = source_pb2.Source(version=1, files=message(root)).SerializeToString()
        return self._write(self.root / "source_protos" / name, source + more, used_s)

    def bound(self, name: str) -> Name:
        return Name("", Namespace.ASSET_BLOB, ARTIFACT_URN + name)


class Casd(OldStore):
    kind = "casd"
    directories = ("assets/objects", "cas/staging", "cas/tmp")

    def name(self, name: str, root: Digest, *, used_s: int = NOW_S, **fields: Any) -> Path:
        kept = asset_pb2.FetchDirectoryResponse(uri=f"urn:{name}", root_directory_digest=message(root), **fields)
        return self.asset(kept, used_s=used_s)

    def blob_asset(self, uri: str, digest: Digest, *, used_s: int = NOW_S, **fields: Any) -> Path:
        return self.asset(asset_pb2.FetchBlobResponse(uri=uri, blob_digest=message(digest), **fields), used_s=used_s)

    def asset(
        self, kept: asset_pb2.FetchBlobResponse | asset_pb2.FetchDirectoryResponse, *, used_s: int = NOW_S
    ) -> Path:
        packed = AnyMessage()
        packed.Pack(kept)
        key = hashlib.sha256(kept.uri.encode() + repr(kept.qualifiers).encode()).hexdigest()
        return self._write(self.root / "assets/objects" / key[:2] / key[2:], packed.SerializeToString(), used_s)

    def bound(self, name: str) -> Name:
        return Name("", Namespace.ASSET_DIRECTORY, f"urn:{name}")


KINDS = [Bst1, Bst19, Casd]


class Import:
    """``millpond import`` of one old store into one repository, as often as one likes."""

    def __init__(self, old: OldStore, repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.old = old
        self.repo = repo
        self.status = -1
        self._capsys = capsys

    def __call__(self, *options: str | Path) -> dict[str, Any]:
        """What it says that it did."""
        self._capsys.readouterr()
        quota = [] if "--quota" in options else ["--quota", "200M"]
        self.status = millpond("import", self.old.kind, "--json", *quota, *options, self.old.root, self.repo)
        document: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return document


def reasons(document: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = document["left"]["by_reason"]
    return found


class Here:
    """A look at what is in a repository; for no longer than the look takes."""

    def __init__(self, path: Path) -> None:
        self._repository = Repository(path, quota_bytes=None)

    def binding(self, name: Name) -> Binding | None:
        with self._open() as repository:
            try:
                return repository.names.resolve(name)
            except NameNotFound:
                return None

    def closure(self, name: Name) -> list[Digest]:
        """All that a name needs, every byte of it read and found to be right."""
        with self._open() as repository:
            binding = repository.names.resolve(name)
            found = closure.walk(repository.store, name.namespace, name.key, binding).digests
            for digest in found:
                assert digest == EMPTY or digest.matches(read_chunks(repository.store, digest))
            return found

    def missing(self, digests: Sequence[Digest]) -> list[Digest]:
        with self._open() as repository:
            return repository.store.find_missing(digests)

    @contextmanager
    def _open(self) -> Iterator[Repository]:
        self._repository.open()
        try:
            yield self._repository
        finally:
            self._repository.close()
