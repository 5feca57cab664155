"""A little disk space that is given up when the disk is full: to make room one has to write a summary first.

The rule: it is there after every prune and after ``millpond ostree init``; where there is no room for it, there is none.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.limits import KIB
from millpond.store.ostree.places import BALLAST

_BYTES = 1024 * KIB
"""A summary of some thousand refs, the directory entries beside it, and the file that says that they may differ."""


def take_ballast(repo: str) -> None:
    """Have some, if there is room."""
    path = f"{repo}/{BALLAST}"
    with suppress(OSError):
        if os.path.exists(path):
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _BYTES)
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)


def throw_ballast(repo: str) -> bool:
    """Give it up; whether there was any."""
    try:
        os.unlink(f"{repo}/{BALLAST}")
    except OSError:
        return False
    return True
