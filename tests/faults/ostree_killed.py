"""``python -m faults.ostree_killed N WHAT REPO``: does WHAT to REPO and is killed before its N-th change of a file.

The status is that of SIGKILL, or 0 when there were fewer changes than that.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = ("write", "mkdir", "link", "rename", "unlink", "rmdir", "fsync")


def kill_at(number: int, repo: str) -> None:
    """Be killed before that change."""
    left = [number]

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *arguments: Any, **options: Any) -> Any:
            changes = name != "open" or bool(arguments and arguments[0] & os.O_CREAT)
            where = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            if changes and where.startswith(repo):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(first, *arguments, **options)

        return call

    for name in (*CHANGES, "open"):
        setattr(os, name, wrapped(name, getattr(os, name)))


def main(number: int, what: str, repo: str) -> None:
    from millpond.core.clock import wall_clock
    from millpond.store.ostree import evicting
    from millpond.store.ostree.evicting import Eviction, older_or_over
    from millpond.store.ostree.repository import open_repository

    evicting.OSTREE_LEAVING_SECONDS = 0  # type: ignore[misc]
    if what == "push":
        from millpond.ssh.receive import main as receive

        kill_at(number, repo)
        receive(["--pull-url", "http://x", repo])
    elif what == "prune":
        kill_at(number, repo)
        Eviction(open_repository(repo), wall_clock).run(older_or_over(wall_clock() + 1000, None))
    else:
        kill_at(number, repo)
        repository = open_repository(repo)
        with repository.lock():
            repository.rewrite_summary()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
