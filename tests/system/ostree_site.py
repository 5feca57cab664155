"""What the tests of the OSTree generation have in common: repositories, receivers and web servers on one build site."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from system.build_site import BuildSite
from system.millpond_command import millpond
from system.ostree_push_simulator import Order, Pusher
from system.server_process import Millpond
from system.ssh_server import SshServer

BIN = Path(sys.executable).parent
RECEIVE = BIN / "bst-artifact-receive"
PULL_URL = "https://cache.example.org/artifacts"
_SECONDS = 60
_OSTREE_URL = re.compile(r"listening on (\S+?): .* OSTree repository")


def new_repo(site: BuildSite) -> Path:
    """An empty repository as ``millpond ostree init`` makes it."""
    repo = site.place("artifacts")
    assert millpond("ostree", "init", repo).status == 0
    return repo


def serve(site: BuildSite, repo: Path, *flags: str | Path) -> Millpond:
    """``millpond ostree serve``, ready."""
    command = ["millpond", "ostree", "serve", "--listen", "127.0.0.1:0", *flags, repo]
    return site._keep(Millpond(command, site.place("log")))


def ostree_url(server: Millpond) -> str:
    """Where a server says that it serves an OSTree repository."""
    said = _OSTREE_URL.search(server.stdout)
    assert said, server.stdout
    return said[1]


def through_pipe(repo: Path, *, order: Order = "little", **environment: str) -> Pusher:
    """A client whose receiver is called by hand."""

    def start(verbose: bool) -> subprocess.Popen[bytes]:
        command = [RECEIVE, "--pull-url", PULL_URL, *(["--verbose"] if verbose else []), repo]
        return _piped(command, env=os.environ | environment)

    return Pusher(start, order=order)


def through_ssh(server: SshServer, path: str = "/artifacts", *, order: Order = "little") -> Pusher:
    """A client that calls ``ssh`` as BuildStream does."""

    def start(verbose: bool) -> subprocess.Popen[bytes]:
        words = ["bst-artifact-receive", *(["--verbose"] if verbose else []), path]
        return _piped(server.command(*words, after=() if verbose else ("-oConnectTimeout=3",)))

    return Pusher(start, order=order)


def force_command(user: str, pull_url: str = PULL_URL, repo: str = "artifacts") -> str:
    """What the old set-up guide has an administrator add to sshd_config."""
    return f"Match user {user}\n    ForceCommand bst-artifact-receive --pull-url {pull_url} --verbose {repo}\n"


def got(url: str, **headers: str) -> tuple[int, bytes]:
    """The status and the body."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


def until(question: Callable[[], object]) -> None:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + _SECONDS
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _piped(command: list[str | Path] | list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
