"""Two servers on one repository, as sites run them: one to push to with two workers, one to pull from.

The rule: processes are known by what they are (``/proc``), never by what the product says about itself, so a process
that the supervisor forgot is found as well.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faults.campaign.load import until
from system.server_process import Millpond, ServerProcess, free_port

ORPHAN_SECONDS = 20.0
"""A worker whose supervisor died ends half a second later; this is for a machine that is busy."""
_KEPT_LOGS = 40
_ROLE = re.compile(r"millpond\.worker\0(\w+)\0")


class Server:
    """One server, started as often as it takes, always on the same port."""

    def __init__(self, name: str, repo: Path, logs: Path, *options: str) -> None:
        self.name = name
        self.port = free_port()
        self._repo, self._logs, self._options = repo, logs, options
        self._running: ServerProcess | None = None
        self._starts = 0
        self.ready_seconds: list[float] = []

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            AssertionError: it did not get ready.
        """
        begun = time.monotonic()
        with _undisturbed():
            self._running = Millpond(self._command(), self._next_log())
        self.ready_seconds.append(time.monotonic() - begun)

    def begin(self) -> ServerProcess:
        """Start it, to be killed while it opens; nobody waits for it."""
        with _undisturbed():
            self._running = ServerProcess([sys.executable, "-m", *self._command()], self._next_log())
        return self._running

    def _command(self) -> list[str | Path]:
        return ["millpond", "serve", "--listen", f"127.0.0.1:{self.port}", *self._options, self._repo]

    def _next_log(self) -> Path:
        self._starts += 1
        for old in self._logs.glob(f"{self.name}-{self._starts - _KEPT_LOGS:06d}.*"):
            old.unlink()
        return self._logs / f"{self.name}-{self._starts:06d}.log"

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._running
        return self._running._process.pid

    def pids(self, role: str = "") -> list[int]:
        """Its processes that live: all of them, or those of a role (``worker``, ``upkeep``)."""
        return [pid for pid, found in _processes(self.pid) if not role or found == role] if self._running else []

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.pids():
            strike(pid, number)

    def await_end(self) -> bool:
        """Whether all its processes end by themselves, as they must when the supervisor is gone."""
        assert self._running
        self._running.ended = True
        gone = until(
            lambda: self._running is not None and not self._running.running and not self.pids(), ORPHAN_SECONDS
        )
        self._running.kill()
        return gone

    def stop(self) -> None:
        """SIGTERM.

        Raises:
            AssertionError: it did not end with status 0, or left a process behind.
        """
        if self._running:
            self._running.stop()

    def kill(self) -> None:
        if self._running:
            self._running.kill()

    def log_lines(self) -> Iterator[str]:
        for path in sorted(self._logs.glob(f"{self.name}-*.stderr")):
            yield from path.read_text(errors="replace").splitlines()


class Cluster:
    """Both servers on ``repo``."""

    def __init__(self, root: Path, *, quota: str) -> None:
        self.repo = root / "repo"
        logs = root / "logs"
        shutil.rmtree(root, ignore_errors=True)
        logs.mkdir(parents=True)
        common = ["--no-foreign", "--quota", quota, "--reserve", "0"]
        self.push = Server("push", self.repo, logs, *common, "--enable-push", "--workers", "2")
        self.pull = Server("pull", self.repo, logs, *common, "--workers", "1")
        self.servers = (self.push, self.pull)

    def start(self) -> None:
        for server in self.servers:
            server.start()

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def upkeeper(self) -> int | None:
        """The process that evicts: of both servers' upkeep processes the one that holds the lock."""
        waiting = [pid for server in self.servers for pid in server.pids("upkeep")]
        with suppress(OSError):
            inode = os.stat(self.repo / "upkeeper.lock").st_ino
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()  # "1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF"; waiting ones have a "->" more
                if fields[1] == "FLOCK" and int(fields[4]) in waiting and fields[5].endswith(f":{inode}"):
                    return int(fields[4])
        return waiting[0] if waiting else None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM waits until the block ends, or a server that is just being started would be nobody's. Main thread only."""
    waiting: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if waiting:
            signal.raise_signal(signal.SIGTERM)


def strike(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes(group: int) -> Iterator[tuple[int, str]]:
    """The living processes of a process group, each with its role; the supervisor's is empty."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":  # proc(5): state, ppid, pgrp
                command = Path("/proc", entry, "cmdline").read_text(errors="replace")
                role = _ROLE.search(command)
                yield int(entry), role[1] if role else ""
