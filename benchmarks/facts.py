"""What the numbers were measured on: hardware, kernel and versions, and nothing that names a host or a user."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.servers import PROJECT, Peers


def machine(scratch: Path) -> dict[str, str | int]:
    """Cores, processor, memory and kernel, and the file system that the stores lie on."""
    return {
        "cores": os.cpu_count() or 1,
        "processor": _processor(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "store_file_system": _file_system(scratch),
    }


def versions(peers: Peers) -> dict[str, str]:
    """Every program that takes part; Millpond with its commit, and ``-dirty`` when the tree differs from it."""
    found = {"python": platform.python_version()}
    for package in ("millpond", "grpcio", "uvloop", "lmdb"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
        commit = subprocess.run(describe, cwd=PROJECT, capture_output=True, text=True, timeout=30, check=True)
        found["millpond commit"] = commit.stdout.strip()
    return found | peers.versions()


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _file_system(path: Path) -> str:
    """The type of the mount with the longest prefix of ``path``."""
    best, kind = "", "unknown"
    with contextlib.suppress(OSError), open("/proc/mounts", encoding="utf-8") as file:
        for line in file:
            _, mount, this_kind, *_ = line.split()
            if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
                best, kind = mount, this_kind
    return kind
