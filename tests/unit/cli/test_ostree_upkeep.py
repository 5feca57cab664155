"""``millpond ostree init``, ``check``, ``list`` and ``prune``: what they do, what they print, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit.cli.test_check import millpond
from unit.ssh.pushing import listed, make_artifact, push_of, refs, serve

from millpond.store.ostree import evicting
from millpond.store.ostree.repository import open_repository

ART = make_artifact("art")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.setattr(evicting, "OSTREE_LEAVING_SECONDS", 0)
    assert millpond("ostree", "init", tmp_path / "repo") == 0
    assert serve(tmp_path / "repo", push_of(ART, "p/art")).is_done
    capsys.readouterr()
    return tmp_path / "repo"


def test_init_makes_a_repository_with_a_summary_and_a_reserve_and_no_quota(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert millpond("ostree", "init", tmp_path / "new") == 0
    assert "made" in capsys.readouterr().out
    settings = open_repository(str(tmp_path / "new")).settings
    assert settings.quota_bytes is None
    assert settings.reserve_bytes > 0
    assert settings.updates_summary
    assert listed(tmp_path / "new") == {}


def test_init_again_sets_a_quota_and_keeps_the_rest(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("ostree", "init", "--reserve", "0", repo) == 0
    assert millpond("ostree", "init", "--quota", "1G", repo) == 0
    assert "taken over" in capsys.readouterr().out
    settings = open_repository(str(repo)).settings
    assert (settings.quota_bytes, settings.reserve_bytes) == (10**9, 0)
    assert refs(repo) == listed(repo) == {"p/art": ART.commit}


def test_init_refuses_a_directory_with_something_else_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert millpond("ostree", "init", tmp_path) == 2
    assert millpond("ostree", "init", tmp_path / "file") == 2
    said = capsys.readouterr().err
    assert "not empty" in said
    assert said.count("\n") == 2
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("command", ["check", "list", "prune"])
def test_what_is_no_repository_is_one_sentence(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert millpond("ostree", command, tmp_path) == 2
    assert "no OSTree repository" in capsys.readouterr().err


def test_check_says_what_it_looked_at_and_what_was_wrong(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("ostree", "check", repo) == 0
    assert f"sound; {len(ART.objects)} objects" in capsys.readouterr().out
    name = ART.of("filez")
    (repo / "objects" / name[:2] / name[2:]).write_bytes(b"rubbish")
    assert millpond("ostree", "check", repo) == 1
    assert "next: millpond ostree check --repair" in capsys.readouterr().out
    assert millpond("ostree", "check", "--repair", "--json", repo) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["sound"]
    assert all(problem["repaired"] for problem in said["problems"])
    assert millpond("ostree", "check", "--json", repo) == 0
    assert json.loads(capsys.readouterr().out)["sound"]


def test_list_shows_every_ref_in_both_forms(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("ostree", "list", repo) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"p/art  {ART.commit}  ")
    assert "pushed" in line
    assert millpond("ostree", "list", "--json", repo) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["ref"], said["commit"], said["size_bytes"]) == ("p/art", ART.commit, 4096 * len(ART.objects))


def test_prune_says_what_went(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("ostree", "prune", repo) == 0
    assert "0 refs" in capsys.readouterr().out
    assert millpond("ostree", "prune", "--older-than", "1d", repo) == 0
    assert refs(repo) == {"p/art": ART.commit}
    capsys.readouterr()
    assert millpond("ostree", "prune", "--older-than", "0", "--json", repo) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["refs"], said["objects"]) == (["p/art"], len(ART.objects))
    assert refs(repo) == listed(repo) == {}


def test_prune_without_options_keeps_the_quota_of_the_repository(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (repo / "config").read_text()
    (repo / "config").write_text(config.rstrip("\n") + "\nquota-bytes=1\n")
    assert millpond("ostree", "prune", repo) == 0
    assert "p/art" in capsys.readouterr().out
    assert refs(repo) == {}
