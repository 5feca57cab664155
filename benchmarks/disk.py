"""The most that a store takes on disk while something else is measured: in blocks, as ``du`` counts them.

The rule: to look costs next to nothing, so that what is measured stays what it was. A store of many small files takes long to
go through and is looked at less often.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PAUSE_SECONDS = 0.2
# Of one processor, at most.
_SHARE = 0.1


@dataclass(slots=True)
class Peak:
    """The most that was seen so far."""

    taken_bytes: int = 0


@contextlib.contextmanager
def watched(store: Path) -> Iterator[Peak]:
    """Look at ``store`` again and again, for the first time now and for the last time at the end."""
    peak = Peak()
    ended = threading.Event()

    def look() -> float:
        begin = time.monotonic()
        peak.taken_bytes = max(peak.taken_bytes, _taken_bytes(store))
        return time.monotonic() - begin

    def watch() -> None:
        pause = _PAUSE_SECONDS
        while not ended.wait(pause):
            pause = max(_PAUSE_SECONDS, look() * (1 / _SHARE - 1))

    look()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
    look()


def _taken_bytes(store: Path) -> int:
    # A process of its own leaves the generator its interpreter. It grumbles about files that go meanwhile, and goes on.
    command = ["du", "--summarize", "--block-size=1", str(store)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False).stdout
    return int(said.split()[0])
