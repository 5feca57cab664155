"""An OSTree repository survives ``kill -9`` before any change that a push, a prune or a summary makes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.ostree_receiver import assert_true, ended, old_repo, receiver, write_push
from system.ostree_repo import ostree
from unit.ssh.pushing import REF, WEAK, listed, make_artifact, refs

from millpond.store.ostree.closure import closure, verify_stored
from millpond.store.ostree.repository import open_repository

TESTS = Path(__file__).resolve().parents[1]
ART = make_artifact("killed", files=2)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return old_repo(tmp_path / "repo")


def killed(number: int, what: str, repo: Path, heard: Path) -> bool:
    """Do it, killed before this change; whether there was one."""
    with heard.open("rb") as stdin:
        command = [sys.executable, "-m", "faults.ostree_killed", str(number), what, str(repo)]
        run = subprocess.run(command, stdin=stdin, capture_output=True, cwd=TESTS, timeout=120, check=False)
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode != 0


def moments(what: str, repo: Path, heard: Path, *, stride: int) -> Iterator[tuple[int, Path]]:
    """A copy of the repository for each moment, after the kill."""
    number = 1
    while True:
        copy = repo.with_name(f"copy{number}")
        shutil.copytree(repo, copy, symlinks=True)
        if not killed(number, what, copy, heard):
            return
        yield number, copy
        shutil.rmtree(copy)
        number += stride


def assert_survived(repo: Path) -> None:
    """Right after the kill: all that is listed can be pulled. After whoever comes next: refs and summary say the same."""
    assert "no errors found" in ostree("fsck", repo=repo).stdout
    for commit in listed(repo).values():
        assert closure(commit, lambda key: verify_stored(str(repo), key))
    open_repository(str(repo)).heal()
    assert refs(repo) == listed(repo)


def test_a_push_that_is_killed_leaves_a_repository_that_serves_and_takes_the_push_again(
    repo: Path, tmp_path: Path
) -> None:
    heard = write_push(tmp_path / "push", ART, REF, WEAK)
    seen = set()
    for number, copy in moments("push", repo, heard, stride=1):
        assert_survived(copy)
        seen.add(frozenset(refs(copy)) - {"project/first"})
        if number % 10 == 0:
            status, _, said = ended(receiver(copy, heard))
            assert status == 0, said
            assert_true(copy)
            assert not list((copy / "tmp").glob("millpond-*")), "what the killed one left is gone"
    assert seen == {frozenset(), frozenset({REF}), frozenset({REF, WEAK})}


def test_a_prune_that_is_killed_leaves_a_repository_that_serves(repo: Path, tmp_path: Path) -> None:
    heard = write_push(tmp_path / "push", ART, REF, WEAK)
    assert ended(receiver(repo, heard))[0] == 0
    for number, copy in moments("prune", repo, heard, stride=2):
        assert_survived(copy)
        if number % 9 == 0:
            assert not killed(1 << 30, "prune", copy, heard), "the next prune finishes it"
            assert refs(copy) == listed(copy) == {}
            assert not list((copy / "objects").rglob("*.*"))


def test_a_summary_that_is_killed_half_way_is_the_old_one_or_the_new_one(repo: Path, tmp_path: Path) -> None:
    heard = write_push(tmp_path / "push", ART, REF)
    for number, copy in moments("summary", repo, heard, stride=1):
        assert_survived(copy)
        assert number < 50
