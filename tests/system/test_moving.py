"""A repository may be moved: elsewhere, to another user, from a copy that was taken while it ran."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from contract.rpc_client import Client, message_of, refused
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.parts import require
from system.server_process import STOP_SECONDS, Millpond
from unit.store.repositories import noise

from millpond.core.digest import Digest

ROOT = Path(__file__).resolve().parents[2]


def push(client: Client, key: str) -> None:
    """A name of three blobs, one of them in a segment of its own."""
    content = content_of(key)
    first, *others = client.put(*content[:2])
    client.upload(content[2])
    references = [message_of(digest) for digest in (*others, Digest.of(content[2]))]
    client.call("PushBlob", uris=[f"urn:{key}"], blob_digest=message_of(first), references_blobs=references)


def content_of(key: str) -> list[bytes]:
    return [noise(2000, f"{key}/a"), noise(3000, f"{key}/b"), noise(1_200_000, f"{key}/c")]


def is_served(client: Client, key: str) -> None:
    content = content_of(key)
    assert client.call("FetchBlob", uris=[f"urn:{key}"]).blob_digest == message_of(Digest.of(content[0]))
    assert client.get(map(Digest.of, content)) == content


class Elsewhere(Millpond):
    """A server in a name space in which the repository lies at another path and belongs to another user."""

    def __init__(self, repo: Path, at: Path, user: int, log: Path) -> None:
        inside = ["--unshare-user", "--uid", str(user), "--gid", str(user), "--bind", str(repo), str(at)]
        self.within = ["bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", *inside]
        super().__init__(["millpond", "serve", "--listen", "127.0.0.1:0", "--workers", "2", "--enable-push", at], log)

    def _command(self, command: Sequence[str | Path]) -> list[str | Path]:
        return [*self.within, *command]

    def stop(self) -> None:
        """The signal is for the server, not for what made its name space and waits for it."""
        self.ended = True
        for pid in processes_of(self):
            os.kill(pid, signal.SIGTERM)
        assert self._process.wait(STOP_SECONDS) == 0


def test_a_repository_is_the_same_at_another_path_and_for_another_user(site: BuildSite) -> None:
    require("sandbox")
    repo = site.place("repo")
    server = site.server("--enable-push", "--quota", "500M", repo=repo)
    with Client(f"127.0.0.1:{server.port}") as client:
        push(client, "before")
    server.stop()
    moved, at = site.place("moved"), site.place("at")
    repo.rename(moved)
    at.mkdir()
    elsewhere = site._keep(Elsewhere(moved, at, 4242, site.place("log")))
    assert f"repository {at}; quota: 500 MB (kept from before)" in elsewhere.stdout
    with Client(f"127.0.0.1:{elsewhere.port}") as client:
        is_served(client, "before")
        push(client, "elsewhere")
        # To those outside it is in use by somebody they cannot share it with.
        said = millpond("check", moved)
        assert (said.status, "is in use by a server of another user" in said.errors) == (2, True)
    elsewhere.stop()
    assert "made anew" not in elsewhere.stderr  # it was stopped, so its index is believed
    moved.rename(repo)
    back = site.server("--enable-push", repo=repo)
    with Client(f"127.0.0.1:{back.port}") as client:
        for key in ("before", "elsewhere"):
            is_served(client, key)
    back.stop()
    assert millpond("check", "--deep", repo).status == 0


def test_a_snapshot_of_a_running_repository_is_whole(site: BuildSite) -> None:
    """All of it at one moment: what a file system's snapshot holds, without the moments that a power loss adds."""
    repo, copy = site.place("repo"), site.place("copy")
    server = site.server("--enable-push", repo=repo)
    with Client(f"127.0.0.1:{server.port}") as client:
        for i in range(5):
            push(client, f"{i}")
        for pid in (server._process.pid, *processes_of(server)):
            os.kill(pid, signal.SIGSTOP)
        try:
            shutil.copytree(repo, copy)
        finally:
            for pid in (server._process.pid, *processes_of(server)):
                os.kill(pid, signal.SIGCONT)
        push(client, "after the snapshot")
    told = millpond("check", copy)
    assert (told.status, "millpond check --rebuild" in told.output) == (1, True)
    restored = site.server("--enable-push", repo=copy)
    with Client(f"127.0.0.1:{restored.port}") as client:
        for i in range(5):
            is_served(client, f"{i}")
        with refused("NOT_FOUND"):
            client.call("FetchBlob", uris=["urn:after the snapshot"])
        push(client, "after the restart")
    restored.stop()
    assert "the index was made anew" in restored.stderr
    assert millpond("check", "--deep", copy).status == 0


def test_a_copy_taken_file_by_file_while_clients_push_is_whole_with_its_verified_names(site: BuildSite) -> None:
    """By the very commands of docs/how-to/move-and-back-up.md."""
    repo, copy = site.place("repo"), site.place("copy")
    server = site.server("--enable-push", repo=repo)
    pushed: list[str] = []
    enough, stop = threading.Event(), threading.Event()

    def push_for_ever() -> None:
        with Client(f"127.0.0.1:{server.port}") as client:
            while not stop.is_set():
                key = f"{len(pushed)}"
                push(client, key)
                pushed.append(key)
                if len(pushed) == 8:
                    enough.set()

    pushing = threading.Thread(target=push_for_ever)
    pushing.start()
    try:
        assert enough.wait(60)
        for command in commands_of_the_page(repo, copy):
            subprocess.run(command, shell=True, check=True, capture_output=True)
        copied = len(pushed)
    finally:
        stop.set()
        pushing.join()
    server.stop()
    checked = millpond("check", "--rebuild", "--deep", copy)
    if checked.status:  # they were being written just then
        assert "millpond names restore" in checked.output
        assert millpond("names", "restore", copy).status == 0
        checked = millpond("check", "--deep", copy)
    assert checked.status == 0, checked.output
    assert "incomplete" not in checked.output
    restored = site.server("--enable-push", repo=copy)
    with Client(f"127.0.0.1:{restored.port}") as client:
        names = millpond("names", "list", copy).output.split()
        held = [key for key in pushed if f"urn:{key}" in names]
        assert 1 <= len(held) <= copied + 1
        for key in held:
            is_served(client, key)
        push(client, "after the restart")
    restored.stop()


def commands_of_the_page(repo: Path, copy: Path) -> list[str]:
    """What the page says for a copy of a running cache, for these places."""
    page = (ROOT / "docs" / "how-to" / "move-and-back-up.md").read_text()
    block = page.partition("<!-- copy while running -->")[2].partition("<!-- end -->")[0]
    commands = [line.strip() for line in block.splitlines() if line.startswith("    ")]
    assert commands
    return [command.replace("/srv/cache", str(repo)).replace("/backup/cache", str(copy)) for command in commands]


def processes_of(server: Millpond) -> list[int]:
    pid = server._process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
