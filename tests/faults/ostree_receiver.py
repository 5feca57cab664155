"""Real receivers and real ``ostree`` at work on one repository, as processes that may be killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from system.ostree_repo import assert_sound, ostree
from system.parts import require
from unit.ssh.pushing import URL, Artifact, make_artifact, push_of, refs, serve

SECONDS = 120


def receiver(repo: Path, data: Path) -> subprocess.Popen[bytes]:
    """A receiver that hears what is in a file."""
    with data.open("rb") as heard:
        return subprocess.Popen(
            [sys.executable, "-m", "millpond.ssh.receive", "--pull-url", URL, str(repo)],
            stdin=heard,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def command(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """Something that is done to the repository at the same time."""
    return subprocess.Popen(list(map(str, arguments)), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    """Status, output, and what it said."""
    out, said = process.communicate(timeout=SECONDS)
    return process.returncode, out, said.decode(errors="replace")


def write_push(path: Path, artifact: Artifact, *names: str) -> Path:
    path.write_bytes(push_of(artifact, *names))
    return path


def old_repo(path: Path) -> Path:
    """A repository as ``ostree`` makes it, with something in it."""
    require("ostree")
    path.mkdir()
    ostree("init", "--mode=archive-z2", repo=path)
    assert serve(path, push_of(make_artifact("first"), "project/first")).is_done
    return path


def assert_true(repo: Path) -> None:
    """``ostree fsck`` finds nothing; refs and summary say the same."""
    assert_sound(repo)
    assert refs(repo)
