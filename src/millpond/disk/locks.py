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

from millpond.core.errors import NotReady, WouldBlock


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


class _Descriptor:
    """Closed when nobody refers to it any more: never under a thread that is using it."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        self.number = open_lock_file(path)

    def __del__(self) -> None:
        number = getattr(self, "number", -1)
        if number >= 0:
            os.close(number)


class SharedLock:
    """The shared side of a lock that another process sometimes takes exclusively."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mine: threading.local | None = threading.local()

    @contextmanager
    def shared(self, *, wait: bool) -> Iterator[None]:
        """Hold it.

        Raises:
            WouldBlock: it is taken, and ``wait`` is False.
            NotReady: it is closed.
        """
        descriptor = self._descriptor()
        if wait:
            lock(descriptor.number, exclusive=False)
        elif not try_lock(descriptor.number, exclusive=False):
            raise WouldBlock
        try:
            yield
        finally:
            unlock(descriptor.number)

    def _descriptor(self) -> _Descriptor:
        mine = self._mine
        if mine is None:
            raise NotReady("the cache is stopping: try again in a few seconds")
        try:
            descriptor: _Descriptor = mine.descriptor
        except AttributeError:
            descriptor = mine.descriptor = _Descriptor(self._path)
        return descriptor

    def close(self) -> None:
        """Let every thread's descriptor go; a thread that holds the lock lets it go first."""
        self._mine = None
