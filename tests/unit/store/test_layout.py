"""What a directory is, before anything in it is touched."""

import os
from pathlib import Path

import pytest

from millpond.core.errors import RefusedToStart
from millpond.store.repository import filesystem
from millpond.store.repository.layout import MARKER, REPOSITORY_FORMAT, Layout, recognise, write_marker
from millpond.store.repository.opening import open_repository

OTHERS = {
    "BuildStream 1.9x": ["artifacts/refs", "source_protos", "cas/objects"],
    "BuildStream 1.x": ["cas/refs/heads", "cas/objects"],
    "casd": ["cas/objects", "cas/staging", "cas/tmp"],
    "a git repository": ["objects/pack", "objects/info", "refs/heads", "refs/tags", "hooks"],
    "an OSTree repository": ["objects", "refs/heads", "refs/mirrors", "refs/remotes", "state", "tmp"],
    "another program": ["var/lib"],
}


def snapshot(root: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in [root, *root.rglob("*")]}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_ours_is_named_and_left_alone(tmp_path: Path, what: str) -> None:
    for directory in OTHERS[what]:
        (tmp_path / directory).mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises(RefusedToStart, match=what):
        open_repository(tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("what", "kind"), [("BuildStream 1.9x", "bst19"), ("BuildStream 1.x", "bst1"), ("casd", "casd")]
)
def test_who_names_the_store_of_another_server_is_told_how_to_move_in(tmp_path: Path, what: str, kind: str) -> None:
    for directory in OTHERS[what]:
        (tmp_path / directory).mkdir(parents=True)
    with pytest.raises(RefusedToStart, match=rf"; millpond import {kind} brings its content there$"):
        open_repository(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "1"}', '{"format": null}', "\0\xff", "7", "{"])
def test_a_damaged_marker_is_said_to_be(tmp_path: Path, content: str) -> None:
    (tmp_path / MARKER).write_text(content)
    before = snapshot(tmp_path)
    with pytest.raises(RefusedToStart, match="damaged"):
        open_repository(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text('{"format": 2}')
    with pytest.raises(RefusedToStart, match="upgrade Millpond"):
        open_repository(tmp_path)


def test_a_file_and_a_link_to_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RefusedToStart, match="is a file"):
        recognise(tmp_path / "file")
    with pytest.raises(RefusedToStart, match="leads nowhere"):
        recognise(tmp_path / "link")
    with pytest.raises(RefusedToStart):
        open_repository(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    "there", [[], ["lost+found"], ["start.lock", "segments", "index"], ["refusals", "millpond.json.new"]]
)
def test_an_empty_place_and_one_that_is_being_made_are_fine(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    assert recognise(tmp_path) is None
    assert recognise(tmp_path / "not there") is None


def test_a_marker_is_written_whole(tmp_path: Path) -> None:
    write_marker(Layout(str(tmp_path)), {"format": 1, "quota_bytes": 5})
    assert recognise(tmp_path) == {"format": 1, "quota_bytes": 5}
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def mountinfo(tmp_path: Path, kind: str) -> Path:
    device = os.stat(tmp_path).st_dev
    lines = [
        "22 1 0:999999 / /proc rw,nosuid shared:5 - proc proc rw",
        f"36 35 {os.major(device)}:{os.minor(device)} /a\\040b /mnt rw,noatime master:1 shared:2 - {kind} host:/x rw",
        "",
    ]
    (tmp_path / "mountinfo").write_text("\n".join(lines[:2]) + "\n")
    return tmp_path / "mountinfo"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs", "ceph", "lustre"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(RefusedToStart, match="network file system"):
        filesystem.check_local(tmp_path, mountinfo(tmp_path, kind))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "fuseblk"])
def test_a_local_file_system_is_fine(tmp_path: Path, kind: str) -> None:
    filesystem.check_local(tmp_path, mountinfo(tmp_path, kind))
    filesystem.check_local(tmp_path)


def test_no_flipped_bit_makes_another_quota(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    marker = {"format": REPOSITORY_FORMAT, "made_by": "millpond", "quota_bytes": 50_000_000_000}
    write_marker(layout, marker)
    assert recognise(tmp_path) == marker
    whole = Path(layout.marker).read_bytes()
    refused = 0
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        Path(layout.marker).write_bytes(flipped)
        try:
            found = recognise(tmp_path)
        except RefusedToStart:
            refused += 1
        else:
            assert found is not None
            assert found["quota_bytes"] == marker["quota_bytes"]
    assert refused > len(whole) * 4


def test_a_marker_of_before_is_believed(tmp_path: Path) -> None:
    (tmp_path / "millpond.json").write_text('{"format": 1, "quota_bytes": 7}')
    assert recognise(tmp_path) == {"format": 1, "quota_bytes": 7}
