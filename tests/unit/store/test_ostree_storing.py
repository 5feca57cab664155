"""Storing a push: whole or not at all, and the summary always says what the refs say."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.ssh.pushing import (
    REF,
    WEAK,
    directories,
    everything,
    listed,
    make_artifact,
    make_repo,
    push_of,
    refs,
    serve,
)

from millpond.core.errors import NoSpace, NotReady
from millpond.store.ostree import disk
from millpond.store.ostree.closure import closure, verify_stored
from millpond.store.ostree.making import make_repository
from millpond.store.ostree.places import UNFINISHED
from millpond.store.ostree.repository import open_repository

ART, OTHER = make_artifact("art"), make_artifact("other")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    make_repo(tmp_path / "repo")
    assert serve(tmp_path / "repo", push_of(OTHER, REF)).is_done
    return tmp_path / "repo"


class FullDisk:
    """From the ``after``-th change on, nothing can be written; deleting works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, repo: Path, code: int) -> None:
        self.after = 1 << 30
        self.changes = 0
        self._repo = str(repo)
        self._code = code
        for name in ("open", "write", "mkdir", "link", "rename"):
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *arguments: Any, **options: Any) -> Any:
            creates = name != "open" or (arguments and arguments[0] & os.O_CREAT)
            ours = isinstance(first, int) or str(first).startswith(self._repo)
            if creates and ours and (name != "write" or self._is_ours(first)):
                self.changes += 1
                replaces = name == "rename" and os.path.exists(arguments[0]) and self._code != errno.EIO
                if self.changes > self.after and not replaces:
                    raise OSError(self._code, os.strerror(self._code))
            return real(first, *arguments, **options)

        return call

    def _is_ours(self, descriptor: int) -> bool:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._repo)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_moment_leaves_all_or_nothing(
    repo: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patch:
        disk_ = FullDisk(patch, repo, code)
        assert serve(repo, push_of(OTHER, "project/measured")).is_done
        steps = disk_.changes
    assert steps > 20
    for after in range(0, 2 * steps, 1):
        before, places = everything(repo), directories(repo)
        with monkeypatch.context() as patch:
            disk_ = FullDisk(patch, repo, code)
            disk_.after = after
            ended = serve(repo, push_of(ART))
        if code == errno.EIO:  # not even what was done could be undone: whoever comes next puts it right
            open_repository(str(repo)).heal()
        assert refs(repo) == listed(repo)
        if ended.is_done:
            assert refs(repo)[REF] == ART.commit
            break
        assert isinstance(ended.failure, OSError | NoSpace | NotReady), ended
        if refs(repo)[REF] != ART.commit:
            assert everything(repo) == before, f"after {after} changes"
            assert directories(repo) == places
        for commit in refs(repo).values():
            assert closure(commit, lambda key: verify_stored(str(repo), key))
    else:
        pytest.fail("it never succeeded")


def test_what_a_failing_disk_is_called_names_no_path() -> None:
    assert isinstance(disk.refusal(OSError(errno.ENOSPC, "full", "/secret")), NoSpace)
    assert isinstance(disk.refusal(OSError(errno.EDQUOT, "quota", "/secret")), NoSpace)
    for code in (errno.EIO, errno.EROFS, errno.ENOSPC):
        assert "secret" not in str(disk.refusal(OSError(code, "x", "/secret")))


def test_objects_and_refs_are_for_everybody_to_read_whatever_the_umask(repo: Path) -> None:
    before = os.umask(0o077)
    try:
        assert serve(repo, push_of(ART)).is_done
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for top in ("objects", "refs") for path in (repo / top).rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {(repo / "objects").stat().st_mode & 0o777}
    assert (repo / "summary").stat().st_mode & 0o777 == 0o644


def test_whoever_comes_after_a_death_between_refs_and_summary_writes_the_summary(repo: Path) -> None:
    (repo / "refs/heads/project/late").write_text(OTHER.commit + "\n")
    (repo / UNFINISHED).touch()
    assert refs(repo) != listed(repo)
    open_repository(str(repo)).heal()
    assert refs(repo) == listed(repo)
    assert not (repo / UNFINISHED).exists()


def test_healing_does_not_wait_for_the_lock(repo: Path) -> None:
    (repo / "summary").unlink()
    repository = open_repository(str(repo))
    with repository.lock():
        repository.heal()
        assert not (repo / "summary").exists()
    repository.heal()
    assert refs(repo) == listed(repo)


def test_a_ref_whose_commit_is_gone_is_not_listed(repo: Path) -> None:
    (repo / "refs/heads/broken").write_text("d" * 64 + "\n")
    (repo / "refs/heads/rubbish").write_text("rubbish\n")
    assert serve(repo, push_of(ART, WEAK)).is_done
    assert set(listed(repo)) == {REF, WEAK}


def test_a_signature_of_the_old_summary_goes_with_it(repo: Path) -> None:
    (repo / "summary.sig").write_bytes(b"of the old one")
    assert serve(repo, push_of(ART)).is_done
    assert not (repo / "summary.sig").exists()


def test_a_directory_that_libostree_left_empty_may_become_a_ref(repo: Path) -> None:
    (repo / "refs/heads/project/element/deep/er").mkdir(parents=True)
    assert serve(repo, push_of(ART, "project/element/deep")).is_done
    assert refs(repo)["project/element/deep"] == ART.commit


# -- repositories of others -------------------------------------------------------------------------------------------


def test_a_repository_that_the_old_receiver_filled_is_taken_over_by_the_first_push(repo: Path) -> None:
    """No section of ours, no state of ours, a summary that was last written by cron, a staging directory of old."""
    (repo / "config").write_text('# mine\n[core]\nrepo_version=1\nmode=archive-z2\n\n[remote "x"]\nurl=http://x\n')
    for path in sorted((repo / "state/millpond").iterdir()):
        path.unlink()
    (repo / "state/millpond").rmdir()
    (repo / "refs/heads/project/pushed-since").write_text(OTHER.commit + "\n")
    assert serve(repo, push_of(ART, WEAK)).is_done
    assert listed(repo) == refs(repo) == {REF: OTHER.commit, WEAK: ART.commit, "project/pushed-since": OTHER.commit}
    config = (repo / "config").read_text()
    assert config.startswith("# mine\n[core]\nrepo_version=1\nmode=archive-z2\nauto-update-summary=true\n\n[remote")


def test_an_administrator_who_wants_no_summary_after_commits_is_heeded(repo: Path) -> None:
    text = "[core]\nrepo_version=1\nmode=archive-z2\nauto-update-summary=false\n"
    (repo / "config").write_text(text)
    assert serve(repo, push_of(ART, WEAK)).is_done
    assert (repo / "config").read_text() == text


def test_making_a_repository_twice_keeps_what_is_in_it(repo: Path) -> None:
    before = refs(repo)
    repository, is_new = make_repository(str(repo), quota_bytes=10**9, reserve_bytes=None)
    assert not is_new
    assert (repository.settings.quota_bytes, repository.settings.reserve_bytes) == (10**9, 0)
    repository, _ = make_repository(str(repo), quota_bytes=None, reserve_bytes=5)
    assert (repository.settings.quota_bytes, repository.settings.reserve_bytes) == (10**9, 5)
    assert refs(repo) == listed(repo) == before
