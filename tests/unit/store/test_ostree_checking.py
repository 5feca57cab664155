"""``millpond ostree check``: everything that is wrong is found, and repaired so that nothing is wrong afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.ssh.pushing import everything, listed, make_artifact, make_repo, push_of, refs, serve

from millpond.core.clock import wall_clock
from millpond.store.ostree.checking import Checkup, Problem, entries
from millpond.store.ostree.repository import open_repository
from millpond.store.ostree.uses import Uses

ART, OTHER = make_artifact("art"), make_artifact("other")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    make_repo(tmp_path / "repo")
    for artifact, ref in ((ART, "p/art"), (OTHER, "p/other")):
        assert serve(tmp_path / "repo", push_of(artifact, ref)).is_done
    return tmp_path / "repo"


def check(repo: Path, *, repair: bool = False) -> list[Problem]:
    problems: list[Problem] = []
    checkup = Checkup(open_repository(str(repo)), problems.append, wall_clock, repair=repair)
    assert sum(checkup.read_objects()) == checkup.size_bytes
    checkup.settle()
    return problems


def place(repo: Path, name: str) -> Path:
    return repo / "objects" / name[:2] / name[2:]


def own(kind: str) -> str:
    """An object that only one of the two needs."""
    return next(name for name in ART.objects if name.endswith(kind) and name not in OTHER.objects)


def test_what_is_sound_is_sound_and_untouched(repo: Path) -> None:
    before = everything(repo)
    assert check(repo) == []
    assert everything(repo) == before


@pytest.mark.parametrize("kind", ["commit", "dirtree", "filez"])
@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "damaged"])
def test_an_object_that_is_gone_or_damaged_is_found_and_its_ref_dropped(repo: Path, kind: str, is_gone: bool) -> None:
    path = place(repo, own(kind))
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(b"rubbish")
    before = everything(repo)
    found = check(repo)
    assert any(one.thing == "ref p/art" for one in found)
    assert all(one.next_step for one in found)
    assert everything(repo) == before, "without --repair nothing changes"
    assert not any(one.next_step for one in check(repo, repair=True))
    assert refs(repo) == listed(repo) == {"p/other": OTHER.commit}
    assert check(repo) == []
    assert serve(repo, push_of(ART, "p/art")).is_done, "the next push brings it back"
    assert check(repo) == []


def test_a_summary_that_is_stale_damaged_or_gone_is_found_and_written_anew(repo: Path) -> None:
    old = (repo / "summary").read_bytes()
    (repo / "refs/heads/p/art").unlink()
    for content in (old, b"rubbish", None):
        if content is None:
            (repo / "summary").unlink()
        else:
            (repo / "summary").write_bytes(content)
        (problem,) = check(repo)
        assert problem.thing == "summary"
        check(repo, repair=True)
        assert listed(repo) == refs(repo) == {"p/other": OTHER.commit}


def test_a_ref_that_holds_no_commit_is_found_and_dropped(repo: Path) -> None:
    (repo / "refs/heads/p/rubbish").write_text("rubbish")
    assert [one.thing for one in check(repo)] == ["ref p/rubbish"]
    check(repo, repair=True)
    assert "p/rubbish" not in refs(repo)


def test_a_commit_that_no_ref_names_and_that_is_not_whole_is_found(repo: Path) -> None:
    """``ostree fsck`` would complain about it."""
    (repo / "refs/heads/p/art").unlink()
    place(repo, own("filez")).unlink()
    assert {one.thing for one in check(repo)} == {f"commit {ART.commit}", "summary"}
    check(repo, repair=True)
    assert not place(repo, f"{ART.commit}.commit").exists()
    assert check(repo) == []


def test_the_list_says_size_and_last_use_and_what_is_not_whole(repo: Path) -> None:
    Uses(str(repo)).note(ART.commit, wall_clock() + 10_000)
    place(repo, f"{OTHER.commit}.commit").unlink()
    art, other = entries(str(repo))
    assert (art.ref, art.commit, other.ref, other.size_bytes) == ("p/art", ART.commit, "p/other", None)
    assert art.size_bytes == 4096 * len(ART.objects)
    assert art.used_ms > art.pushed_ms
