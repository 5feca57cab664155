"""BuildStream projects, made as a user would write them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GREETING = "greeting.bst"
_TOOLS = ("sh", "cat", "cp", "head", "ln", "mkdir", "chmod", "false")


@dataclass(frozen=True, slots=True)
class Project:
    """A project directory with elements that are added one by one."""

    path: Path
    name: str = "pond"
    min_version: str | None = "2.0"
    """What it asks of BuildStream 2; None is a project for BuildStream 1, which does not know the question."""

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True)
        asks = f"min-version: {self.min_version}\n" if self.min_version else ""
        (self.path / "project.conf").write_text(f"name: {self.name}\n{asks}element-path: elements\n")
        (self.path / "elements").mkdir()

    def files(self, element: str) -> Path:
        """Where the files of an element that imports files lie; its artifact holds just these."""
        return self.path / "files" / element

    def add_element(self, element: str, text: str) -> None:
        (self.path / "elements" / element).write_text(text)

    def add_import(self, element: str, contents: Mapping[str, bytes], *, depends: tuple[str, ...] = ()) -> None:
        """An element whose artifact is the files of ``files(element)``, to begin with ``contents``."""
        self.files(element).mkdir(parents=True)
        for name, data in contents.items():
            path = self.files(element) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        upon = "".join(["depends:\n", *(f"- {name}\n" for name in depends)]) if depends else ""
        self.add_element(element, f"kind: import\n{upon}sources:\n- kind: local\n  path: files/{element}\n")

    def add_download(self, element: str, origin: Path) -> None:
        """An element whose source is fetched from elsewhere: from ``origin``, as long as that exists."""
        ref = hashlib.sha256(origin.read_bytes()).hexdigest()
        source = f"- kind: remote\n  url: {origin.as_uri()}\n  ref: {ref}\n"
        self.add_element(element, f"kind: import\nsources:\n{source}")

    def add_sysroot(self, element: str) -> None:
        """An element with a shell and a few tools, enough to run commands in a sandbox upon it."""
        busybox = shutil.which("busybox")
        assert busybox, "the test should have required the part `sandbox`"
        self.add_import(element, {"tmp/.keep": b""})
        programs = self.files(element) / "bin"
        programs.mkdir()
        shutil.copy(busybox, programs / "busybox")
        for tool in _TOOLS:
            (programs / tool).symlink_to("busybox")

    def add_manual(self, element: str, *commands: str, build_depends: tuple[str, ...]) -> None:
        """An element that runs commands in a real sandbox; what they leave in %{install-root} is its artifact."""
        lines = ["kind: manual", "build-depends:", *(f"- {name}" for name in build_depends)]
        lines += ["config:", "  install-commands:", *(f"  - {command}" for command in commands)]
        self.add_element(element, "\n".join(lines) + "\n")


def greeting_project(path: Path) -> Project:
    """A project with the one small element ``GREETING``, for promises that size has no part in."""
    project = Project(path)
    project.add_import(GREETING, {"hello.txt": b"Hello, mill\n", "by/the/pond": bytes(range(256)) * 40})
    return project
