"""Files below one directory that belongs to somebody else.

The rule: every step goes through a descriptor of the directory above it and follows no link, so that nothing outside of
the directory is ever opened, whoever changes what meanwhile. Nothing is written; times of reading stay as they are where
we may say so (``O_NOATIME`` is for the owner and for root).
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from millpond.core.errors import RefusedToStart
from millpond.importing.interface import Left, Reason

_DEPTH = 64
"""Names have three or four parts; a tree that is deeper than this is none of theirs."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ESTALE)
_ODD = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR)


class Found(NamedTuple):
    """A file, or something that should have been one."""

    path: str
    """Below the directory that was listed, with ``/`` between its parts."""
    changed_ms: int
    size_bytes: int
    trouble: Reason | None = None


class Tree:
    """Everything below ``path``. For one thread."""

    def __init__(self, path: str) -> None:
        """Open it; ``path`` itself may be a link.

        Raises:
            RefusedToStart: it is no directory that can be read.
        """
        self.path = path
        self._no_atime = os.O_NOATIME
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError:
            raise RefusedToStart(f"{path} is a file: name the directory that the old server was started with") from None
        except OSError as failure:
            raise RefusedToStart(f"{path} cannot be read: {failure.strerror}") from None

    def holds_directory(self, path: str) -> bool:
        """Whether there is a directory at ``path``, without a link on the way to it."""
        with suppress(Left), self.directory(path):
            return True
        return False

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A descriptor of the directory at ``path``; empty: the whole tree's.

        Raises:
            Left: there is none, or it cannot be read.
        """
        descriptor = self.open_directory(path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_directory(self, path: str) -> int:
        """As :meth:`directory`, to be closed by the caller."""
        descriptor = os.dup(self._root)
        try:
            for part in filter(None, path.split("/")):
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
        except OSError as failure:
            os.close(descriptor)
            raise left(failure) from None
        return descriptor

    def files(self, top: str) -> Iterator[Found]:
        """Every file below the directory ``top``, in no particular order; nothing where there is no such directory."""
        waiting = [""]
        while waiting:
            below = waiting.pop()
            try:
                descriptor = self.open_directory(f"{top}/{below}")
            except Left as why:
                if why.reason is not Reason.VANISHED:
                    yield Found(_spoken(below) or ".", 0, 0, why.reason)
                continue
            try:
                with os.scandir(descriptor) as entries:
                    for entry in entries:
                        path = f"{below}/{entry.name}" if below else entry.name
                        if entry.is_dir(follow_symlinks=False) and path.count("/") < _DEPTH:
                            waiting.append(path)
                        elif (found := _found(entry, path)) is not None:
                            yield found
            except OSError as failure:
                yield Found(_spoken(below) or ".", 0, 0, left(failure).reason)
            finally:
                os.close(descriptor)

    def read(self, path: str, most_bytes: int) -> bytes:
        """The file at ``path``, if it is no larger.

        Raises:
            Left: it cannot be had.
        """
        above, _, name = path.rpartition("/")
        with self.directory(above) as directory, self.opened(directory, name) as (descriptor, size):
            if size > most_bytes:
                raise Left(Reason.GARBAGE, f"{size} bytes are too many for it")
            try:
                return os.read(descriptor, most_bytes)
            except OSError as failure:
                raise left(failure) from None

    @contextmanager
    def opened(self, directory: int, name: str) -> Iterator[tuple[int, int]]:
        """A plain file in a directory: its descriptor and its size.

        Raises:
            Left: there is none, or it cannot be read.
        """
        try:
            descriptor = self._open(directory, name)
        except OSError as failure:
            raise left(failure) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Left(Reason.ODD)
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)

    def _open(self, directory: int, name: str) -> int:
        try:
            return os.open(name, _FILE | self._no_atime, dir_fd=directory)
        except PermissionError:
            if not self._no_atime:
                raise
        descriptor = os.open(name, _FILE, dir_fd=directory)
        self._no_atime = 0  # not ours: the file system may note that it was read
        return descriptor

    def close(self) -> None:
        """Let it go. Repeating it is fine."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def _found(entry: "os.DirEntry[str]", path: str) -> Found | None:
    """What an entry is that is no directory to go into; None when it is gone."""
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    trouble = None if stat.S_ISREG(status.st_mode) and path.isprintable() else Reason.ODD
    return Found(_spoken(path), status.st_mtime_ns // 1_000_000, status.st_size, trouble)


def _spoken(path: str) -> str:
    """A path as it can be printed."""
    return path if path.isprintable() else ascii(os.fsencode(path))[2:-1]


def left(failure: OSError) -> Left:
    """What a failure means for what was to be read."""
    if failure.errno in _GONE:
        return Left(Reason.VANISHED)
    if failure.errno in _ODD:
        return Left(Reason.ODD)
    return Left(Reason.UNREADABLE, failure.strerror or "")
