"""Clients of every generation: the real ``bst`` of its day, with the configuration file and the commands it had then.

The promise of all of them is the same, so they are called alike; ``Release`` knows how each of them says it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from system.bst_client import BstClient, Outcome, Remote
from system.file_tree import manifest
from system.parts import BST, ROOT, casd
from system.project_maker import Project

CLASSIC = ("1.1.7", "1.2.8", "1.4.3", "1.6.8", "1.6.9")
SNAPSHOTS = ("1.91.3", "1.93.4", "1.93.5", "1.93.6")
EVERYBODY = (*CLASSIC, *SNAPSHOTS, "2.6.0", "2.8.1")

HANG_SECONDS = 60
HANG_RETRIES = 2
HANGS: Counter[str] = Counter()
"""How often each release hung. The run reports it in the end."""

Result = TypeVar("Result")

_numbers = itertools.count(1)

_DEBIAN = "1.6.8"
_TODAY = "2.8.1"
_CASD_BELONGS_TO = "2.6.0"
_CLASSIC_KEYS = {"url", "push", "server-cert", "client-key", "client-cert"}

BASE, APP = "base.bst", "app.bst"
ARTIFACTS = 2
_MIB = 1024 * 1024
_MORE_THAN_A_QUESTION = 513
"""1.x asks for 512 missing blobs at once."""


class Hung(Exception):
    """A client was ended because it hung by a race of its own."""


def despite_hangs(promise: Callable[..., Result]) -> Callable[..., Result]:
    """A test, or what makes ready for tests, begins anew when a client hung, twice at most. All it makes must be new then."""

    @functools.wraps(promise)
    def test(*args: object, **kwargs: object) -> Result:
        for _ in range(HANG_RETRIES):
            with contextlib.suppress(Hung):
                return promise(*args, **kwargs)
        return promise(*args, **kwargs)

    return test


@dataclass(frozen=True, slots=True)
class Release:
    """One version of BuildStream, and what changed on the way to it."""

    number: str

    @property
    def part(self) -> str:
        return "bst" if self.number == _TODAY else f"bst-{self.number}"

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.number.split("."))

    @property
    def bst(self) -> Path:
        if self.number == _DEBIAN:
            return Path("/usr/bin/bst")
        return BST if self.number == _TODAY else ROOT / f".venv-{self.part}" / "bin" / "bst"

    @property
    def is_classic(self) -> bool:
        """Of the 1.x line, without casd? The snapshots 1.91 to 1.93 are early versions of 2."""
        return self.version < (1, 91)

    @property
    def brings_casd(self) -> bool:
        return self.version >= (2,)

    @property
    def hangs(self) -> bool:
        """Does it hang now and then, when a job is done before its own scheduler has noted that it began?"""
        return self.version < (1, 3)

    @property
    def configuration(self) -> str:
        """The first name under which it looks for its configuration."""
        if self.is_classic:
            return "buildstream1.conf" if self.version > (1, 5, 0) else "buildstream.conf"
        return "buildstream2.conf" if self.version >= (1, 93) else "buildstream.conf"

    def caches(self, remotes: Sequence[Remote]) -> object:
        """What it wants to read below ``artifacts``."""
        if self.version >= (1, 93, 6):
            return {"servers": [remote.as_node() for remote in remotes]}
        return [self._plain(remote.as_node()) for remote in remotes]

    def empty_project(self, path: Path, name: str) -> Project:
        return Project(path, name, min_version="2.0" if self.version >= (1, 93) else None)

    def project(self, path: Path, name: str | None = None, *, demanding: bool = False) -> Project:
        """A project that it accepts, with two elements: what may be demanding about files, and what depends on it.

        The name is part of every key: without one it gets its own, so that nobody has built any of it before.
        """
        project = self.empty_project(path, name or f"pond-{next(_numbers)}")
        contents = {"empty": b"", "an odd name, ü and €": b"odd", "program": b"#!"}
        if demanding:
            contents |= {f"many/{number}": b"%d" % number for number in range(_MORE_THAN_A_QUESTION)}
            contents |= {"mebibyte": bytes(_MIB), "more": bytes(_MIB + 1), "large": b"large" * _MIB}
        project.add_import(BASE, contents)
        (project.files(BASE) / "program").chmod(0o755)
        (project.files(BASE) / "link").symlink_to("program")
        (project.files(BASE) / "nothing").mkdir()
        project.add_import(APP, {"app/hello": b"Hello, mill\n"}, depends=(BASE,))
        return project

    def artifact_command(self, verb: str) -> list[str]:
        """``bst pull``, or as it was called later: ``bst artifact pull``."""
        return [verb] if self.is_classic else ["artifact", verb]

    def _plain(self, node: dict[str, Any]) -> dict[str, Any]:
        """The form before 1.93.6: no ``auth``, and a flat list of caches."""
        flat = {**node, **node.get("auth", {})}
        flat.pop("auth", None)
        return {key: value for key, value in flat.items() if key in _CLASSIC_KEYS or not self.is_classic}


@dataclass(frozen=True, slots=True)
class Made:
    """What a build of ``APP`` came to."""

    project: Project
    outcome: Outcome
    names: tuple[str, str]
    """The artifact names of ``BASE`` and ``APP``."""


def expected(project: Project) -> dict[str, str]:
    """What a checkout of ``APP`` has to hold: its own files and those of what it depends on."""
    return {**manifest(project.files(BASE)), **manifest(project.files(APP))}


class OldClient(BstClient):
    """One user's ``bst`` of some release, which reads the configuration where that release looks for it."""

    def __init__(self, home: Path, release: Release) -> None:
        self.release = release
        super().__init__(home)
        self._nowhere = release.empty_project(home / "nowhere", "nowhere")

    def configure(self, *, artifacts: Sequence[Remote] = (), sources: Sequence[Remote] = ()) -> None:
        conf: dict[str, object] = {}
        if artifacts:
            conf["artifacts"] = self.release.caches(artifacts)
        if sources:
            conf["source-caches"] = self.release.caches(sources)
        self.configure_with(json.dumps(conf, indent=2))

    def configure_with(self, text: str) -> None:
        """Use this configuration, word for word, from the next command on."""
        directory = self.home / "config"
        directory.mkdir(exist_ok=True)
        (directory / self.release.configuration).write_text(text)

    def command(self) -> list[str | Path]:
        return [self.release.bst]

    def environment(self) -> dict[str, str]:
        environment = super().environment()
        if not self.release.is_classic and not self.release.brings_casd:
            directory = casd(Release(_CASD_BELONGS_TO).bst).parent
            environment["PATH"] = f"{directory}:{environment['PATH']}"
        return environment

    def attempt(self, *args: str, project: Project | None = None) -> Outcome:
        """Run a command to its end.

        Raises:
            Hung: it did not end, as this release does now and then; it is gone now.
        """
        if not self.release.hangs:
            return super().attempt(*args, project=project)
        outcome = self.start(*args, project=project).wait(HANG_SECONDS)
        if outcome.exit_code == -signal.SIGKILL:
            HANGS[self.release.number] += 1
            raise Hung(f"bst {self.release.number} {' '.join(args)}\n{outcome.output}")
        return outcome

    def make(self, project: Project) -> Made:
        """Build ``APP`` and what it depends on: pull, build and push, as needed."""
        outcome = self.run("build", APP, project=project)
        return Made(project, outcome, (outcome.artifact(BASE), outcome.artifact(APP)))

    def push_again(self, made: Made) -> Outcome:
        return self.run(*self.release.artifact_command("push"), "--deps", "all", APP, project=made.project)

    def bring(self, made: Made) -> Outcome:
        """Pull it. By name and without its project where that can be done: loading local sources fills casd's store."""
        if self.release.is_classic:
            return self.run("pull", "--deps", "all", APP, project=made.project)
        return self.run("artifact", "pull", *made.names)

    def tree(self, made: Made) -> dict[str, str]:
        """What a checkout of ``APP`` and what it depends on holds."""
        if self.release.is_classic:
            return manifest(self._laid_out("checkout", APP, project=made.project))
        base, app = (self._laid_out("artifact", "checkout", "--deps", "none", name) for name in made.names)
        return {**manifest(base), **manifest(app)}

    def _laid_out(self, *command: str, project: Project | None = None) -> Path:
        place = Path(tempfile.mkdtemp(dir=self.home)) / "checkout"
        self.run(*command, *([] if self.release.is_classic else ["--directory"]), str(place), project=project)
        return place
