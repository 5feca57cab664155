"""Nothing but the published files of a repository can be opened, by whatever path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from millpond.core import limits
from millpond.store.ostree.published import Published

HEX = "0123456789abcdef" * 4
COMMIT = f"objects/{HEX[:2]}/{HEX[2:]}.commit"
DELTA = "deltas/ab/" + "c" * 41 + "-" + "d" * 43 + "/superblock"
INDEX = "delta-indexes/ab/" + "c" * 41 + ".index"
PUBLISHED = {
    "summary": b"summary",
    "summary.sig": b"signature",
    "refs/heads/project/element.bst/" + HEX: HEX.encode() + b"\n",
    COMMIT: b"commit",
    COMMIT.replace(".commit", ".filez"): b"",
    DELTA: b"delta",
    INDEX: b"index",
}
SECRET = {
    "state/secret": b"secret",
    "tmp/staged": b"secret",
    ".lock": b"secret",
    "extensions/x": b"secret",
    "refs/remotes/origin/x": b"secret",
    "objects/secret": b"secret",
    f"objects/{HEX[:2]}/{HEX[2:]}.secret": b"secret",
}
CONFIG = b"""[core]
repo_version=1
mode=archive-z2

[remote "elsewhere"]
url=https://user:secret@example.org
"""


def make(root: Path) -> Path:
    for path, content in (PUBLISHED | SECRET | {"config": CONFIG}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(b"secret")
    return make(tmp_path / "repo")


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return make(tmp_path_factory.mktemp("published") / "repo")


def content(root: Path, path: str) -> bytes | None:
    file = Published(str(root)).open(path)
    if file is None:
        return None
    try:
        return file.read(0, file.size_bytes)
    finally:
        file.close()


@pytest.mark.parametrize("path", PUBLISHED)
def test_what_belongs_to_a_repository_is_published(root: Path, path: str) -> None:
    assert content(root, path) == PUBLISHED[path]


@pytest.mark.parametrize("path", SECRET)
def test_what_else_lies_there_is_not(root: Path, path: str) -> None:
    assert content(root, path) is None


def test_of_the_configuration_only_what_clients_need_is_published(root: Path) -> None:
    assert content(root, "config") == b"[core]\nrepo_version=1\nmode=archive-z2\n\n"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        ".",
        "..",
        "../outside",
        "refs/heads/../../../outside",
        "refs/heads/a/../b",
        "refs/heads/",
        "refs/heads",
        "refs/heads/project",
        "refs/heads//project",
        "/etc/passwd",
        "//etc/passwd",
        "objects",
        "objects/",
        f"objects/{HEX[:2]}",
        COMMIT.upper(),
        COMMIT + "/",
        "/" + COMMIT,
        COMMIT.replace("/", "//"),
        COMMIT.replace("/", "\\"),
        COMMIT + "\0",
        COMMIT + "\n",
        "summary\0.sig",
        "summary\n",
        "refs/heads/.hidden",
        "refs/heads/-dash",
        "refs/heads/ä",
        "refs/heads/" + "a/" * 600 + "a",
        "refs/heads/" + "a" * 300,
    ],
)
def test_no_other_path_leads_anywhere(root: Path, path: str) -> None:
    assert content(root, path) is None


@pytest.mark.parametrize("where", ["refs/heads/link", COMMIT, "summary"])
def test_a_symbolic_link_is_not_followed(root: Path, where: str) -> None:
    (root / where).unlink(missing_ok=True)
    (root / where).symlink_to("../" * where.count("/") + "../outside")
    assert content(root, where) is None
    assert (root / where).read_bytes() == b"secret"  # it would have led there


def test_a_symbolic_link_on_the_way_is_not_followed(root: Path, tmp_path: Path) -> None:
    os.rename(root / "refs", tmp_path / "refs")
    (root / "refs").symlink_to(tmp_path / "refs")
    assert content(root, "refs/heads/project/element.bst/" + HEX) is None


def test_the_repository_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "artifacts").symlink_to(root)
    assert content(tmp_path / "artifacts", "summary") == b"summary"


def test_what_is_no_regular_file_is_not_there_and_nobody_waits_for_it(root: Path) -> None:
    os.mkfifo(root / "refs/heads/fifo")
    (root / "refs/heads/directory").mkdir()
    assert content(root, "refs/heads/fifo") is None
    assert content(root, "refs/heads/directory") is None


def test_a_large_file_is_read_where_it_is_asked_for(root: Path) -> None:
    data = os.urandom(limits.HTTP_CHUNK_BYTES + 1)
    (root / COMMIT).write_bytes(data)
    file = Published(str(root)).open(COMMIT)
    assert file is not None
    assert file.content is None
    assert file.read(5, 10) == data[5:15]
    assert file.read(limits.HTTP_CHUNK_BYTES, 10) == data[-1:]
    file.close()


def test_what_is_open_stays_what_it_was_and_its_version_tells_it_from_the_next(root: Path) -> None:
    published = Published(str(root))
    before = published.open("summary")
    (root / "new").write_bytes(b"another")
    os.replace(root / "new", root / "summary")
    after = published.open("summary")
    assert before is not None
    assert after is not None
    assert (before.read(0, 100), after.read(0, 100)) == (b"summary", b"another")
    assert before.version != after.version


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["..", ".", "", "refs", "heads", "objects", "config", "state", "\0", "secret", "outside", HEX])
    )
)
@example(["", "etc", "passwd"])
def test_no_path_leads_to_what_is_secret(shared_root: Path, parts: list[str]) -> None:
    assert b"secret" not in (content(shared_root, "/".join(parts)) or b"")
