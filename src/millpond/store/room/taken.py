"""What a repository takes on its disk beside segments and uploads, and what the disk has left.

The rule: everything counts that ``du`` would count, in blocks: both databases and the table of uses, logs, copies,
lock files, directories, whatever its name. Segments and uploads are left out, because the ledger (``store.room.space``) knows
them to the byte without looking at thousands of files.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from millpond.store.repository.layout import Layout

BLOCK_BYTES = 512
"""The unit of ``st_blocks``, whatever the file system's own (stat(2))."""
_INODES = 16
_BRIM_BYTES = 64 << 10
_REMEMBERED_SECONDS = 0.1
"""Upkeep and those who wait look many times per second. Whoever takes something measures anew (:meth:`Taken.forget`)."""


def file_bytes(path: str) -> int:
    """What a file takes; 0 for one that is not there."""
    try:
        return os.lstat(path).st_blocks * BLOCK_BYTES
    except FileNotFoundError:
        return 0


def database_bytes(path: str) -> int:
    """What the data of the environment in ``path`` takes."""
    return file_bytes(os.path.join(path, "data.mdb"))


def files_in(directory: str) -> Iterator[tuple[str, int]]:
    """Name and bytes of every file in ``directory``; what vanishes meanwhile is passed over."""
    try:
        entries = os.scandir(directory)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process renamed or removed it
                yield entry.name, entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES


def tree_bytes(directory: str, *, leave_out: frozenset[str] = frozenset()) -> int:
    """What a directory takes with all that is in it; of those named in ``leave_out`` only the directory itself."""
    taken = file_bytes(directory)
    try:
        entries = os.scandir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return taken
    with entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    taken += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
                elif entry.name in leave_out:
                    taken += file_bytes(entry.path)
                else:
                    taken += tree_bytes(entry.path)
    return taken


class Measured(NamedTuple):
    """What was seen at one time."""

    begun: float
    """When, monotonic."""
    overhead_bytes: int
    """Everything but segments and uploads."""
    databases: Mapping[str, int]
    """What of that the file of each database took, or less: by path of its environment."""


class Taken:
    """Measures one repository. Some thirty files, a tenth of a millisecond."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known_in_ledger = frozenset({os.path.basename(layout.segments), os.path.basename(layout.uploads)})
        self._not_before = float("-inf")
        self._measured = Measured(float("-inf"), 0, {})

    def measured(self) -> Measured:
        """What is there beside segments and uploads, as of a moment ago; as of now after :meth:`forget`."""
        now, measured = time.monotonic(), self._measured
        if measured.begun < self._not_before or now - measured.begun > _REMEMBERED_SECONDS:
            layout = self._layout
            databases = {path: database_bytes(path) for path in (layout.index, layout.names, layout.uses)}
            overhead_bytes = tree_bytes(layout.root, leave_out=self._known_in_ledger)
            measured = self._measured = Measured(now, overhead_bytes, databases)
        return measured

    def overhead_bytes(self) -> int:
        """Everything but segments and uploads."""
        return self.measured().overhead_bytes

    def forget(self) -> None:
        """Measure anew when it is asked for next."""
        self._not_before = time.monotonic()

    def uploads_bytes(self) -> int:
        """What uploads have written."""
        return sum(size for _, size in files_in(self._layout.uploads))

    def lacks_inodes(self) -> bool:
        """Whether the disk has no place for new files, however many bytes are free. Not every file system counts them."""
        disk = os.statvfs(self._layout.root)
        return disk.f_files > 0 and disk.f_favail < _INODES

    def is_brimful(self) -> bool:
        """Whether somebody else has filled the disk, and what was kept for that is given up."""
        return self.free_bytes() < _BRIM_BYTES and not file_bytes(self._layout.ballast)

    def free_bytes(self) -> int:
        """What the disk still has for us."""
        disk = os.statvfs(self._layout.root)
        return disk.f_bavail * disk.f_frsize
