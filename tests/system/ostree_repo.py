"""Real OSTree repositories, made and judged by Debian's ``ostree``: what clients of BuildStream 1.0 and 1.1 had."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from system.file_tree import manifest
from system.parts import require

SECONDS = 300
LARGE_BYTES = 100 * 1024 * 1024


def ostree(*arguments: str | Path, repo: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one ``ostree`` command; it has to succeed unless ``ok`` is False."""
    require("ostree")
    verb, *rest = map(str, arguments)
    command = ["ostree", verb, f"--repo={repo}", *rest]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert not ok or ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"
    return ended


def init(repo: Path, mode: str = "archive-z2") -> Path:
    """A new repository, as ``ostree`` makes it."""
    repo.mkdir(parents=True, exist_ok=True)
    ostree("init", f"--mode={mode}", repo=repo)
    return repo


def commit(repo: Path, tree: Path, *refs: str) -> str:
    """Commit ``tree`` as BuildStream did, without parent and bindings, under all of ``refs``; the checksum."""
    made = ostree(
        "commit", "--orphan", "--no-bindings", f"--tree=dir={tree}", "--timestamp=2018-05-04T03:02:01Z", repo=repo
    )
    checksum = made.stdout.strip()
    for ref in refs:
        ostree("refs", "--force", f"--create={ref}", checksum, repo=repo)
    return checksum


def refs_of(repo: Path) -> dict[str, str]:
    """All refs and their commits."""
    names = ostree("refs", repo=repo).stdout.split()
    return {name: ostree("rev-parse", name, repo=repo).stdout.strip() for name in names}


def summary_of(repo: Path) -> dict[str, str]:
    """What the summary says: refs and commits, as ``ostree summary --view`` reads it."""
    listed: dict[str, str] = {}
    name = ""
    for line in ostree("summary", "--view", repo=repo).stdout.splitlines():
        if line.startswith("* "):
            name = line[2:]
        elif name and line.strip() and len(line.strip()) == 64:
            listed[name] = line.strip()
    return listed


def closure(repo: Path, refs: Iterable[str], into: Path) -> list[Path]:
    """The objects of some refs, as files of an archive: what a pushing client sends."""
    init(into)
    ostree("pull-local", repo, *refs, repo=into)
    return sorted(path for path in (into / "objects").rglob("*") if path.is_file() and path.suffix != ".commitpartial")


def assert_sound(repo: Path) -> None:
    """``ostree fsck`` finds nothing, and the summary says what the refs say."""
    checked = ostree("fsck", repo=repo)
    assert "no errors found" in checked.stdout, checked.stdout + checked.stderr
    assert summary_of(repo) == refs_of(repo)


class Puller:
    """A client's own repository with one remote, from which it pulls as BuildStream does: mirroring, one ref at a time."""

    def __init__(self, repo: Path, url: str, *settings: str) -> None:
        self.repo = init(repo, "bare-user")
        options = [f"--set={setting}" for setting in settings]
        ostree("remote", "add", "--no-gpg-verify", *options, "cache", url, repo=repo)

    def pull(self, ref: str, *, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return ostree("pull", "--mirror", "cache", ref, repo=self.repo, ok=ok)

    def remote_refs(self) -> set[str]:
        """What the summary of the remote lists, which is all that BuildStream believes."""
        return set(ostree("remote", "refs", "cache", repo=self.repo).stdout.replace("cache:", "").split())

    def checkout(self, ref: str, into: Path) -> dict[str, str]:
        """Pull nothing, check out what is there; what came of it."""
        ostree("fsck", repo=self.repo)
        ostree("checkout", "--user-mode", ref, into, repo=self.repo)
        return manifest(into)


@dataclass(frozen=True, slots=True)
class Product:
    """Something built long ago: a repository of its own with two refs to one commit, and the tree that is in it."""

    repo: Path
    tree: Path
    refs: tuple[str, ...]
    commit: str

    @property
    def manifest(self) -> dict[str, str]:
        return manifest(self.tree)


def write_tree(root: Path, *, large_bytes: int = 0, seed: int = 0) -> Path:
    """Every kind of thing that an artifact of those days could hold."""
    rng = random.Random(seed)
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "empty-directory").mkdir()
    (root / "usr" / "bin" / "program").write_text(f"#!/bin/sh\necho {seed}\n")
    (root / "usr" / "bin" / "program").chmod(0o755)
    (root / "usr" / "bin" / "link").symlink_to("program")
    (root / "usr" / "dangling").symlink_to("/nowhere/at/all")
    (root / "usr" / "empty").touch()
    (root / "usr" / "name with spaces, ü").write_bytes(rng.randbytes(1000))
    labelled = root / "usr" / "labelled"
    labelled.write_bytes(rng.randbytes(70_000))
    os.setxattr(labelled, "user.label", b"kept\0whole")
    for number in range(50):
        (root / "usr" / f"file{number}").write_bytes(rng.randbytes(rng.randrange(2000)))
    if large_bytes:
        part = rng.randbytes(1 << 20)
        with (root / "usr" / "large").open("wb") as file:
            for number in range(large_bytes >> 20):
                file.write(number.to_bytes(8, "big") + part[8:])
    return root


def make_product(directory: Path, name: str, *, large_bytes: int = 0, seed: int = 0) -> Product:
    """A product whose refs are ``project/NAME/KEY``, the strong and the weak key."""
    keys = [f"{seed * 2 + number:064x}" for number in (1, 2)]
    refs = tuple(f"project/{name}/{key}" for key in keys)
    tree = write_tree(directory / f"{name}-tree", large_bytes=large_bytes, seed=seed)
    repo = init(directory / f"{name}-repo")
    return Product(repo, tree, refs, commit(repo, tree, *refs))
