"""A BuildStream client with a home of its own: the real ``bst`` 2.8.1, which shares nothing with any other client.

It talks to the caches that ``configure`` names and to nothing else. Whatever it started is gone after ``close``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from system.parts import BST
from system.project_maker import Project

RUN_SECONDS = 240
_CASD_GOODBYE_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """One cache server, as a user writes it down in ``buildstream.conf``."""

    url: str
    push: bool = False
    type: Literal["all", "index", "storage"] = "all"
    instance_name: str | None = None
    server_cert: Path | None = None
    client_key: Path | None = None
    client_cert: Path | None = None
    retries: int | None = None
    """How often casd tries again after UNAVAILABLE; None is casd's own 4, which takes up to 30 s."""

    def as_node(self) -> dict[str, Any]:
        auth = {"server-cert": self.server_cert, "client-key": self.client_key, "client-cert": self.client_cert}
        node: dict[str, Any] = {"url": self.url, "push": self.push, "type": self.type}
        if self.instance_name is not None:
            node["instance-name"] = self.instance_name
        if any(auth.values()):
            node["auth"] = {key: str(path) for key, path in auth.items() if path}
        if self.retries is not None:
            node["connection-config"] = {"retry-limit": self.retries, "retry-delay": 100}
        return node


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one ``bst`` command ended and what it printed."""

    exit_code: int
    output: str

    def artifact(self, element: str) -> str:
        """The name by which an element's artifact can be asked for without the element: project/element/strong-key."""
        project = re.search(r"^ +Project: +(\S+) \(", self.output, re.MULTILINE)
        key = re.search(rf"^ *[a-z ]+ ([0-9a-f]{{64}}) {re.escape(element)} *$", self.output, re.MULTILINE)
        assert project, self.output
        assert key, self.output
        return f"{project[1]}/{element.removesuffix('.bst').replace('/', '-')}/{key[1]}"

    @property
    def pulled_from(self) -> list[str]:
        """The caches that gave artifacts, once for each artifact."""
        return re.findall(r"INFO +Pulled artifact \w+ <- (\S+)", self.output)

    @property
    def pushed_to(self) -> list[str]:
        """The caches that took artifacts, once for each artifact."""
        return re.findall(r"INFO +Pushed artifact \w+ -> (\S+)", self.output)

    @property
    def pulls(self) -> int:
        """How many artifacts came from a cache, in the words of any generation."""
        return len(re.findall(r"INFO +(?:Pulled|Downloaded) artifact \w+", self.output))

    @property
    def pushes(self) -> int:
        """How many artifacts went to a cache, in the words of any generation."""
        return len(re.findall(r"INFO +Pushed artifact \w+", self.output))


class BstClient:
    """One user's ``bst``: configuration, caches, logs and home directory under ``home``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / "cache" / "buildstream"
        self._nowhere = Project(home / "empty-project", "nowhere")
        self._started: list[RunningBst] = []
        self.configure()

    def configure(self, *, artifacts: Sequence[Remote] = (), sources: Sequence[Remote] = ()) -> None:
        """Use these caches, in this order, from the next command on."""
        conf = {
            "cache": {"reserved-disk-space": "100M"},
            "artifacts": {"servers": [remote.as_node() for remote in artifacts]},
            "source-caches": {"servers": [remote.as_node() for remote in sources]},
        }
        (self.home / "buildstream.conf").write_text(json.dumps(conf, indent=2))

    def start(self, *args: str, project: Project | None = None) -> RunningBst:
        """Start a command and return at once. Without ``project`` it runs in one that has no elements at all."""
        running = RunningBst(self, args, project or self._nowhere)
        self._started.append(running)
        return running

    def attempt(self, *args: str, project: Project | None = None) -> Outcome:
        """Run a command to its end, however it ends."""
        return self.start(*args, project=project).wait()

    def run(self, *args: str, project: Project | None = None) -> Outcome:
        """Run a command that has to succeed."""
        outcome = self.attempt(*args, project=project)
        assert outcome.exit_code == 0, f"bst {' '.join(args)} ended with {outcome.exit_code}\n{outcome.output}"
        return outcome

    def build(self, project: Project, element: str) -> str:
        """Build (or pull, or both) an element with its dependencies and push it; its artifact name."""
        return self.run("build", element, project=project).artifact(element)

    def names_of(self, artifact: str) -> list[str]:
        """All names under which this client holds what it holds as ``artifact``: by strong and by weak key."""
        folder = self.cache / "artifacts" / "refs" / Path(artifact).parent
        same = (self.cache / "artifacts" / "refs" / artifact).read_bytes()
        return [f"{Path(artifact).parent}/{ref.name}" for ref in folder.iterdir() if ref.read_bytes() == same]

    def pull(self, *artifacts: str) -> Outcome:
        """Pull by name from an empty project, where no element can fill the client's store in passing."""
        return self.run("artifact", "pull", *artifacts)

    def check_out(self, artifact: str) -> Path:
        """Lay out the files of an artifact that the client holds."""
        return self._check_out(artifact)[0]

    def fetch(self, artifact: str) -> Path:
        """The files of an artifact that the client does not hold yet, pulled and laid out in one command."""
        place, outcome = self._check_out(artifact)
        assert outcome.pulled_from, outcome.output
        return place

    def misses(self, artifact: str) -> bool:
        """Does a cache answer that it has no such artifact, and no other cache has it?"""
        outcome = self.attempt("artifact", "pull", artifact)
        return "does not have artifact" in outcome.output and not outcome.pulled_from

    def wipe(self) -> None:
        """Forget everything that was ever built, fetched or pulled."""
        self._end_processes()
        shutil.rmtree(self.home / "cache", ignore_errors=True)

    def close(self) -> None:
        """Leave no process and no file behind."""
        self.wipe()
        shutil.rmtree(self.home, ignore_errors=True)

    def command(self) -> list[str | Path]:
        """The program, and where it finds its configuration."""
        return [BST, "--config", self.home / "buildstream.conf"]

    def environment(self) -> dict[str, str]:
        places = {f"XDG_{name.upper()}_HOME": str(self.home / name) for name in ("config", "cache", "data")}
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LC_ALL": "C.UTF-8", **places}

    def _check_out(self, artifact: str) -> tuple[Path, Outcome]:
        place = Path(tempfile.mkdtemp(dir=self.home)) / "checkout"
        return place, self.run("artifact", "checkout", "--deps", "none", "--directory", str(place), artifact)

    def _end_processes(self) -> None:
        """End what still runs: bst, and its casd, which is in a process group of its own and found by its arguments."""
        while self._started:
            self._started.pop().end()
        deadline = time.monotonic() + _CASD_GOODBYE_SECONDS
        while pids := list(_processes_that_mention(self.cache)):
            if time.monotonic() > deadline:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


class RunningBst:
    """A ``bst`` command that may still be running."""

    def __init__(self, client: BstClient, args: Sequence[str], project: Project) -> None:
        self._output = client.home / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*client.command(), "--no-interactive", "--no-colors", "--directory", project.path, *args],
                env=client.environment(),
                cwd=client.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float = RUN_SECONDS) -> Outcome:
        """How it ended. One that does not end in that time is killed, which is an ending of its own."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
        return Outcome(self._process.wait(), self._output.read_text(errors="replace"))

    def end(self) -> None:
        """Kill it if it is still running."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _processes_that_mention(path: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command_line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if str(path).encode() in command_line:
                yield int(entry.name)
