"""Our summary beside the one that the real ``ostree`` writes of the same refs."""

from __future__ import annotations

from pathlib import Path

from system.ostree_repo import commit, init, ostree

from millpond.protocol.ostree.summary import decode_summary
from millpond.store.ostree.repository import open_repository


def test_the_summary_says_what_ostree_would_say_of_the_same_refs(tmp_path: Path) -> None:
    """In the same order, with the same sizes and times; aliases are listed, refs of remotes and mirrors are not."""
    repo = init(tmp_path / "repo")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("x")
    first = commit(repo, tmp_path / "tree", "z/1", "a/b-c/d", "A.x", "a-b", "a/b", "a_b")
    (tmp_path / "tree" / "other").write_text("y")
    commit(repo, tmp_path / "tree", "m/2")
    ostree("refs", "--alias", "--create=alias", "A.x", repo=repo)
    for other in ("remotes/origin/x", "mirrors/org.test/x"):
        path = repo / "refs" / other
        path.parent.mkdir(parents=True)
        path.write_text(first + "\n")
    ostree("summary", "-u", repo=repo)
    theirs = decode_summary((repo / "summary").read_bytes())
    ours = open_repository(str(repo))
    with ours.lock():
        ours.rewrite_summary()
    mine = decode_summary((repo / "summary").read_bytes())
    assert list(mine.refs.items()) == list(theirs.refs.items())
    assert len(mine.refs) == 8
    assert abs(mine.modified - theirs.modified) < 600
    assert mine.has_tombstones == theirs.has_tombstones
    assert b"indexed-deltas" not in (repo / "summary").read_bytes()
    assert ostree("summary", "--view", repo=repo).stdout.count("Latest Commit") == 8
