"""When which commit was last pulled: ``REPO/state/millpond/uses``, a line for each use, ``<commit> <ms since 1970>``.

The rule: noting a use never fails and never waits for the repository's lock. Lines are appended, and the file is
rewritten with the last use of each commit when it has become long.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from millpond.core.limits import OSTREE_LOG_BYTES
from millpond.protocol.ostree.names import is_checksum
from millpond.store.ostree.disk import read_file, write_all
from millpond.store.ostree.places import USES, make_state

_FILE_MODE = 0o660
"""Receiver and server may be two users of one group."""


class Uses:
    """The uses of one repository's commits."""

    def __init__(self, repo: str) -> None:
        self._repo = repo
        self._path = f"{repo}/{USES}"

    def note(self, commit: str, now_ms: int) -> None:
        """Note that this commit is pulled now; where it cannot be noted, it is not."""
        with suppress(OSError):
            descriptor = self._open()
            try:
                write_all(descriptor, f"{commit} {now_ms}\n".encode())
                if os.fstat(descriptor).st_size > OSTREE_LOG_BYTES:
                    self._shorten(descriptor)
            finally:
                os.close(descriptor)

    def last(self) -> dict[str, int]:
        """The last use of each commit, in ms since 1970; none, where nothing can be read."""
        try:
            return _parse(read_file(self._path))
        except OSError:
            return {}

    def _open(self) -> int:
        """The file, locked so that nobody shortens it now: what is appended to a file that was replaced is lost."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        while True:
            try:
                descriptor = os.open(self._path, flags, _FILE_MODE)
            except FileNotFoundError:
                make_state(self._repo)
                descriptor = os.open(self._path, flags, _FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if os.path.exists(self._path) and os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _shorten(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # the next one will
        last = sorted(self.last().items(), key=lambda item: item[1])
        kept = "".join(f"{commit} {at}\n" for commit, at in last).encode()[-OSTREE_LOG_BYTES // 2 :]
        new = f"{self._path}.new"
        with suppress(FileNotFoundError):
            os.unlink(new)
        replacement = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        try:
            write_all(replacement, kept)
        finally:
            os.close(replacement)
        os.rename(new, self._path)


def _parse(content: bytes) -> dict[str, int]:
    last: dict[str, int] = {}
    for line in content.decode("ascii", "replace").splitlines():
        commit, _, at = line.partition(" ")
        if is_checksum(commit) and at.isdigit() and len(at) < 16:
            last[commit] = max(int(at), last.get(commit, 0))
    return last
