"""The receiver as a process: how it starts, what it says where, when it ends, and what a dead one leaves."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path

import pytest
from faults.ostree_receiver import ended, receiver, write_push
from system.small_disk import SmallDisk
from unit.ssh.pushing import (
    REF,
    URL,
    Artifact,
    everything,
    listed,
    make_artifact,
    make_repo,
    parsed,
    push_of,
    refs,
    tar_of,
)

from millpond.protocol.ostree import frames
from millpond.protocol.ostree.filez import stored_file
from millpond.protocol.ostree.objects import (
    Commit,
    DirMeta,
    DirTree,
    FileHeader,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
)
from millpond.ssh.arguments import OPTIONS, WrongUsage, parse

ART = make_artifact("process")
HEAVY = {
    "grpc",
    "click",
    "asyncio",
    "lmdb",
    "google",
    "argparse",
    "dataclasses",
    "logging",
    "tarfile",
    "json",
    "inspect",
}
RECEIVE = [sys.executable, "-m", "millpond.ssh.receive"]


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    make_repo(tmp_path / "repo")
    return tmp_path / "repo"


def run(*arguments: str | Path, heard: bytes = b"", **environment: str) -> tuple[int, bytes, str]:
    done = subprocess.run(
        [*RECEIVE, *map(str, arguments)],
        input=heard,
        capture_output=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_nothing_that_takes_long_to_import_is_loaded_for_a_probe_or_a_push(repo: Path, tmp_path: Path) -> None:
    code = "import sys; from millpond.ssh import receive\ntry: receive.main()\nfinally: print(*sys.modules, file=sys.stderr)"
    for heard in (frames.info(0, {}) + frames.done(), push_of(ART)):
        command = [sys.executable, "-c", code, "--pull-url", URL, str(repo)]
        done = subprocess.run(command, input=heard, capture_output=True, timeout=60, check=True)
        loaded = {name.partition(".")[0] for name in done.stderr.decode().split()}
        assert loaded & HEAVY == set()


def test_it_ends_on_done_while_its_input_is_open(repo: Path) -> None:
    """The clients of 1.0 wait for its end before they close it."""
    process = subprocess.Popen(
        [*RECEIVE, "--pull-url", URL, str(repo)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    for heard in (frames.info(0, {}), frames.done()):
        process.stdin.write(heard)
        process.stdin.flush()
    assert process.wait(60) == 0
    process.communicate()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "--pull-url is missing"),
        (("repo",), "--pull-url is missing"),
        (("--pull-url=", "repo"), "--pull-url is missing"),
        (("--pull-url",), "lacks its URL"),
        (("--pull-url", "u"), "one REPO"),
        (("--pull-url", "u", ""), "one REPO"),
        (("--pull-url", "u", "a", "b"), "one REPO"),
        (("--pull-url", "u", "--verbos", "a"), "no option --verbos"),
        (("--pull-url", "u", "/nowhere/at/all"), "no OSTree repository"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_status_2(arguments: tuple[str, ...], why: str) -> None:
    status, out, said = run(*arguments)
    assert (status, out, said.count("\n")) == (2, b"", 1)
    assert why in said


def test_the_options_of_the_program_that_it_replaces_are_understood() -> None:
    for given in (
        ["--pull-url", "u", "-v", "-d", "r"],
        ["r", "--pull-url=u", "--verbose", "--debug"],
        ["-vd", "--pull-url=u", "--", "r"],
    ):
        asked = parse(given, {"HOME": "/h"})
        assert (asked.repo, asked.pull_url, asked.verbose, asked.debug) == ("/h/r", "u", True, True)
    asked = parse(["--pull-url", "u", "/r"], {"HOME": "/h"})
    assert (asked.repo, asked.pull_url, asked.verbose, asked.debug) == ("/r", "u", False, False)
    assert parse(["--pull-url", "u", "r"], {}).repo == "r"
    with pytest.raises(WrongUsage):
        parse(["-x", "--pull-url=u", "r"], {})


def test_help_and_version_are_printed() -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(name in out.decode() for names, _, _ in OPTIONS for name in names.split(", "))
    assert run("--version")[1].startswith(b"bst-artifact-receive ")


def test_what_cannot_be_used_as_a_repository_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    make_repo(bare)
    for config in ("", "[core]\nrepo_version=1\nmode=bare-user\n", "[core]\nrepo_version=2\nmode=archive-z2\n"):
        (bare / "config").write_text(config)
        status, out, said = run("--pull-url", URL, bare, heard=frames.info(0, {}))
        assert (status, out, said.count("\n")) == (2, b"", 1)
    (bare / "config").write_text("[core]\nrepo_version=1\nmode=archive-z2\n\n[millpond]\nquota-bytes=many\n")
    assert "a number of bytes" in run("--pull-url", URL, bare)[2]


def test_a_repository_is_looked_for_in_the_home_directory(repo: Path, tmp_path: Path) -> None:
    status, out, _ = run("--pull-url", URL, "repo", heard=frames.info(0, {}) + frames.done(), HOME=str(tmp_path))
    assert (status, parsed(out)[0][1]["pull_url"]) == (0, URL)


def test_what_the_client_wanted_to_be_run_is_neither_run_nor_believed(repo: Path, tmp_path: Path) -> None:
    command = f"bst-artifact-receive --pull-url http://evil {tmp_path}/evil; touch {tmp_path}/evil"
    status, out, _ = run(
        "--pull-url", URL, repo, heard=frames.info(0, {}) + frames.done(), SSH_ORIGINAL_COMMAND=command
    )
    assert (status, parsed(out)[0][1]["pull_url"]) == (0, URL)
    assert not (tmp_path / "evil").exists()


def test_debug_and_verbose_say_more_on_standard_error_and_nothing_on_standard_output(repo: Path) -> None:
    status, out, said = run("--pull-url", URL, "--verbose", "--debug", repo, heard=push_of(ART))
    assert status == 0
    assert [command for command, _ in parsed(out)] == [frames.INFO, frames.STATUS, frames.DONE]
    assert "the client: update" in said
    assert "stored" in said


def test_each_push_is_a_line_with_who_it_was(repo: Path, tmp_path: Path) -> None:
    key = b"\0\0\0\x0bssh-ed25519 and so on"
    (tmp_path / "auth").write_text(f"publickey ssh-ed25519 {b64encode(key).decode()}\n")
    known = {"SSH_CONNECTION": "192.0.2.7 50022 192.0.2.1 22", "SSH_USER_AUTH": str(tmp_path / "auth")}
    assert run("--pull-url", URL, repo, heard=push_of(ART, REF), **known)[0] == 0
    assert run("--pull-url", URL, repo, heard=push_of(ART, REF, tar=b"rubbish" * 100), **known)[0] == 1
    assert run("--pull-url", URL, repo, heard=frames.info(0, {}) + frames.done(), **known)[0] == 0
    stored, refused = (repo / "state/millpond/pushes").read_text().splitlines()
    fingerprint = b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
    assert f"{REF}={ART.commit} from 192.0.2.7 port 50022 SHA256:{fingerprint}: stored " in stored
    assert "refused: " in refused
    assert (repo / "state/millpond/pushes").stat().st_mode & 0o007 == 0, "who pushed from where is not for all"


def test_what_a_dead_receiver_left_is_removed_and_what_a_living_one_receives_is_not(repo: Path) -> None:
    (repo / "tmp/millpond-push-1-dead").mkdir()
    (repo / "tmp/millpond-push-1-dead/object").write_text("x")
    (repo / "tmp/bst-push-old").mkdir()
    os.utime(repo / "tmp/bst-push-old", (0, 0))
    (repo / "tmp/bst-push-new").mkdir()
    living = subprocess.Popen(
        [*RECEIVE, "--pull-url", URL, str(repo)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert living.stdin
    assert living.stdout
    whole = push_of(ART)
    at = whole.index(tar_of(ART.members)) + 3000
    living.stdin.write(whole[:at])
    living.stdin.flush()
    wait_for(
        lambda: any(
            path.is_dir() and len(list(path.iterdir())) for path in (repo / "tmp").glob("millpond-push-*-????????")
        )
    )
    assert run("--pull-url", URL, repo, heard=frames.info(0, {}) + frames.done())[0] == 0
    left = {path.name.rpartition("-")[0] for path in (repo / "tmp").glob("*-push-*")}
    assert left == {f"millpond-push-{living.pid}", "bst-push"}
    out, said = living.communicate(whole[at:], timeout=60)
    assert out.endswith(frames.done()), said
    assert listed(repo) == refs(repo)


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_receiver_that_is_told_to_end_leaves_nothing(repo: Path, number: signal.Signals) -> None:
    before = everything(repo)
    process = subprocess.Popen(
        [*RECEIVE, "--pull-url", URL, str(repo)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    whole = push_of(ART)
    process.stdin.write(whole[: len(whole) // 2])
    process.stdin.flush()
    wait_for(lambda: list((repo / "tmp").glob("millpond-push-*/*")))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert everything(repo) == before


# -- a full disk ------------------------------------------------------------------------------------------------------


def large(number: int) -> Artifact:
    """Five megabytes of noise."""
    content = random.Random(number).randbytes(5 << 20)
    checksum, data = stored_file(FileHeader(len(content), 0, 0, 0o100644, "", []), content)
    objects = {f"{checksum}.filez": data}

    def add(kind: str, data: bytes) -> str:
        objects[f"{hashlib.sha256(data).hexdigest()}.{kind}"] = data
        return hashlib.sha256(data).hexdigest()

    meta = add("dirmeta", encode_dirmeta(DirMeta(0, 0, 0o40755, [])))
    tree = add("dirtree", encode_dirtree(DirTree([("large", checksum)], [])))
    return Artifact(add("commit", encode_commit(Commit("", 0, tree, meta))), objects)


def test_a_full_disk_refuses_pushes_with_a_sentence_and_prune_makes_room_on_it(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", kind="ext4", size_mib=40)
    try:
        repo = disk.path / "repo"
        make_repo(repo)
        outcomes = []
        for number in range(9):
            status, out, said = ended(receiver(repo, write_push(tmp_path / "push", large(number), f"p/{number}")))
            outcomes.append(status)
            assert refs(repo) == listed(repo)
            if status:
                assert "disk of the cache is full" in said
                assert [command for command, _ in parsed(out)] == [frames.INFO, frames.STATUS]
                assert not list((repo / "tmp").glob("millpond-push-*"))
        assert outcomes == sorted(outcomes)
        assert {*outcomes} == {0, 1}
        disk.fill()
        prune = [sys.executable, "-m", "millpond", "ostree", "prune", "--quota", "12M", str(repo)]
        done = subprocess.run(prune, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert refs(repo) == listed(repo)
        assert len(refs(repo)) == 2
        disk.others.unlink()
        assert ended(receiver(repo, write_push(tmp_path / "push", large(50), "p/new")))[0] == 0
    finally:
        disk.close()


def test_a_reserve_makes_the_least_recently_used_go_before_the_disk_is_full(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk", kind="ext4", size_mib=64)
    try:
        repo = disk.path / "repo"
        reserve_bytes = 8 << 20
        make_repo(repo, reserve_bytes=reserve_bytes)
        for number in range(9):
            status, _, said = ended(receiver(repo, write_push(tmp_path / "push", large(number), f"p/{number}")))
            assert status == 0, said
            found = os.statvfs(repo)
            assert found.f_bavail * found.f_frsize >= reserve_bytes
            assert refs(repo) == listed(repo)
        assert "p/8" in refs(repo)
        assert "p/0" not in refs(repo)
    finally:
        disk.close()
