"""A few MiB that can be given up, because even making room needs room.

When another program has filled the disk, eviction must still be able to write that entries go, and a promise must still
be noted (tried: on a full disk LMDB cannot commit a delete). So a file holds some blocks from the beginning. The rule: it
is given up only for that, never for a blob, and made anew as soon as the disk and the quota have room to spare.
"""

import logging
import os
from contextlib import suppress

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk.blocks import Grow
from millpond.disk.files import FILE_MODE
from millpond.store.repository.layout import Layout
from millpond.store.room.quota import StoredQuota
from millpond.store.room.taken import file_bytes

log = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
_PLENTY = 4
"""It is made when so many times its size is free."""


class Ballast:
    """The file; also a duty of upkeep, which makes it anew."""

    name = "ballast"

    def __init__(self, layout: Layout, grow: Grow = lambda _, grow: grow()) -> None:
        """``grow`` lets it be made where the quota has room for it."""
        self._layout = layout
        self._quota = StoredQuota(layout)
        self._grow = grow

    def give_up(self) -> bool:
        """Let its blocks go; whether there were any."""
        if not file_bytes(self._layout.ballast):
            return False
        try:
            os.truncate(self._layout.ballast, 0)  # not unlinked: removing a name may need a block on some file systems
        except OSError:
            return False
        log.warning(
            "there is no room left on the disk or in the quota: the ballast is given up, so that some can be made"
        )
        return True

    def run(self) -> float:
        """Make it anew if it was given up and there is room, or if the quota has changed."""
        wanted = limits.ballast_bytes(self._quota.quota_bytes)
        held = file_bytes(self._layout.ballast)
        disk = os.statvfs(self._layout.root)
        if self._length() > wanted or (held < wanted and disk.f_bavail * disk.f_frsize > _PLENTY * wanted):
            self._make(wanted)
        return _LOOK_SECONDS

    def _length(self) -> int:
        """Its blocks may be more: they are whole ones."""
        try:
            return os.stat(self._layout.ballast).st_size
        except FileNotFoundError:
            return 0

    def _make(self, size_bytes: int) -> None:
        descriptor = os.open(self._layout.ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            os.ftruncate(descriptor, 0)
            with suppress(OSError, NoSpace):  # somebody was quicker: later, then
                self._grow(size_bytes, lambda: os.posix_fallocate(descriptor, 0, size_bytes))
        finally:
            os.close(descriptor)
