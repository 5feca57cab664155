"""Files of an OSTree repository: its lock, files that appear whole, and syncing many at once.

The rule: an object is never written in its place; it is linked there when all of it is on disk, and what lies there
already stays. Many small files are synced by one call for their file system: a call for each would take as many
turns of the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

from millpond.core.errors import MillpondError, NoSpace, NotReady

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

PUBLIC_FILE = 0o644
"""What is served is for everybody to read, whatever the umask of an ssh session: nginx is another user."""

_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock`` with 64-bit offsets: type, whence, start, length, pid."""
_PAUSE_SECONDS = (0.001, 0.05)
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says when there is no room."""
_SYNC_FILE_RANGE_WRITE = 2


class Lock:
    """libostree's lock of a repository, its exclusive side (``ostree_repo_lock_push``).

    It belongs to the open file, as libostree's does, so a child or another thread does not let it go.

    Raises, when it is entered:
        NotReady: it could not be had within ``patience_seconds``, or not at all.
    """

    def __init__(self, repo: str, patience_seconds: float) -> None:
        self._path = f"{repo}/.lock"
        self._patience_seconds = patience_seconds
        self._descriptor = -1

    def __enter__(self) -> Lock:
        if not self.try_enter(self._patience_seconds):
            raise NotReady("the cache is busy: another program holds its lock; try again later")
        return self

    def try_enter(self, patience_seconds: float = 0.0) -> bool:
        """Take it, if that is possible within so long."""
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as failure:
            raise refusal(failure, "its lock cannot be opened") from None
        pause, longest = _PAUSE_SECONDS
        deadline = time.monotonic() + patience_seconds
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        while True:
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, wanted)
            except OSError as failure:
                if failure.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            else:
                return True
            if time.monotonic() >= deadline:
                self.leave()
                return False
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def leave(self) -> None:
        """Let it go."""
        os.close(self._descriptor)
        self._descriptor = -1

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def refusal(failure: OSError, what: str = "it cannot be written") -> MillpondError:
    """What a peer is told of a failing disk: no path of ours."""
    if failure.errno in FULL:
        return NoSpace("the disk of the cache is full: nothing was stored")
    return NotReady(
        f"the cache is out of order: {what} ({os.strerror(failure.errno or 0)}); its administrator knows more"
    )


def read_file(path: str, most_bytes: int | None = None) -> bytes:
    """All of a file, or its first bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if most_bytes is not None:
            size = min(size, most_bytes)
        data = os.read(descriptor, size + 1 if most_bytes is None else size)
        if len(data) >= size:
            return data
        pieces = [data]
        while pieces[-1]:
            pieces.append(os.read(descriptor, size))
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def write_file(path: str, content: bytes, *, mode: int = PUBLIC_FILE) -> None:
    """A new file, not synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)  # the umask was for others
        write_all(descriptor, content)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """All of it, however often the system stops half-way."""
    written = os.write(descriptor, content)
    if written < len(content):
        view = memoryview(content)[written:]
        while view:
            view = view[os.write(descriptor, view) :]


def make_directories(path: str, like: str) -> None:
    """``path`` and what leads to it below ``like``, whose mode they get."""
    if os.path.isdir(path):
        return
    make_directories(os.path.dirname(path), like)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return
    os.chmod(path, os.stat(like).st_mode & 0o7777)


def sync_file_system(descriptor: int) -> None:
    """Make everything durable that was written to the file system of this descriptor: one wait for all of it.

    Raises:
        OSError: some of it could not be written.
    """
    call = _libc("syncfs")
    if call is None:
        os.sync()
        return
    if call(descriptor) != 0:
        _raise_errno()


def sync_repository(repo: str) -> None:
    """Make durable whatever was done to a repository, in all of its directories.

    Raises:
        OSError: some of it could not be written.
    """
    descriptor = os.open(repo, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


def begin_writing(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin with these bytes now, so that less is to be waited for in the end."""
    call = _libc("sync_file_range")
    if call is not None:
        import ctypes

        call(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


_calls: dict[str, object] = {}


def _libc(name: str) -> _Call | None:
    """A call of the C library that Python has no name for."""
    if name not in _calls:
        try:
            import ctypes  # not before somebody pushes: a probe is to be quick

            _calls[name] = getattr(ctypes.CDLL(None, use_errno=True), name, None)
        except (ImportError, OSError):
            _calls[name] = None
    found: _Call | None = _calls[name]  # type: ignore[assignment]
    return found


def _raise_errno() -> None:
    import ctypes

    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


if TYPE_CHECKING:
    from collections.abc import Callable

    _Call = Callable[..., int]
