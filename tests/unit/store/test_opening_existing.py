"""Commands open a repository as it is: they make nothing, tidy nothing, and believe no index that a server would not."""

import json
import os
import shutil
from pathlib import Path

import pytest
from unit.store.repositories import OtherProcess, Repository, blob

from millpond.core.errors import RefusedToStart
from millpond.disk import locks
from millpond.store.repository import opening
from millpond.store.repository.opening import IndexNotTrusted, forget_index, open_existing


def contents(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


@pytest.fixture
def closed(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repo")
    repository.open()
    repository.store.put_many([blob("kept")])
    repository.close()
    return repository


def entries(path: Path) -> int:
    opened = open_existing(path)
    try:
        with opened.index.reading() as txn:
            count: int = txn.stat(opened.index.blobs)["entries"]
        return count
    finally:
        opened.close()


def test_where_there_is_none_nothing_is_made(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        for open_it in (open_existing, forget_index):
            with pytest.raises(RefusedToStart, match="holds no repository"):
                open_it(path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_left(closed: Repository) -> None:
    (closed.path / "segments" / "00000fff.seg").write_bytes(b"unlisted")
    (closed.path / "uploads" / "a-b").write_bytes(b"left")
    before = contents(closed.path)
    assert entries(closed.path) == 1
    assert contents(closed.path) == before
    closed.open()
    closed.close()
    assert not (closed.path / "uploads" / "a-b").exists()


def test_it_is_open_beside_a_server_and_after_it(closed: Repository) -> None:
    server = OtherProcess(closed.path)
    server.put_many([blob("more")])
    assert entries(closed.path) == 2
    beside = open_existing(closed.path)
    server.end()
    beside.close()
    assert entries(closed.path) == 2


def test_the_last_to_leave_vouches_for_the_index(closed: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    server = OtherProcess(closed.path)
    server.find_missing([])
    beside = open_existing(closed.path)
    server.end()
    beside.close()
    monkeypatch.setattr(opening.filesystem, "boot_id", lambda: "another boot")
    assert entries(closed.path) == 1


def test_an_index_that_nobody_vouches_for_is_told_and_left(closed: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = closed.copy(closed.path.parent / "copy")
    state = open_existing(closed.path)  # as if it ran while the copy was taken
    os.unlink(copy.path / "index" / "data.mdb")
    (copy.path / "index" / "data.mdb").write_bytes((closed.path / "index" / "data.mdb").read_bytes())
    state.close()
    before = (copy.path / "index" / "data.mdb").read_bytes()
    with pytest.raises(IndexNotTrusted, match="check --rebuild"):
        open_existing(copy.path)
    assert (copy.path / "index" / "data.mdb").read_bytes() == before
    copy.open()
    copy.close()
    assert entries(copy.path) == 1


def test_an_index_is_forgotten_only_while_nobody_has_it_open(closed: Repository) -> None:
    closed.open()
    with pytest.raises(RefusedToStart, match="is in use: stop its servers first"):
        forget_index(closed.path)
    closed.close()
    forget_index(closed.path)
    with pytest.raises(IndexNotTrusted):
        open_existing(closed.path)
    closed.open()
    closed.close()
    assert entries(closed.path) == 1


def test_root_leaves_nothing_of_its_own_in_another_users_repository(
    closed: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.stat(closed.path).st_uid
    monkeypatch.setattr(opening.os, "geteuid", lambda: 0)
    os_stat = os.stat

    def stat(path: object, **how: object) -> object:
        found = os_stat(path, **how)  # type: ignore[call-overload]
        return os.stat_result([*found[:4], owner + 4321, *found[5:]]) if path == closed.path else found

    monkeypatch.setattr(opening.os, "stat", stat)
    for open_it in (open_existing, forget_index):
        with pytest.raises(RefusedToStart, match=f"belongs to user {owner + 4321}: run this as that user"):
            open_it(closed.path)


def test_another_users_servers_are_named(closed: Repository) -> None:
    closed.open()
    inhabitants = closed.path / "open.lock"
    inhabitants.write_text(json.dumps({**json.loads(inhabitants.read_text()), "user": -1}))
    with pytest.raises(RefusedToStart, match="of another user"):
        open_existing(closed.path)
    descriptor = locks.open_lock_file(str(inhabitants))
    assert not locks.try_lock(descriptor, exclusive=True)
    os.close(descriptor)
    closed.close()


def test_a_backup_without_an_index_gets_one(closed: Repository) -> None:
    for part in ("index", "uses", "uploads", "touch"):
        shutil.rmtree(closed.path / part, ignore_errors=True)
    with pytest.raises(IndexNotTrusted):
        open_existing(closed.path)
    forget_index(closed.path)
    closed.open()
    closed.close()
    assert entries(closed.path) == 1
