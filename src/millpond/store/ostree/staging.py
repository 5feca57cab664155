"""Where a push is received: a directory of its own in ``REPO/tmp``, gone when the push is over.

The rule: an object is in here only when all of it was verified. Who lives holds the directory's lock, so what a killed
process left is told from what is still being received.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

from millpond.core import limits
from millpond.core.errors import InvalidRequest, NotReady, TooMuch
from millpond.protocol.ostree.filez import FilezCheck
from millpond.protocol.ostree.names import METADATA_TYPES
from millpond.protocol.ostree.objects import Commit, DirMeta, DirTree, check_commitmeta, check_metadata
from millpond.store.ostree.disk import begin_writing, sync_file_system, write_all, write_file
from millpond.store.ostree.places import OLD_STAGING_PREFIX, STAGING_PREFIX, TMP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Key = tuple[str, str]
    """Checksum and type."""
    Metadata = Commit | DirTree | DirMeta

BLOCK_BYTES = 4096
_OLD_SECONDS = 86_400
"""A directory of the receiver before us has no lock; after a day nobody lives who made it."""
_SMALL_BYTES = 256 * limits.KIB
"""Files up to this size are verified first and then written; larger ones while they come."""
_WRITE_AHEAD_BYTES = 8 * limits.MIB
_NAME_TRIES = 8


def on_disk(size_bytes: int) -> int:
    """What a file of this size takes."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


class Staging:
    """What one push has brought so far; ``grow`` is told how much is to be written, before it is.

    Raises:
        NotReady: it cannot be made.
        OSError: the disk is full, or fails.
    """

    def __init__(self, repo: str, grow: Callable[[int], None]) -> None:
        self._grow = grow
        self.sizes: dict[Key, int] = {}
        self.metadata: dict[Key, Metadata] = {}
        self.commits: dict[str, bytes] = {}
        self.received_bytes = 0
        self.path, self._lock = _make(f"{repo}/{TMP}")

    def place(self, checksum: str, kind: str) -> str:
        """Where an object of this push lies."""
        return f"{self.path}/{checksum}.{kind}"

    def add(self, checksum: str, kind: str, size_bytes: int, pieces: Iterator[bytes]) -> None:
        """Take an object in.

        Raises:
            DigestMismatch: it is not what its name says.
            InvalidRequest: it is no such object, or comes for the second time.
            TooMuch: it is beyond a limit.
            OSError: the disk is full, or fails.
        """
        key = (checksum, kind)
        if key in self.sizes:
            raise InvalidRequest(f"{checksum}.{kind} was sent twice")
        if len(self.sizes) >= limits.OSTREE_OBJECTS:
            raise TooMuch(f"more than {limits.OSTREE_OBJECTS} objects in one push")
        if kind == "filez":
            self._add_file(checksum, size_bytes, pieces)
        else:
            self._add_metadata(checksum, kind, size_bytes, pieces)
        self.sizes[key] = size_bytes
        self.received_bytes += size_bytes

    def _add_metadata(self, checksum: str, kind: str, size_bytes: int, pieces: Iterator[bytes]) -> None:
        if size_bytes > limits.OSTREE_METADATA_BYTES:
            raise TooMuch(f"{checksum}.{kind} has {size_bytes} bytes: {limits.OSTREE_METADATA_BYTES} are the most")
        data = b"".join(pieces)
        if kind in METADATA_TYPES:
            self.metadata[checksum, kind] = check_metadata(checksum, kind, data)
            if kind == "commit":
                self.commits[checksum] = data
        elif kind == "commitmeta":
            check_commitmeta(data)
        else:
            return  # nobody ever asks for it, and nothing can be verified of it
        self._grow(on_disk(size_bytes))
        write_file(self.place(checksum, kind), data)

    def _add_file(self, checksum: str, size_bytes: int, pieces: Iterator[bytes]) -> None:
        check = FilezCheck(checksum)
        if size_bytes <= _SMALL_BYTES:
            data = b"".join(pieces)
            check.feed(data)
            check.finish()
            self._grow(on_disk(size_bytes))
            write_file(self.place(checksum, "filez"), data)
            return
        path = self.place(checksum, "filez")
        write_file(path, b"")
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = begun = 0
            for piece in pieces:
                self._grow(len(piece))
                check.feed(piece)
                write_all(descriptor, piece)
                written += len(piece)
                if written - begun >= _WRITE_AHEAD_BYTES:
                    begin_writing(descriptor, begun, written - begun)
                    begun = written
            check.finish()
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Make all of it durable.

        Raises:
            OSError: the disk failed.
        """
        sync_file_system(self._lock)

    def close(self) -> None:
        """The push is over: what was not stored is gone."""
        if self._lock >= 0:
            _remove(self.path)
            os.close(self._lock)
            self._lock = -1


def _make(tmp: str) -> tuple[str, int]:
    for _ in range(_NAME_TRIES):
        path = f"{tmp}/{STAGING_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        os.mkdir(path, 0o700)
        descriptor = _lock(path)
        if descriptor is not None:
            if os.path.exists(path):
                return path, descriptor
            os.close(descriptor)
    raise NotReady("the cache is out of order: no push can be received")


def _lock(path: str) -> int | None:
    """The directory's lock; None while somebody lives who holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: str) -> None:
    with suppress(OSError):
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                _remove(entry.path)
            else:
                os.unlink(entry.path)
        os.rmdir(path)


def remove_stale(repo: str, names: list[str]) -> None:
    """Remove what processes left in ``tmp`` that are no more; ``names`` is what lies there."""
    for name in names:
        path = f"{repo}/{TMP}/{name}"
        if name.startswith(STAGING_PREFIX):
            descriptor = _lock(path)
            if descriptor is not None:
                _remove(path)
                os.close(descriptor)
        elif name.startswith(OLD_STAGING_PREFIX):
            with suppress(OSError):
                if os.stat(path).st_mtime < time.time() - _OLD_SECONDS:
                    _remove(path)
