"""Asking before names are removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from millpond.cli.main import millpond
from millpond.cli.removing import removed
from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.opening_names import open_names
from millpond.store.repository.opening import open_repository

URN = "urn:fdc:buildstream.build:2020:source:"


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with two names, which nobody has open."""
    repository = open_repository(tmp_path / "repo", quota_bytes=lambda _: 10_000_000)
    names = open_names(repository.layout)
    bound = [(Name("", Namespace.ASSET_BLOB, f"{URN}git/{i}"), Binding(Digest.of(b"x"), 1)) for i in range(2)]
    names.bind(bound)
    names.close()
    repository.close()
    return tmp_path / "repo"


def left(repo: Path) -> int:
    said = CliRunner().invoke(millpond, ["names", "list", str(repo)])
    return len(said.output.splitlines())


@pytest.mark.parametrize(("answer", "status", "stay"), [("n\n", 1, 2), ("\n", 1, 2), ("y\n", 0, 0)])
def test_nothing_is_removed_that_was_not_confirmed(repo: Path, answer: str, status: int, stay: int) -> None:
    with CliRunner().isolation(input=answer) as streams:
        assert removed(repo, ["git/*"], purge=False, ask=True) == status
        question = streams[1].getvalue().decode()
    assert "source git/0" in question
    assert "Remove (2 names)?" in question
    assert left(repo) == stay


def test_a_single_name_and_a_script_are_not_asked(repo: Path) -> None:
    said = CliRunner().invoke(millpond, ["names", "remove", str(repo), "git/0"])
    assert said.output.splitlines()[0] == "removed source git/0"
    assert CliRunner().invoke(millpond, ["names", "remove", str(repo), "git/*"], input="n\n").output == (
        "removed source git/1\n"
    )
    assert left(repo) == 0
