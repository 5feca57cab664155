"""A recorded run: what was done to the disk, and what a client was told meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from faults.power_loss.disk import Change, Directory
from faults.power_loss.machine import CHANGING, SHARED_MEMORY, Machine
from faults.power_loss.strace_output import CALLS, Call, NotUnderstood, calls, path_of

_STRACE = (
    *("strace", "--follow-forks", "--seccomp-bpf", "-qq", "-y", "-xx"),
    *("--string-limit=1000000000", "--signal=none", f"--trace={CALLS}"),
)
_PAGE_BYTES = 4096
_HYPOTHESES = 100
_SEGMENT = re.compile(rb"/([0-9a-f]{8})\.seg$")


def environment() -> dict[str, str]:
    """For processes that import from ``tests/``."""
    tests, others = f"{Path(__file__).parents[2]}", os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{tests}:{others}" if others else tests}


def record(command: Sequence[str], trace: Path) -> None:
    """Run ``command`` to its end and write all that it and its children do to files into ``trace``."""
    subprocess.run([*_STRACE, f"--output={trace}", *command], check=True, env=environment())


@dataclass(frozen=True, slots=True)
class Mark:
    """What the load said in its marks file, and when."""

    at: int
    said: dict[str, Any]


@dataclass(slots=True)
class Recording:
    """Calls in the order of their ends, and marks. ``root`` is the directory that stands for the disk."""

    root: str
    calls: list[Call]
    marks: list[Mark] = field(default_factory=list)
    before: Path | None = None
    """What the disk held, all of it durable; None: nothing."""
    numbers: frozenset[int] = frozenset()
    """Segment numbers that were used by then."""

    @classmethod
    def load(cls, trace: Path, root: Path, marks: Path) -> Recording:
        """Read what :func:`record` wrote.

        Raises:
            NotUnderstood: it is not what strace writes, or something was cut off.
        """
        found, said = [], []
        with trace.open(encoding="ascii") as lines:
            for call in calls(lines, [f"{root}", f"{marks}"]):
                if call.name == "write" and path_of(call.text.partition(", ")[0]) == f"{marks}":
                    said += [Mark(call.begun, json.loads(line)) for line in b"".join(call.strings).splitlines()]
                else:
                    found.append(call)
        return cls(f"{root}", found, said)

    @property
    def end(self) -> int:
        """After everything."""
        return self.calls[-1].ended + 1

    def processes(self) -> dict[int, int]:
        """For every thread one that stands for its process."""
        made_by = {
            call.result: call.thread
            for call in self.calls
            if call.name in ("clone", "clone3") and call.result and "CLONE_FILES" in call.text
        }
        found: dict[int, int] = {}
        for call in self.calls:
            first = call.thread
            while first in made_by:
                first = made_by[first]
            found[call.thread] = first
        return found

    def without(self, unwanted: Callable[[Call], bool]) -> Recording:
        """The same run of a program that never made certain calls: a planted bug."""
        return replace(self, calls=[call for call in self.calls if not unwanted(call)])


class Playback:
    """A recording played from its beginning; it only goes forward."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._machine = Machine(recording.root, recording.calls, before=recording.before)
        self.disk = self._machine.disk
        self._next = self._moment = 0
        self._early: set[int] = set()
        self.numbers = set(recording.numbers)
        """Segment numbers that were ever used."""

    def go_to(self, moment: int) -> None:
        """Play every call that ended before ``moment``."""
        calls = self._recording.calls
        self._moment = moment
        while self._next < len(calls) and calls[self._next].ended < moment:
            if self._next not in self._early:
                self._play(self._next)
            self._next += 1

    def _play(self, index: int) -> None:
        call = self._recording.calls[index]
        try:
            self._machine.play(call)
        except NotUnderstood:
            # Of two calls at once the one that is recorded second may have happened first.
            if not self._play_those_under_way(index):
                raise
            self._machine.play(call)
        if call.name.startswith(("open", "rename")):
            for segment in map(_SEGMENT.search, call.strings):
                if segment:
                    self.numbers.add(int(segment[1], 16))

    def _play_those_under_way(self, index: int) -> bool:
        calls = self._recording.calls
        ended = calls[index].ended
        played = False
        for later in range(index + 1, min(index + 100, len(calls))):
            if calls[later].begun < ended and later not in self._early:
                self._early.add(later)
                self._machine.play(calls[later])
                played = True
        return played

    def unsynced(self) -> list[Change]:
        """All that a power loss may take now, with what is under way."""
        return self.disk.unsynced() + self.under_way()

    def under_way(self) -> list[Change]:
        """What calls that have begun and not ended do."""
        changes: list[Change] = []
        calls = self._recording.calls
        for index in range(self._next, min(self._next + 100, len(calls))):
            if calls[index].begun < self._moment and index not in self._early:
                try:
                    changes += self._machine.changes(calls[index])
                except NotUnderstood:
                    continue  # it follows another one that is under way
        return changes

    def differences(self) -> list[str]:
        """Where the disk as processes see it differs from the directory that was recorded: nothing, when the recording
        is complete and the model right."""
        found: list[str] = []

        def compare(directory: Directory, place: Path) -> None:
            names = {path.name for path in place.iterdir()}
            found.extend(f"{place / name}: only on one side" for name in names ^ directory.entries.keys())
            for name in names & directory.entries.keys():
                inode, path = directory.entries[name], place / name
                if isinstance(inode, Directory) != path.is_dir():
                    found.append(f"{path}: a file on one side, a directory on the other")
                elif isinstance(inode, Directory):
                    compare(inode, path)
                elif name not in SHARED_MEMORY and inode.content() != path.read_bytes():
                    found.append(f"{path}: {inode.size} bytes played, {path.stat().st_size} there, different ones")

        compare(self.disk.root, Path(self._recording.root))
        return found


def settled(recording: Recording) -> Recording:
    """The recording with an outcome for every call in which its process was killed: what the real disk shows.

    Such a call was done, or not, or a write of several pages in part; nobody saw its result.

    Raises:
        NotUnderstood: no outcome gives what is on the disk; it says where the two differ.
    """
    killed = [i for i, call in enumerate(recording.calls) if call.result is None and call.name in CHANGING]
    troubles = ""
    for outcomes in itertools.islice(itertools.product(*(_outcomes(recording.calls[i]) for i in killed)), _HYPOTHESES):
        played = list(recording.calls)
        for i, outcome in zip(killed, outcomes, strict=True):
            played[i] = outcome
        supposed = replace(recording, calls=played)
        playback = Playback(supposed)
        try:
            playback.go_to(supposed.end)
        except NotUnderstood as trouble:
            troubles = troubles or f"{trouble}"
            continue
        differences = playback.differences()
        if not differences:
            return supposed
        troubles = troubles or "\n".join(differences)
    raise NotUnderstood(f"the recording is not what was done to the disk: {troubles}")


def _outcomes(call: Call) -> list[Call]:
    """What may have become of it, in the order of likelihood: all, nothing, and some whole pages of a write."""
    size = sum(map(len, call.strings)) if "write" in call.name else 0
    results = [size, -1, *range(_PAGE_BYTES, size, _PAGE_BYTES)]
    return [call._replace(result=result) for result in results]
