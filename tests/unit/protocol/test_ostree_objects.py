"""OSTree's objects: short cuts say what the long way says, and real bytes are read as libostree reads them."""

from __future__ import annotations

import pytest

from millpond.core.errors import DigestMismatch, InvalidRequest
from millpond.protocol.gvariant import encode
from millpond.protocol.ostree.filez import FilezCheck, stored_file
from millpond.protocol.ostree.objects import (
    FILE_TYPE,
    HEAD_BYTES,
    STORED_FILE_TYPE,
    Commit,
    DirMeta,
    DirTree,
    FileHeader,
    check_metadata,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
    parse_commit,
    parse_dirmeta,
    parse_dirtree,
    parse_file_header,
)
from millpond.protocol.ostree.summary import Listed, Summary, decode_summary, encode_summary

HEADERS = [
    FileHeader(0, 0, 0, 0o100644, "", []),
    FileHeader(2**40, 1000, 2**32 - 1, 0o104755, "", []),
    FileHeader(5, 0, 0, 0o100644, "", [(b"user.a\0", b"b")]),
    FileHeader(0, 0, 0, 0o120777, "../target", []),
    FileHeader(0, 0, 0, 0o120777, "t" * 300, [(b"security.selinux\0", b"x" * 300)]),
]


@pytest.mark.parametrize("header", HEADERS, ids=repr)
def test_the_short_way_through_a_header_is_the_long_one(header: FileHeader) -> None:
    hashed = encode(
        FILE_TYPE, (header.uid, header.gid, header.mode, 0, header.target, list(header.xattrs)), order="big"
    )
    assert header.hashed() == len(hashed).to_bytes(4, "big") + bytes(4) + hashed
    stored = encode(STORED_FILE_TYPE, (header.size, *header[1:4], 0, header.target, list(header.xattrs)), order="big")
    assert header.encode()[HEAD_BYTES:] == stored
    assert parse_file_header(stored) == header


def test_objects_are_read_as_they_were_written() -> None:
    commit = Commit("c" * 64, 1_500_000_000, "a" * 64, "b" * 64)
    tree = DirTree([("a", "a" * 64), ("ü", "b" * 64)], [("z", "c" * 64, "d" * 64)])
    meta = DirMeta(1, 2, 0o42755, [(b"user.a\0", b"")])
    assert parse_commit(encode_commit(commit, subject="s", body="b")) == commit
    assert parse_dirtree(encode_dirtree(tree)) == tree
    assert parse_dirmeta(encode_dirmeta(meta)) == meta


def test_a_commit_that_names_what_is_no_checksum_is_refused() -> None:
    for parent, tree in ((b"x", bytes(32)), (b"", b""), (bytes(31), bytes(32)), (bytes(32), bytes(33))):
        data = encode("(a{sv}aya(say)sstayay)", ([], parent, [], "", "", 0, tree, bytes(32)), order="big")
        with pytest.raises(InvalidRequest):
            parse_commit(data)


def test_an_object_under_another_name_is_refused() -> None:
    with pytest.raises(DigestMismatch):
        check_metadata("a" * 64, "dirmeta", encode_dirmeta(DirMeta(0, 0, 0o40755, [])))


@pytest.mark.parametrize("step", [1, 3, 8, 64, 10_000])
def test_a_file_may_come_in_pieces_of_any_size(step: int) -> None:
    header = FileHeader(5000, 0, 0, 0o100644, "", [])
    checksum, data = stored_file(header, bytes(range(250)) * 20)
    check = FilezCheck(checksum)
    for at in range(0, len(data), step):
        check.feed(data[at : at + step])
    assert check.finish() == header


def test_the_summary_is_what_libostree_writes_but_for_the_deltas() -> None:
    """Taken from ``ostree summary -u``, 2022.7: the size is little-endian, all other numbers are big-endian."""
    commit = "87293e3180d654d57086c8624d1f5e7b27cd7296ef8c7b13a665a4a347851067"
    summary = Summary({"proj/elem/abc": Listed(commit, 126, 1_795_200_824)}, 1_795_200_824, has_tombstones=False)
    data = encode_summary(summary)
    assert decode_summary(data) == summary
    assert data.startswith(
        b"proj/elem/abc\0\0\0\x7e\0\0\0\0\0\0\0" + bytes.fromhex(commit) + b"ostree.commit.timestamp\0"
    )
    assert (1_795_200_824).to_bytes(8, "big") + b"\0t" in data
    assert b"indexed-deltas" not in data
