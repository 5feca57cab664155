"""What the server does with a REPO that it should not use: one sentence, exit status 2, and not a byte is changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import lmdb
import pytest
from contract.rpc_client import Client, refused
from system.build_site import BuildSite
from system.parts import require

from millpond.core.digest import Digest
from millpond.core.errors import RefusedToStart
from millpond.store.repository import filesystem

SECONDS = 60
EVERYTHING = ["bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--die-with-parent"]


def snapshot(root: Path) -> dict[str, str]:
    """Every path below ``root`` with its kind, mode, size, time and content."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))] if root.is_dir() else [root]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = f"{status.st_mode:o} {status.st_size} {status.st_mtime_ns} {content}"
    return found


def start(repo: Path, *flags: str, within: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Start a server on ``repo`` and wait for its end."""
    command = [*within, sys.executable, "-m", "millpond", "serve", "--listen", "127.0.0.1:0", "--workers", "2"]
    return subprocess.run([*command, *flags, str(repo)], capture_output=True, text=True, timeout=SECONDS, check=False)


def sentences(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """What it said on standard error, but for what it says when opening takes long, which is the machine's doing."""
    return [line for line in ended.stderr.splitlines() if not line.startswith("opening ")]


def refusal(repo: Path, *flags: str, within: Sequence[str] = ()) -> str:
    """The sentence of a server that does not start, and touches nothing."""
    before = snapshot(repo)
    ended = start(repo, *flags, within=within)
    assert (ended.returncode, ended.stdout, len(sentences(ended))) == (2, "", 1), ended
    assert snapshot(repo) == before
    return ended.stderr


def make(root: Path, *directories: str, files: Sequence[str] = ()) -> None:
    for directory in directories:
        (root / directory).mkdir(parents=True)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("somebody's\n")


FOREIGN: dict[str, Any] = {
    "a file": (lambda repo: repo.write_text("not a directory\n") and None, "is not a directory"),
    "another program's data": (
        lambda repo: make(repo, files=["thesis.tex", "figures/1.png"]),
        "another program's data",
    ),
    "a hidden file only": (lambda repo: make(repo, files=[".bashrc"]), "another program's data"),
    "a 1.x store": (lambda repo: make(repo, "cas/objects/00", files=["cas/refs/heads/p/e/k"]), "BuildStream 1.x"),
    "an empty 1.x store": (lambda repo: make(repo, "cas/refs/heads", "cas/objects", "cas/tmp"), "BuildStream 1.x"),
    "a 1.9x store": (
        lambda repo: make(repo, "artifacts/refs", "source_protos", "cas/objects", files=["artifacts/refs/p/e/k"]),
        "BuildStream 1.9x",
    ),
    "a casd store": (lambda repo: make(repo, "cas/objects/00", "cas/staging", "cas/tmp"), "buildbox-casd"),
    "an OSTree repository": (lambda repo: make(repo, "objects/00", "refs/heads", files=["config"]), "OSTree"),
    "a git repository": (lambda repo: make(repo, "objects/pack", "refs/heads", files=["HEAD"]), "git"),
    "a damaged marker": (lambda repo: make(repo, files=["millpond.json", "segments/1"]), "damaged"),
    "a marker without a format": (lambda repo: make(repo) or marker(repo, {}), "damaged"),
    "a newer format": (
        lambda repo: make(repo, "segments") or marker(repo, {"format": 2, "new": [1]}),
        "newer Millpond",
    ),
}


def marker(repo: Path, content: dict[str, object]) -> None:
    repo.mkdir(exist_ok=True)
    (repo / "millpond.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("prepare", "words"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("flags", [[], ["--enable-push", "--quota", "5G"]], ids=["pull", "push"])
def test_what_is_not_ours_is_named_and_left_alone(
    tmp_path: Path, prepare: Callable[[Path], None], words: str, flags: list[str]
) -> None:
    prepare(tmp_path / "repo")
    assert words in refusal(tmp_path / "repo", *flags)


def test_the_store_of_a_real_casd_is_recognised(site: BuildSite) -> None:
    casd = site.casd()
    with Client(f"127.0.0.1:{casd.port}") as client:
        client.put(b"stored by casd")
    casd.stop()
    store = Path(casd.command[-1])
    assert "buildbox-casd" in refusal(store, "--enable-push")


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "repo").symlink_to(tmp_path / "nowhere")
    ended = start(tmp_path / "repo")
    assert (ended.returncode, len(sentences(ended))) == (2, 1)
    assert "is not a directory" in ended.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = start(tmp_path / "file" / "repo")
    assert (ended.returncode, len(sentences(ended))) == (2, 1)
    assert str(tmp_path / "file") in ended.stderr


def test_names_of_a_newer_format_are_refused(site: BuildSite) -> None:
    repo = site.place("repo")
    site.server("--enable-push", repo=repo).stop()
    with lmdb.open(str(repo / "names"), max_dbs=3) as env:
        table = env.open_db(b"meta")
        with env.begin(write=True) as transaction:
            transaction.put(b"names_format", b"2", db=table)
    before = snapshot(repo / "names" / "data.mdb"), snapshot(repo / "segments")
    ended = start(repo, "--enable-push")
    assert (ended.returncode, len(sentences(ended))) == (2, 1), ended
    assert "format 2" in ended.stderr
    assert (snapshot(repo / "names" / "data.mdb"), snapshot(repo / "segments")) == before


# -- network file systems ---------------------------------------------------------------------------------------------

MOUNTINFO = "22 1 {device} / {mount} rw,relatime shared:1 - {kind} server:/export rw,vers=4.2\n"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "ceph", "fuse.sshfs", "glusterfs"])
def test_a_network_file_system_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    device = os.stat(tmp_path).st_dev
    mountinfo = tmp_path / "mountinfo"
    lines = ["21 1 0:999 / / rw - ext4 /dev/vda rw\n"]
    lines.append(
        MOUNTINFO.format(device=f"{os.major(device)}:{os.minor(device)}", mount="/srv/my\\040cache", kind=kind)
    )
    mountinfo.write_text("".join(lines))
    with pytest.raises(RefusedToStart, match=kind):
        filesystem.check_local(tmp_path, mountinfo)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuse.ext4"])
def test_a_local_file_system_is_not(tmp_path: Path, kind: str) -> None:
    device = os.stat(tmp_path).st_dev
    (tmp_path / "mountinfo").write_text(
        MOUNTINFO.format(device=f"{os.major(device)}:{os.minor(device)}", mount="/", kind=kind)
    )
    filesystem.check_local(tmp_path, tmp_path / "mountinfo")
    filesystem.check_local(tmp_path)


# -- in use by others -------------------------------------------------------------------------------------------------


def left_alone(repo: Path) -> dict[str, str]:
    """What a server at rest does not change: its logs, and the tables of LMDB's readers, are its own affair."""
    return {
        path: what for path, what in snapshot(repo).items() if "/touch" not in path and not path.endswith("/lock.mdb")
    }


@pytest.mark.parametrize(
    ("within", "words"),
    [
        (["--unshare-pid", "--proc", "/proc"], "pid name space"),
        (["--unshare-user", "--uid", "4321"], "another user"),
    ],
    ids=["pid name space", "user"],
)
@pytest.mark.parametrize(
    "flags", [["--enable-push"], ["--enable-push", "--quota", "7G"]], ids=["same quota", "new quota"]
)
def test_a_repository_in_use_by_processes_we_cannot_share_it_with(
    site: BuildSite, within: list[str], words: str, flags: list[str]
) -> None:
    require("sandbox")
    repo = site.place("repo")
    server = site.server("--enable-push", "--quota", "5G", repo=repo)
    with Client(f"127.0.0.1:{server.port}") as client:
        client.put(b"in use")
    before = left_alone(repo)
    ended = start(repo, *flags, within=[*EVERYTHING, *within])
    assert (ended.returncode, ended.stdout, len(sentences(ended))) == (2, "", 1), ended
    assert words in ended.stderr
    assert left_alone(repo) == before


def test_a_repository_of_another_user_is_refused_in_a_sentence(site: BuildSite) -> None:
    require("sandbox")
    within = [*EVERYTHING, "--unshare-user", "--uid", "4321"]
    repo = site.place("repo")
    site.server("--enable-push", repo=repo)
    ended = start(repo, within=within)
    assert (ended.returncode, ended.stdout, len(sentences(ended))) == (2, "", 1), ended
    assert "user" in ended.stderr or "denied" in ended.stderr


# -- that may only be read --------------------------------------------------------------------------------------------


def test_a_repository_that_may_only_be_read_serves_without_push(site: BuildSite, tmp_path: Path) -> None:
    require("sandbox")
    repo = site.place("repo")
    writing = site.server("--enable-push", "--quota", "5G", repo=repo)
    large = os.urandom(5_000_000)
    with Client(f"127.0.0.1:{writing.port}") as client:
        (small,) = client.put(b"small")
        client.upload(large)
        client.call("PushBlob", uris=["urn:kept"], blob_digest={"hash": small.hash, "size_bytes": small.size_bytes})
    writing.stop()
    within = [*EVERYTHING, "--ro-bind", str(repo), str(repo)]
    assert "without push" in refusal(repo, "--enable-push", within=within)

    before = snapshot(repo)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [*within, sys.executable, "-m", "millpond", "serve", "--workers", "2", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen([*command, str(repo)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if "listening on" in line:
                    break
            with Client(f"127.0.0.1:{port}") as client:
                assert client.find_missing([small, Digest.of(large), Digest.of(b"?")]) == [Digest.of(b"?")]
                assert client.get([small]) == [b"small"]
                assert client.read(client.read_name(Digest.of(large))) == large
                assert client.call("FetchBlob", uris=["urn:kept"]).blob_digest.hash == small.hash
                for write in (lambda: client.put(b"new"), lambda: client.upload(b"new")):
                    with refused("PERMISSION_DENIED"):
                        write()
        finally:
            for child in children_of(server.pid):
                os.kill(child, signal.SIGTERM)
            server.terminate()
            server.communicate(timeout=SECONDS)
    assert snapshot(repo) == before


def children_of(pid: int) -> list[int]:
    try:
        direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [*map(int, direct)]


def test_a_repository_moved_to_another_place_is_the_same_repository(site: BuildSite) -> None:
    repo, moved = site.place("repo"), site.place("repo")
    first = site.server("--enable-push", repo=repo)
    with Client(f"127.0.0.1:{first.port}") as client:
        (digest,) = client.put(b"moved along")
    first.stop()
    shutil.copytree(repo, moved)
    second = site.server(repo=moved)
    with Client(f"127.0.0.1:{second.port}") as client:
        assert client.get([digest]) == [b"moved along"]
        assert isinstance(client.channel, grpc.Channel)
