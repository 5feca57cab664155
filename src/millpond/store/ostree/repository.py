"""An OSTree repository as a place: opened, made, locked, healed.

The rule: opening changes nothing and costs a few system calls, because a process is started for every push and for every
question whether one might push. Everything that it does not need is imported where it is needed.
"""

from __future__ import annotations

import os

from millpond.core.errors import MillpondError, RefusedToStart
from millpond.core.limits import OSTREE_LOCK_SECONDS
from millpond.store.ostree import config
from millpond.store.ostree.places import UNFINISHED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from millpond.core.clock import Clock
    from millpond.store.ostree.disk import Lock

DIRECTORIES = (
    "objects",
    "tmp",
    "tmp/cache",
    "state",
    "extensions",
    "refs",
    "refs/heads",
    "refs/remotes",
    "refs/mirrors",
)
"""What ``ostree init`` makes."""
_CONFIG_BYTES = 1 << 20


class Repository:
    """An archive repository at ``path``; use :func:`open_repository`."""

    def __init__(self, path: str, settings: config.Config) -> None:
        self.path = path
        self.settings = settings

    def lock(self) -> Lock:
        """The lock under which refs, objects and summary change; to be entered."""
        from millpond.store.ostree.disk import Lock

        return Lock(self.path, OSTREE_LOCK_SECONDS)

    @property
    def needs_healing(self) -> bool:
        """Whether somebody died between refs and summary, or there is no summary."""
        return os.path.exists(f"{self.path}/{UNFINISHED}") or not os.path.exists(f"{self.path}/summary")

    def heal(self) -> None:
        """Write the summary if it may be wrong.

        Where the repository cannot be written, or somebody else is at work on it, nothing happens: whoever comes next
        does it.
        """
        if not self.needs_healing:
            return
        from millpond.store.ostree.disk import Lock

        try:
            lock = Lock(self.path, 0.0)
            if lock.try_enter():
                try:
                    self.rewrite_summary()
                finally:
                    lock.leave()
        except (OSError, MillpondError):
            return

    def rewrite_summary(self, clock: Clock | None = None) -> None:
        """Make the summary say what the refs say; under the lock.

        Raises:
            OSError: it cannot be written.
        """
        from millpond.core.clock import wall_clock
        from millpond.store.ostree.refs import list_refs
        from millpond.store.ostree.summary import NewSummary, end_change, listed

        tombstones = self.settings.has_tombstones
        now_ms = (clock or wall_clock)()
        refs = listed(self.path, list_refs(self.path))
        NewSummary(self.path, refs, now_ms, has_tombstones=tombstones).apply()
        end_change(self.path)


def open_repository(path: str) -> Repository:
    """The archive repository at ``path``, whoever made it.

    Raises:
        RefusedToStart: there is none, or it cannot be used.
    """
    try:
        descriptor = os.open(f"{path}/config", os.O_RDONLY | os.O_CLOEXEC)
        try:
            settings = config.parse(os.read(descriptor, _CONFIG_BYTES).decode("utf-8", "replace"))
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise RefusedToStart(f"{path} is no OSTree repository: make one with millpond ostree init") from None
    except OSError as failure:
        raise RefusedToStart(f"{path} cannot be read: {os.strerror(failure.errno or 0)}") from None
    except RefusedToStart as why:
        raise RefusedToStart(f"{path}: {why}") from None
    for name in ("objects", "refs/heads", "tmp"):
        if not os.path.isdir(f"{path}/{name}"):
            raise RefusedToStart(f"{path} has no directory {name}: millpond ostree init makes what is missing")
    return Repository(path, settings)
