"""Every fuzz target runs, for a moment each; long runs are for whoever changes a parser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = [
    "binding",
    "find_missing",
    "grpc_frames",
    "grpc_timeout",
    "gvariant",
    "http2",
    "keys",
    "names_values",
    "ostree_config",
    "ostree_file",
    "ostree_frame",
    "ostree_metadata",
    "ostree_names",
    "ostree_summary",
    "ostree_tar",
    "resource_names",
    "segment_footer",
    "segment_header",
    "segment_records",
    "sizes",
    "source",
    "touch_log",
    "update_artifact",
    "write_request",
]


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_a_moment_of_random_input_is_survived(target: str) -> None:
    ended = fuzz(target, "--seconds", "0.3")
    assert ended.returncode == 0, ended.stderr
    assert "inputs survived" in ended.stdout


def test_these_are_all_targets() -> None:
    assert "{" + ",".join(TARGETS) + "}" in fuzz("--help").stdout.replace("\n", "").replace(" ", "")
