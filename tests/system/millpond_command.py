"""``millpond`` as a user calls it, beside servers that run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 120


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended and what it printed."""

    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


def millpond(*arguments: str | Path) -> Said:
    """Run one command to its end. A traceback is never an answer."""
    command = [sys.executable, "-m", "millpond", *map(str, arguments)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode in (0, 1, 2), ended
    if ended.returncode == 2:
        assert ended.stderr.count("\n") == 1, ended.stderr
    return Said(ended.returncode, ended.stdout, ended.stderr)
