"""Watching the repository from outside: what it takes, and which numbers its segments have.

The rule: it trusts no ledger. What the repository takes are the blocks of its files, those included that were removed
and are still held open; a segment's number is in its name, and its secret says which segment it is.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from faults.campaign.cluster import Cluster
from faults.campaign.ledger import Ledger

from millpond.store.segments.files import segment_number
from millpond.store.segments.format import SEGMENT_HEADER_BYTES

_EVERY_SECONDS = 0.1


class Watch:
    """Looks every tenth of a second, from :meth:`start` to :meth:`stop`."""

    def __init__(self, ledger: Ledger, cluster: Cluster, *, quota_bytes: int) -> None:
        self._ledger = ledger
        self._cluster = cluster
        self._quota_bytes = quota_bytes
        self._secrets: dict[int, bytes] = {}
        self.peak_bytes = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(_EVERY_SECONDS):
            self.look()

    def look(self) -> None:
        """Once."""
        taken = self._taken_bytes()
        total = sum(taken.values())
        if total > max(self.peak_bytes, self._quota_bytes):
            self._ledger.found(f"{total} bytes are taken of a quota of {self._quota_bytes}: {dict(taken)}")
        self.peak_bytes = max(self.peak_bytes, total)
        self._look_at_numbers()

    def _taken_bytes(self) -> Counter[str]:
        """By directory. A file that is renamed meanwhile is counted once, because it is known by its inode."""
        seen: dict[int, tuple[str, int]] = {}
        repo = self._cluster.repo
        for entry in os.scandir(repo) if repo.exists() else ():
            for status in _statuses(Path(entry.path)):
                seen[status.st_ino] = (entry.name, status.st_blocks * 512)
        for status in self._held_open():
            seen[status.st_ino] = ("removed and still open", status.st_blocks * 512)
        taken: Counter[str] = Counter()
        for where, size in seen.values():
            taken[where] += size
        return taken

    def _held_open(self) -> Iterator[os.stat_result]:
        for server in self._cluster.servers:
            for pid in server.pids():
                yield from _deleted_files(pid, str(self._cluster.repo))

    def _look_at_numbers(self) -> None:
        """I9: a number means one segment for ever."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._cluster.repo / "segments"):
                number = segment_number(entry.name)
                if number is None:
                    continue
                with suppress(FileNotFoundError), open(entry.path, "rb") as file:
                    header = file.read(SEGMENT_HEADER_BYTES)
                    if len(header) == SEGMENT_HEADER_BYTES and self._secrets.setdefault(number, header) != header:
                        self._ledger.found(f"segment number {number} was used for a second segment")
                        self._secrets[number] = header

    @property
    def numbers(self) -> int:
        """How many segments were seen."""
        return len(self._secrets)


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Of a file, or of a directory and all in it."""
    with suppress(FileNotFoundError):
        yield os.lstat(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(path):
            yield from _statuses(Path(entry.path))


def _deleted_files(pid: int, below: str) -> Iterator[os.stat_result]:
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                target = os.readlink(entry.path)
                if target.startswith(below) and target.endswith(" (deleted)"):
                    yield os.stat(entry.path)
