"""``REPO/state/millpond/pushes``: a line for every push, who it was and what came of it.

The rule: a push does not fail because it cannot be noted.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from millpond.core.limits import OSTREE_LOG_BYTES
from millpond.store.ostree.disk import write_all
from millpond.store.ostree.places import PUSHES, make_state

_FILE_MODE = 0o640


def note(repo: str, line: str, now_ms: int) -> None:
    """Add a line, the time before it. The file before this one stays as ``pushes.1``."""
    path = f"{repo}/{PUSHES}"
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_ms // 1000))
    with suppress(OSError):
        make_state(repo)
        with suppress(FileNotFoundError):
            if os.stat(path).st_size > OSTREE_LOG_BYTES:
                os.rename(path, f"{path}.1")
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        try:
            write_all(descriptor, f"{when} {line}\n".encode("utf-8", "replace"))
        finally:
            os.close(descriptor)
