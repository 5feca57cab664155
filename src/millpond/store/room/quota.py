"""The quota of a repository as it is now.

The rule (I10): it belongs to the repository. Every process reads it from the marker and looks again after a moment, so
that a quota which somebody gives while others run holds for all of them.
"""

import os
import time
from pathlib import Path

from millpond.core import limits
from millpond.core.errors import RefusedToStart
from millpond.store.repository import filesystem
from millpond.store.repository.layout import Layout, recognise

_LOOK_SECONDS = 0.5
GIVEN = "quota_bytes"
"""In the marker: the quota that somebody gave."""
MEASURED = "measured_quota_bytes"
"""In the marker: what the repository may take while nobody has given a quota."""


class StoredQuota:
    """Reads the marker's quota, at most twice a second."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._looked_at = float("-inf")
        self._seen: tuple[int, int] | None = None
        self._quota_bytes = 0
        self._segment_bytes = 0

    @property
    def quota_bytes(self) -> int:
        """The most that the repository may take."""
        self._look_now_and_then()
        return self._quota_bytes

    @property
    def segment_bytes(self) -> int:
        """The size of a segment: cut from the quota, or from the disk where that is smaller."""
        self._look_now_and_then()
        return self._segment_bytes

    def _look_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > _LOOK_SECONDS:
            self._look()
            self._looked_at = now
            disk_bytes = filesystem.size_bytes(self._layout.root)
            self._segment_bytes = limits.segment_bytes(min(self._quota_bytes, disk_bytes))

    def _look(self) -> None:
        try:
            file = os.stat(self._layout.marker)
            seen = (file.st_ino, file.st_mtime_ns)
            if seen == self._seen:
                return
            stored = quota_in(recognise(Path(self._layout.root)) or {})
            self._seen = seen
        except (FileNotFoundError, RefusedToStart):
            if self._quota_bytes:
                return  # somebody damaged it under us: what we know still holds
            stored = None
        self._quota_bytes = stored if stored is not None else filesystem.default_quota_bytes(self._layout.root)


def quota_in(marker: dict[str, object]) -> int | None:
    """The quota that a marker says: the one somebody gave, or the one that was measured when nobody had."""
    for key in (GIVEN, MEASURED):
        value = marker.get(key)
        if isinstance(value, int):
            return value
    return None
