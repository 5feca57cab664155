"""What every reader of an old store promises, whatever server wrote it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.importing.old_stores import KEY, KINDS, NOW_S, Bst1, Casd, OldStore
from unit.store.repositories import noise

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import RefusedToStart
from millpond.importing.interface import Left, Reason
from millpond.importing.interface import OldStore as Reader
from millpond.importing.opening import Kind, open_old_store

NAME = f"project/element/{KEY}"


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> OldStore:
    made: OldStore = request.param(tmp_path / "old")
    return made


@pytest.fixture
def reader(old: OldStore) -> Iterator[Reader]:
    reader = open_old_store(Kind(old.kind), str(old.root))
    yield reader
    reader.close()


def why(reader: Reader, digest: Digest) -> Reason:
    with pytest.raises(Left) as left:
        list(reader.chunks(digest))
    return left.value.reason


def test_a_store_without_names_has_none(reader: Reader) -> None:
    assert list(reader.entries()) == []
    assert list(reader.blobs()) == []


def test_a_name_says_what_it_stands_for_and_when_it_was_used(old: OldStore, reader: Reader) -> None:
    root = old.tree("a")
    old.name(NAME, root, used_s=NOW_S)
    (entry,) = reader.entries()
    assert entry.used_ms == NOW_S * 1000
    name = reader.read(entry)
    assert (name.namespace, name.uri) == (old.bound(NAME).namespace, old.bound(NAME).key)
    assert name.digest == root or (name.message is not None and name.digest == Digest.of(name.message))


def test_a_blob_comes_in_pieces_that_fit_in_memory(old: OldStore, reader: Reader) -> None:
    data = noise(2 * limits.CHUNK_BYTES + 7)
    digest = old.blob(data)
    pieces = list(reader.chunks(digest))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= limits.CHUNK_BYTES
    assert reader.size_bytes(digest) == len(data)


def test_the_empty_blob_is_read_like_any_other(old: OldStore, reader: Reader) -> None:
    assert list(reader.chunks(old.blob(b""))) == []


def test_what_is_not_there_is_told(old: OldStore, reader: Reader) -> None:
    digest = Digest.of(b"never")
    assert reader.size_bytes(digest) is None
    assert why(reader, digest) is Reason.VANISHED


def test_a_file_of_another_size_is_damage(old: OldStore, reader: Reader) -> None:
    digest = old.blob(b"0123456789")
    old.path_of(digest).write_bytes(b"01234")
    assert reader.size_bytes(digest) == 5
    assert why(reader, digest) is Reason.DAMAGED


def test_a_blob_that_leads_elsewhere_is_not_followed(old: OldStore, reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    digest = Digest.of(b"secret")
    old.path_of(digest).parent.mkdir()
    old.path_of(digest).symlink_to(tmp_path / "secret")
    assert reader.size_bytes(digest) is None
    assert why(reader, digest) is Reason.ODD


def test_a_directory_of_blobs_that_leads_elsewhere_is_not_followed(
    old: OldStore, reader: Reader, tmp_path: Path
) -> None:
    digest = old.blob(b"elsewhere")
    old.path_of(digest).parent.rename(tmp_path / "moved")
    old.path_of(digest).parent.symlink_to(tmp_path / "moved")
    assert reader.size_bytes(digest) is None
    assert why(reader, digest) is Reason.ODD


def test_a_pipe_in_the_place_of_a_blob_holds_nobody_up(old: OldStore, reader: Reader) -> None:
    digest = Digest.of(b"pipe")
    old.path_of(digest).parent.mkdir()
    os.mkfifo(old.path_of(digest))
    assert reader.size_bytes(digest) is None
    assert why(reader, digest) is Reason.ODD


def test_all_blobs_are_listed_with_their_times_and_nothing_else(old: OldStore, reader: Reader) -> None:
    digest = old.blob(b"content")
    os.utime(old.path_of(digest), (NOW_S, NOW_S))
    (old.root / "cas/objects/stray").write_bytes(b"not a blob")
    (old.root / "cas/objects" / digest.hash[:2] / "short").write_bytes(b"not a blob")
    assert list(reader.blobs()) == [(digest, NOW_S * 1000)]


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"\n\x04text", bytes(10_000_000)], ids=len)
def test_a_file_that_says_nothing_is_garbage(old: OldStore, reader: Reader, content: bytes) -> None:
    old.name(NAME, old.tree("a")).write_bytes(content)
    (entry,) = reader.entries()
    with pytest.raises(Left) as left:
        reader.read(entry)
    assert left.value.reason is Reason.GARBAGE


def test_a_name_that_goes_between_listing_and_reading_has_vanished(old: OldStore, reader: Reader) -> None:
    path = old.name(NAME, old.tree("a"))
    (entry,) = reader.entries()
    path.unlink()
    with pytest.raises(Left) as left:
        reader.read(entry)
    assert left.value.reason is Reason.VANISHED


def test_links_and_pipes_among_names_are_odd_and_followed_nowhere(
    old: OldStore, reader: Reader, tmp_path: Path
) -> None:
    path = old.name(NAME, old.tree("a"))
    content = path.read_bytes()
    path.unlink()
    (tmp_path / "outside").write_bytes(content)
    path.symlink_to(tmp_path / "outside")
    (path.parent / "loop").symlink_to(path.parent)
    os.mkfifo(path.parent / "pipe")
    assert [entry.trouble for entry in reader.entries()] == [Reason.ODD] * 3


def test_names_that_are_no_text_are_told_in_text(old: OldStore, reader: Reader) -> None:
    path = old.name(NAME, old.tree("a"))
    os.rename(path, os.path.join(os.fsencode(path.parent), b"\xff\n"))
    (entry,) = reader.entries()
    assert entry.trouble is Reason.ODD
    assert entry.path.isprintable()
    assert entry.path.endswith("\\xff\\n")


def test_a_tree_of_names_without_end_is_not_followed_for_ever(old: OldStore, reader: Reader) -> None:
    path = old.name(NAME, old.tree("a"))
    deep = path.parent.joinpath(*["d"] * 200)
    deep.mkdir(parents=True)
    (deep / "name").write_bytes(b"")
    assert sorted(entry.trouble or "" for entry in reader.entries()) == ["", Reason.ODD]


def test_reading_leaves_the_times_of_the_old_store_alone(old: OldStore, reader: Reader) -> None:
    digest = old.blob(b"content")
    path = old.name(NAME, old.tree("a"))
    for one in (path, old.path_of(digest)):
        os.utime(one, (NOW_S - 10, NOW_S))
    list(reader.chunks(digest))
    (entry,) = reader.entries()
    reader.read(entry)
    for one in (path, old.path_of(digest)):
        assert (one.stat().st_atime, one.stat().st_mtime) == (NOW_S - 10, NOW_S)


def test_who_may_not_leave_times_alone_reads_all_the_same(
    old: OldStore, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the owner of a file, and root, may say O_NOATIME (open(2))."""
    digest = old.blob(b"content")
    opened = os.open

    def not_mine(path: str, flags: int, *arguments: int, **more: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(1, "Operation not permitted")
        return opened(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", not_mine)
    assert b"".join(reader.chunks(digest)) == b"content"


def test_a_directory_that_may_not_be_read_is_told_and_the_others_are_listed(
    old: OldStore, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the file system is made to refuse."""
    closed = old.name("project/element/closed", old.tree("a")).parent
    opened = os.open

    def refusing(path: str, *arguments: Any, **more: Any) -> int:
        if path == closed.name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)

    old.name("other/thing/open", old.tree("b"))
    before = sum(entry.trouble is None for entry in reader.entries())
    monkeypatch.setattr(os, "open", refusing)
    entries = list(reader.entries())
    assert [entry.trouble for entry in entries if entry.trouble] == [Reason.UNREADABLE]
    assert 0 < sum(entry.trouble is None for entry in entries) < before


def test_a_closed_reader_may_be_closed_again(reader: Reader) -> None:
    reader.close()


@pytest.mark.parametrize("missing", ["cas/objects", "names"])
def test_what_is_no_such_store_is_refused_with_what_was_expected(old: OldStore, missing: str) -> None:
    for directory in ["cas/objects"] if missing == "cas/objects" else old.directories:
        os.removedirs(old.root / directory)
    with pytest.raises(RefusedToStart, match="there is no directory") as refused:
        open_old_store(Kind(old.kind), str(old.root))
    assert f"{old.root} is not the store of" in str(refused.value)


def test_another_kind_of_store_is_called_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RefusedToStart, match=r"looks like the store of buildbox-casd: try millpond import casd$"):
        open_old_store(Kind.BST1, str(Casd(tmp_path / "casd").root))
    with pytest.raises(RefusedToStart, match=r"try millpond import bst1$"):
        open_old_store(Kind.BST19, str(Bst1(tmp_path / "bst1").root))
    with pytest.raises(RefusedToStart, match="name the directory above it"):
        open_old_store(Kind.BST1, str(tmp_path / "bst1" / "cas"))


def test_a_file_and_a_path_that_leads_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RefusedToStart, match="is a file"):
        open_old_store(Kind.BST1, str(tmp_path / "file"))
    with pytest.raises(RefusedToStart, match="No such file"):
        open_old_store(Kind.BST1, str(tmp_path / "nothing"))


def test_a_store_whose_parts_are_links_is_refused(tmp_path: Path) -> None:
    old = Bst1(tmp_path / "old")
    (old.root / "cas").rename(tmp_path / "cas")
    (old.root / "cas").symlink_to(tmp_path / "cas")
    with pytest.raises(RefusedToStart, match="links are not followed"):
        open_old_store(Kind.BST1, str(old.root))
