"""Watching the repository from outside: what it takes, and which numbers its segments have.

The rule: it trusts no ledger, and it accuses nobody by chance. What the repository takes are the blocks of its files,
those included that were removed and are still held open. A look at some hundred files lasts, and meanwhile one of them
may go and make room for another; so it looks twice, and counts what was there both times, with the smaller of both
sizes: at the moment between the two, no less than that was taken. It is a process of its own, because among the threads
of the load a look would last many times as long.

A segment's number is in its name, and its secret says which segment it is.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from faults.campaign.ledger import Ledger

from millpond.store.segments.files import segment_number
from millpond.store.segments.format import SEGMENT_HEADER_BYTES

_EVERY_SECONDS = 0.05


class _Seen(NamedTuple):
    """What it comes to in the end."""

    peak_bytes: int
    numbers: int


class Watch:
    """Looks twenty times a second, from :meth:`start` to :meth:`stop`."""

    def __init__(self, ledger: Ledger, repo: Path, *, quota_bytes: int) -> None:
        self._ledger = ledger
        self._seen = _Seen(0, 0)
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_watch, args=(repo, quota_bytes, theirs), daemon=True)
        self._theirs: Connection | None = theirs
        self._listener = threading.Thread(target=self._listen, name="watch", daemon=True)

    def start(self) -> None:
        self._process.start()
        if self._theirs is not None:
            self._theirs.close()  # theirs alone now, so that we notice when they end
            self._theirs = None
        self._listener.start()

    def stop(self) -> None:
        with suppress(OSError):
            self._ours.send("stop")
        self._listener.join()
        self._process.join()

    def _listen(self) -> None:
        try:
            while not isinstance(told := self._ours.recv(), _Seen):
                self._ledger.found(told)
            self._seen = told
        except EOFError:
            self._ledger.found("nobody watched what the repository takes: that process died")

    @property
    def peak_bytes(self) -> int:
        """The most that was seen to be taken; known after :meth:`stop`."""
        return self._seen.peak_bytes

    @property
    def numbers(self) -> int:
        """How many segments were seen; known after :meth:`stop`."""
        return self._seen.numbers


def _watch(repo: Path, quota_bytes: int, parent: Connection) -> None:
    """Look until told to stop, or until nobody is there to be told what is found."""
    looking = _Looking(repo)
    peak_bytes = 0
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while not parent.poll(_EVERY_SECONDS):
            taken = looking.taken_bytes()
            total = sum(taken.values())
            if total > max(peak_bytes, quota_bytes):
                parent.send(f"{total} bytes are taken of a quota of {quota_bytes}: {dict(taken)}")
            peak_bytes = max(peak_bytes, total)
            for number in looking.used_twice():
                parent.send(f"segment number {number} was used for a second segment")
        parent.recv()
        parent.send(_Seen(peak_bytes, looking.numbers))


class _Looking:
    """Looks at one repository."""

    def __init__(self, repo: Path) -> None:
        self._repo = repo
        self._secrets: dict[int, bytes] = {}

    def taken_bytes(self) -> Counter[str]:
        """By directory."""
        first, second = self._look(), self._look()
        taken: Counter[str] = Counter()
        for inode in first.keys() & second.keys():
            (where, path, size_bytes), (_, path_before, size_before) = second[inode], first[inode]
            if path == path_before:  # an inode is soon used again; a name is not, but for an upload's
                taken[where] += min(size_bytes, size_before)
        return taken

    def _look(self) -> Mapping[int, tuple[str, str, int]]:
        """Where each inode is, under which path, and what it takes. One that is renamed during a look is still one."""
        seen: dict[int, tuple[str, str, int]] = {}
        for entry in os.scandir(self._repo) if self._repo.exists() else ():
            for path, status in _statuses(Path(entry.path)):
                seen[status.st_ino] = (entry.name, str(path), status.st_blocks * 512)
        for target, status in _removed_and_open(str(self._repo)):
            seen[status.st_ino] = ("removed and still open", target, status.st_blocks * 512)
        return seen

    def used_twice(self) -> Iterator[int]:
        """I9: a number means one segment for ever."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._repo / "segments"):
                number = segment_number(entry.name)
                if number is None:
                    continue
                with suppress(FileNotFoundError), open(entry.path, "rb") as file:
                    header = file.read(SEGMENT_HEADER_BYTES)
                    if len(header) == SEGMENT_HEADER_BYTES and self._secrets.setdefault(number, header) != header:
                        yield number
                        self._secrets[number] = header

    @property
    def numbers(self) -> int:
        """How many segments were seen."""
        return len(self._secrets)


def _statuses(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Of a file, or of a directory and all in it."""
    with suppress(FileNotFoundError):
        yield path, os.lstat(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        for entry in os.scandir(path):
            yield from _statuses(Path(entry.path))


def _removed_and_open(below: str) -> Iterator[tuple[str, os.stat_result]]:
    """What processes of ours, and of nobody else, hold open below a directory and has no name any more."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if b"millpond" in Path("/proc", process, "cmdline").read_bytes():
                yield from _deleted_files(process, below)


def _deleted_files(process: str, below: str) -> Iterator[tuple[str, os.stat_result]]:
    for entry in os.scandir(f"/proc/{process}/fd"):
        with suppress(FileNotFoundError, ProcessLookupError):
            target = os.readlink(entry.path)
            if target.startswith(below) and target.endswith(" (deleted)"):
                yield target, os.stat(entry.path)
