"""Trees of files: what two trees must have in common to count as byte-equal, and the tree that finds out."""

from __future__ import annotations

import hashlib
import math
import os
import random
from pathlib import Path

BATCH_LIMIT_BYTES = 4 * 1024 * 1024 - 256 * 1024
"""The server's ``max_batch_total_size_bytes``: the largest blob that may still go in a batch."""
LARGE_BYTES = 101 * 1024 * 1024
SMALL_FILES, OTHER_FILES = 15_000, 5_000
_SMALL_BYTES = 200

LIMIT_FILE, ABOVE_LIMIT_FILE, LARGE_FILE = "sizes/batch-limit", "sizes/above-batch-limit", "sizes/large"
EMPTY_FILE, EMPTY_DIRECTORY = "shapes/empty", "shapes/empty-directory"
PROGRAM, LINK, DANGLING_LINK, DIRECTORY_LINK = "shapes/program", "shapes/link", "shapes/dangling", "shapes/to-many"
ODD_NAME = "shapes/a name with spaces, ü and €"


def manifest(root: Path) -> dict[str, str]:
    """Everything of a tree that a cache must keep: paths, kinds, contents, link targets and executable bits."""
    entries: dict[str, str] = {}
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(folder, name)
            entries[str(path.relative_to(root))] = _describe(path)
    return entries


def _describe(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_dir():
        return "directory"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{'program' if path.stat().st_mode & 0o100 else 'file'} {digest}"


def write_demanding_tree(root: Path) -> None:
    """20 000 files, three in four under 200 bytes, and one of each shape and size that has ever been got wrong."""
    rng = random.Random(20_000)
    for number in range(SMALL_FILES + OTHER_FILES):
        if number < SMALL_FILES:
            size = rng.randrange(1, _SMALL_BYTES)
        else:
            size = _SMALL_BYTES + int(rng.lognormvariate(math.log(1500), 1))
        path = root / "many" / f"{number % 100:02}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(size))

    sizes = {LIMIT_FILE: BATCH_LIMIT_BYTES, ABOVE_LIMIT_FILE: BATCH_LIMIT_BYTES + 1, LARGE_FILE: LARGE_BYTES}
    (root / "sizes").mkdir()
    for name, size in sizes.items():
        (root / name).write_bytes(rng.randbytes(size))

    (root / EMPTY_DIRECTORY).mkdir(parents=True)
    (root / EMPTY_FILE).touch()
    (root / ODD_NAME).write_text("odd")
    (root / PROGRAM).write_text("#!/bin/sh\n")
    (root / PROGRAM).chmod(0o755)
    (root / LINK).symlink_to("program")
    (root / DANGLING_LINK).symlink_to("nowhere/at/all")
    (root / DIRECTORY_LINK).symlink_to("../many")
