"""What is in the repository can be read: source, text, figures. Packages and other binaries are installed, never checked in."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def is_text(path: Path) -> bool:
    try:
        return "\0" not in path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def test_every_file_is_text() -> None:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # root may test what another user cloned
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert files
    assert [str(path.relative_to(ROOT)) for path in files if path.is_file() and not is_text(path)] == []
