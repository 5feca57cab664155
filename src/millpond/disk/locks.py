"""flock, spelled out.

A lock belongs to an open file description: two threads that share a descriptor share its lock, and one would release
it under the other. So every thread that locks has a descriptor of its own. The kernel drops a dead process's locks.

The kernel lets new shared holders pass one who waits for the exclusive side, so where somebody always holds it, it is
never to be had. So whoever wants it exclusively *asks* first: in the file stands until when nobody is to begin. What is
asked runs out by itself, soon, or a killed process would keep everybody waiting.
"""

import errno
import fcntl
import os
import threading
import time
from contextlib import suppress

from millpond.core.errors import NotReady, WouldBlock
from millpond.disk.files import FILE_MODE


def open_lock_file(path: str, *, read_only: bool = False) -> int:
    """A descriptor to lock with. The file's content means nothing."""
    flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)


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


def is_held(path: str) -> bool:
    """Whether somebody holds the lock of the file at ``path`` exclusively."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, exclusive=False)
    finally:
        os.close(descriptor)


class _Descriptor:
    """Closed when nobody refers to it any more: never under a thread that is using it."""

    __slots__ = ("number",)

    def __init__(self, path: str) -> None:
        try:
            self.number = open_lock_file(path, read_only=True)  # which a disk that takes no writes any more allows
        except FileNotFoundError:
            self.number = open_lock_file(path)

    def __del__(self) -> None:
        number = getattr(self, "number", -1)
        if number >= 0:
            os.close(number)


_WORD_BYTES = 8
_ASKED_MS = 50
"""How long what was asked holds; it is asked again for as long as the lock is wanted."""
_PAUSE_SECONDS = 0.002


def ask(descriptor: int) -> None:
    """Ask those who would share the lock to wait a moment. Where the disk does not allow it, nobody is asked."""
    _say(descriptor, _now_ms() + _ASKED_MS)


def ask_no_more(descriptor: int) -> None:
    """What was asked is over."""
    _say(descriptor, 0)


def is_asked(descriptor: int) -> bool:
    """Whether somebody waits for the exclusive side. What lies further ahead was said before this machine started."""
    ahead_ms = int.from_bytes(os.pread(descriptor, _WORD_BYTES, 0), "little") - _now_ms()
    return 0 < ahead_ms <= _ASKED_MS


def _say(descriptor: int, until_ms: int) -> None:
    with suppress(OSError):
        os.pwrite(descriptor, until_ms.to_bytes(_WORD_BYTES, "little"), 0)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000  # one clock for all processes of a machine


class _Held:
    """A shared lock that was taken. No generator: that would cost as much as the lock, at every call to the cache."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: _Descriptor) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        unlock(self._descriptor.number)


class SharedLock:
    """The shared side of a lock that another process sometimes takes exclusively."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._mine: threading.local | None = threading.local()

    def shared(self, *, wait: bool) -> "_Held":
        """Take it; what is returned lets it go at the end of a ``with``.

        Raises:
            WouldBlock: it is taken, and ``wait`` is False.
            NotReady: it is closed.
        """
        descriptor = self._descriptor()
        if wait:
            while is_asked(descriptor.number):
                time.sleep(_PAUSE_SECONDS)
            lock(descriptor.number, exclusive=False)
        elif is_asked(descriptor.number) or not try_lock(descriptor.number, exclusive=False):
            raise WouldBlock
        return _Held(descriptor)

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
