"""A file system of its own, small and real, and the other program that fills it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from system.parts import require

MIB = 1 << 20


class SmallDisk:
    """A mounted file system. ``others`` is a file of another program on it."""

    def __init__(self, place: Path, *, kind: str, options: str = "", size_mib: int = 64) -> None:
        require("mounting")
        if os.geteuid() != 0:
            pytest.fail("mounting takes root: run this as root, or leave it out with MILLPOND_SKIP=mounting")
        self.path = place / "disk"
        self.path.mkdir(parents=True)
        self.others = self.path / "others"
        self._ended = threading.Event()
        self._greed: threading.Thread | None = None
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,{options}", "millpond-test", self.path)
        else:
            image = place / "image"
            with image.open("wb") as file:
                file.truncate(size_mib * MIB)
            run(f"mkfs.{kind}", "-q", "-f" if kind == "xfs" else "-F", image)
            run("mount", "-o", f"loop,{options}", image, self.path)

    def fill(self) -> None:
        """Take every byte there is."""
        for size in (MIB, 4096):
            with suppress(OSError), self.others.open("ab", buffering=0) as others:
                while others.write(b"x" * size):
                    pass

    def fill_for_ever(self) -> None:
        """Take every byte there is, and every one that comes free, until :meth:`free`."""

        def greed() -> None:
            while not self._ended.wait(0.01):
                self.fill()

        self.fill()
        self._greed = threading.Thread(target=greed)
        self._greed.start()

    def take_inodes(self) -> list[Path]:
        """Make files until there is not one inode left; those files."""
        files: list[Path] = []
        with suppress(OSError):
            for number in range(10_000):
                file = self.path / f"file{number}"
                file.touch()
                files.append(file)
        return files

    def free(self) -> None:
        """The other program gives it all back."""
        self._ended.set()
        if self._greed:
            self._greed.join()
        self.others.unlink(missing_ok=True)

    def fail(self) -> None:
        """What a kernel does that has lost its trust in a disk: from now on it can only be read."""
        source = subprocess.run(
            ["findmnt", "-no", "SOURCE", self.path], check=True, capture_output=True, text=True
        ).stdout.strip()
        Path("/sys/fs/ext4", Path(source).name, "trigger_fs_error").write_text("1")

    def close(self) -> None:
        self._ended.set()
        if self._greed:
            self._greed.join()
        deadline = time.monotonic() + 10
        while subprocess.run(["umount", self.path], capture_output=True).returncode and time.monotonic() < deadline:
            time.sleep(0.1)  # the kernel is still letting go of what had it open
        assert not self.path.is_mount(), f"somebody still uses {self.path}"


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)
