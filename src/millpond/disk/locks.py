"""flock, spelled out.

A lock belongs to an open file description: two threads that share a descriptor share its lock, and one would release
it under the other. So every thread that locks has a descriptor of its own. The kernel drops a dead process's locks.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from millpond.core.errors import WouldBlock


def open_lock_file(path: str, *, read_only: bool = False) -> int:
    """A descriptor to lock with. The file's content means nothing."""
    flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
    return os.open(path, flags | os.O_CLOEXEC, 0o644)


def try_lock(descriptor: int, *, exclusive: bool) -> bool:
    """Take the lock if that is possible at once."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as failure:
        if failure.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def lock(descriptor: int, *, exclusive: bool) -> None:
    """Take the lock, however long that takes."""
    fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)


def unlock(descriptor: int) -> None:
    """Let the lock go."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


class SharedLock:
    """The shared side of a lock that another process sometimes takes exclusively."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mine = threading.local()
        self._opened: list[int] = []
        self._guard = threading.Lock()

    @contextmanager
    def shared(self, *, wait: bool) -> Iterator[None]:
        """Hold it.

        Raises:
            WouldBlock: it is taken, and ``wait`` is False.
        """
        descriptor = self._descriptor()
        if wait:
            lock(descriptor, exclusive=False)
        elif not try_lock(descriptor, exclusive=False):
            raise WouldBlock
        try:
            yield
        finally:
            unlock(descriptor)

    def _descriptor(self) -> int:
        try:
            descriptor: int = self._mine.descriptor
        except AttributeError:
            descriptor = self._mine.descriptor = open_lock_file(self._path)
            with self._guard:
                self._opened.append(descriptor)
        return descriptor

    def close(self) -> None:
        """Close every thread's descriptor. Nobody may hold it any more."""
        with self._guard:
            for descriptor in self._opened:
                os.close(descriptor)
            self._opened.clear()
