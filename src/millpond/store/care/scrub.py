"""Looking through everything from time to time, so that what nobody reads does not rot unnoticed.

A pass verifies all that the index lists, at a bounded rate; the next one begins some days after this one began. What is
damaged is taken off the index, logged and counted, and healed by the next upload (I4). A read error is damage, too.

The rule: what was looked at need not be looked at again because a server was restarted. The position is written after
every segment into a file whose block exists from the first moment, so that a full disk is no obstacle.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from millpond.core import json_text
from millpond.core.clock import Clock
from millpond.core.digest import Digest
from millpond.store.care.verification import Step, verify
from millpond.store.index import Entry, Index
from millpond.store.repository.layout import Layout

log = logging.getLogger(__name__)
DAY_MS = 86_400_000
_FILE_BYTES = 4096
_STEP_SECONDS = 0.25
_IDLE_SECONDS = 600.0
_TOLD_OF = 20
"""So many damaged blobs of one pass are told of one by one."""

Quarantine = Callable[[Digest, Entry], int]


@dataclass(slots=True)
class Progress:
    """What is known of scrubbing. Times in ms since 1970 UTC, 0: never."""

    begun_ms: int = 0
    """When the pass began that runs, or that was the last one."""
    finished_ms: int = 0
    """When the last whole pass ended."""
    running: bool = False
    after: int = 0
    """Segments up to this number are done with."""
    blobs: int = 0
    size_bytes: int = 0
    damaged: int = 0
    """Of this pass, as the two above."""
    damaged_ever: int = 0

    @classmethod
    def read(cls, path: str) -> "Progress":
        """What was written at ``path``; the beginning where there is nothing that makes sense."""
        try:
            with open(path, "rb") as file:
                values: dict[str, Any] = json_text.parse(file.read(_FILE_BYTES))
            progress = cls(**{field.name: values[field.name] for field in fields(cls)})
        except (OSError, ValueError, TypeError, KeyError):
            return cls()
        kinds = all(type(value) is type(getattr(cls(), name)) for name, value in asdict(progress).items())
        return progress if kinds else cls()

    def write(self, path: str) -> None:
        """Write it over what is there; what cannot be written is only looked at twice."""
        with suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(descriptor, json.dumps(asdict(self)).encode().ljust(_FILE_BYTES), 0)
            finally:
                os.close(descriptor)


class ScrubDuty:
    """Upkeep's part: a step of a pass at each call, and naps in between so that ``rate_bytes`` a second are not passed.

    ``days`` 0: never. ``quarantine`` takes a blob off the index and says how many are no longer held because of it.
    """

    name = "scrub"

    def __init__(
        self,
        index: Index,
        layout: Layout,
        quarantine: Quarantine,
        *,
        days: int,
        rate_bytes: int,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._index = index
        self._layout = layout
        self._quarantine = quarantine
        self._period_ms = days * DAY_MS
        self._rate_bytes = rate_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._steps: Iterator[Step] | None = None
        self._progress = Progress.read(layout.scrub)

    def run(self) -> float:
        """Verify for a moment; the seconds until it wants to go on."""
        if not self._period_ms:
            return _IDLE_SECONDS
        if self._steps is None:
            wait_ms = self._begin()
            if wait_ms:
                return min(wait_ms / 1000, _IDLE_SECONDS)
        begun, size_bytes = self._monotonic(), 0
        steps, self._steps = self._steps, None  # if this fails, the next call goes on after the last whole segment
        for step in steps or ():
            self._note(step)
            size_bytes += step.size_bytes
            if self._monotonic() - begun >= _STEP_SECONDS or size_bytes >= self._rate_bytes * _STEP_SECONDS:
                self._steps = steps
                return max(0.0, size_bytes / self._rate_bytes - (self._monotonic() - begun))
        self._finish()
        return 0.0

    def _begin(self) -> int:
        """Go on with a pass, or begin one; the ms until one is due."""
        progress, now = self._progress, self._clock()
        if not progress.running:
            due_ms = progress.begun_ms + self._period_ms
            if progress.begun_ms <= now < due_ms:  # not where the clock was set back
                return due_ms - now
            self._progress = Progress(
                begun_ms=now, finished_ms=progress.finished_ms, running=True, damaged_ever=progress.damaged_ever
            )
            self._progress.write(self._layout.scrub)
        self._steps = verify(self._index, self._layout.segments, self._damaged, after=self._progress.after)
        return 0

    def _note(self, step: Step) -> None:
        progress = self._progress
        progress.blobs += step.blobs
        progress.size_bytes += step.size_bytes
        if step.done != progress.after:
            progress.after = step.done
            progress.write(self._layout.scrub)

    def _damaged(self, digest: Digest, entry: Entry, why: str) -> None:
        count = self._quarantine(digest, entry)
        if not count:
            return
        progress = self._progress
        progress.damaged += count
        progress.damaged_ever += count
        if progress.damaged - count < _TOLD_OF:
            log.error(
                "scrub: blob %s is damaged in segment %08x at %d (%s): it is no longer held%s",
                digest,
                entry.segment,
                entry.offset,
                why,
                f", nor are {count - 1} others that lie there" if count > 1 else "",
            )

    def _finish(self) -> None:
        progress = self._progress
        progress.running, progress.finished_ms = False, self._clock()
        progress.write(self._layout.scrub)
        if progress.blobs:
            log.log(
                logging.ERROR if progress.damaged else logging.INFO,
                "scrub: %d blobs (%d bytes) verified, %d of them damaged and no longer held",
                progress.blobs,
                progress.size_bytes,
                progress.damaged,
            )
