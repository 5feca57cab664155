"""Pushes made in memory: artifacts, tar streams, conversations, and a session that hears them."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from millpond.core.clock import wall_clock
from millpond.protocol.ostree import frames
from millpond.protocol.ostree.filez import stored_file
from millpond.protocol.ostree.objects import (
    Commit,
    DirMeta,
    DirTree,
    FileHeader,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
)
from millpond.ssh.incoming import Incoming
from millpond.ssh.receiving import Receiver
from millpond.ssh.session import Session
from millpond.store.ostree.making import make_repository
from millpond.store.ostree.repository import Repository, open_repository
from millpond.store.ostree.summary import current

URL = "https://cache.test/artifacts"
REF = "project/element/" + "a" * 64
WEAK = "project/element/" + "b" * 64
OLD = "0" * 64


def sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


@dataclass
class Artifact:
    """A commit with all its objects, by their names."""

    commit: str
    objects: dict[str, bytes] = field(default_factory=dict)

    def of(self, kind: str) -> str:
        """The name of an object of this kind, the first one."""
        return sorted(name for name in self.objects if name.endswith("." + kind))[0]

    def without(self, *names: str) -> list[tuple[str, bytes]]:
        return [(name, data) for name, data in self.objects.items() if name not in names]

    def with_data(self, name: str, data: bytes) -> list[tuple[str, bytes]]:
        return list({**self.objects, name: data}.items())

    @property
    def members(self) -> list[tuple[str, bytes]]:
        return list(self.objects.items())


def make_artifact(seed: str = "", *, files: int = 3, size: int = 200) -> Artifact:
    """A directory with files, a symlink, an empty file, one in a directory below; all of it depends on ``seed``."""
    objects: dict[str, bytes] = {}

    def add(kind: str, data: bytes) -> str:
        checksum = sha256(data)
        objects[f"{checksum}.{kind}"] = data
        return checksum

    def add_file(
        content: bytes, mode: int = 0o100644, target: str = "", xattrs: tuple[tuple[bytes, bytes], ...] = ()
    ) -> str:
        checksum, data = stored_file(FileHeader(len(content), 0, 0, mode, target, list(xattrs)), content)
        objects[f"{checksum}.filez"] = data
        return checksum

    meta = add("dirmeta", encode_dirmeta(DirMeta(0, 0, 0o40755, [])))
    inner = add("dirtree", encode_dirtree(DirTree([("deep", add_file(f"deep {seed}".encode() * 10))], [])))
    listed = [(f"file{n}", add_file(f"{seed} {n} ".encode() * size, 0o100755)) for n in range(files)]
    listed += [("empty", add_file(b"")), ("link", add_file(b"", 0o120777, "file0"))]
    listed += [("xattr", add_file(b"x", xattrs=((b"user.a\0", b"b\0c"),)))]
    tree = add("dirtree", encode_dirtree(DirTree(sorted(listed), [("sub", inner, meta)])))
    commit = add("commit", encode_commit(Commit("", 1_500_000_000, tree, meta)))
    return Artifact(commit, objects)


def tar_of(members: Iterable[tuple[str, bytes]], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """As the clients make it; with PAX each member has an extended header, because its time is a fraction."""
    stream = io.BytesIO()
    with tarfile.open(mode="w", fileobj=stream, format=tar_format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mtime = 1_600_000_000.25 if tar_format == tarfile.PAX_FORMAT else 1_600_000_000
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def tar_with(member: tarfile.TarInfo, data: bytes, rest: bytes) -> bytes:
    """This member, and after it what is in ``rest``, a tar of its own."""
    begin = member.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)
    whole = begin + rest.rstrip(b"\0")
    whole += bytes(-len(whole) % 512) + bytes(1024)
    return whole + bytes(-len(whole) % 10240)


def conversation(commits: dict[str, str], tar: bytes, *, order: str = "little") -> bytes:
    """All that a pushing client sends."""
    wanted = {ref: (OLD, commit) for ref, commit in commits.items()}
    return b"".join(
        [
            frames.info(1, {}, order=order),
            frames.update(wanted, order=order),
            frames.putobjects(order=order),
            tar,
            frames.done(order=order),
        ]
    )


def push_of(artifact: Artifact, *refs: str, tar: bytes | None = None) -> bytes:
    """The push of an artifact under these refs."""
    tar = tar_of(artifact.members) if tar is None else tar
    return conversation(dict.fromkeys(refs or (REF, WEAK), artifact.commit), tar)


@dataclass(frozen=True)
class Ended:
    """What the client heard, and how the session ended."""

    messages: list[tuple[int, dict[str, object]]]
    failure: Exception | None
    said: list[str]

    @property
    def is_done(self) -> bool:
        return self.failure is None and [command for command, _ in self.messages][-1:] == [frames.DONE]

    @property
    def why(self) -> str:
        return str(self.failure)


def serve(repo: Path, data: bytes) -> Ended:
    """A session with a client that sends just this and goes away."""
    repository, said = open_repository(str(repo)), list[str]()
    heard, answers = os.memfd_create("heard"), os.memfd_create("answers")
    try:
        os.write(heard, data)
        os.lseek(heard, 0, os.SEEK_SET)
        session = Session(
            Incoming(heard),
            answers,
            repository,
            URL,
            lambda commits: Receiver(repository, commits, wall_clock, said.append),
            lambda _: None,
        )
        failure: Exception | None = None
        try:
            session.run()
        except Exception as why:
            failure = why
        os.lseek(answers, 0, os.SEEK_SET)
        return Ended(parsed(os.read(answers, 1 << 20)), failure, said)
    finally:
        os.close(heard)
        os.close(answers)


def parsed(data: bytes) -> list[tuple[int, dict[str, object]]]:
    """The messages in these bytes."""
    messages = []
    while data:
        order, command, size = frames.parse_header(data[:5])
        messages.append((command, frames.parse_body(command, data[5 : 5 + size], order)))
        data = data[5 + size :]
    return messages


def make_repo(path: Path, *, quota_bytes: int | None = None, reserve_bytes: int | None = None) -> Repository:
    repository, _ = make_repository(str(path), quota_bytes=quota_bytes, reserve_bytes=reserve_bytes)
    return repository


def everything(repo: Path) -> dict[str, bytes]:
    """Every file of a repository but the log of pushes, and what is in it."""
    files = {str(path.relative_to(repo)): path.read_bytes() for path in sorted(repo.rglob("*")) if path.is_file()}
    return {name: data for name, data in files.items() if not name.startswith("state/millpond/")}


def directories(repo: Path) -> set[str]:
    """Every directory but those of objects, which may stay when they are empty."""
    found = {str(path.relative_to(repo)) for path in repo.rglob("*") if path.is_dir()}
    return {name for name in found if not name.startswith(("objects/", "state/"))}


def listed(repo: Path) -> dict[str, str]:
    """What the summary says."""
    summary = current(str(repo))
    assert summary is not None
    return {ref: entry.commit for ref, entry in summary.refs.items()}


def refs(repo: Path) -> dict[str, str]:
    """What the refs say."""
    heads = repo / "refs" / "heads"
    return {str(path.relative_to(heads)): path.read_text().strip() for path in heads.rglob("*") if path.is_file()}
