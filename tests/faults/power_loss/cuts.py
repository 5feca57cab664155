"""Where the power is cut, and what is asked of the repository that is found afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

from faults.power_loss.audit import Question, Version
from faults.power_loss.disk import Directory, Entered, File
from faults.power_loss.recording import Playback, Recording, environment
from faults.power_loss.strace_output import Call, path_of
from faults.power_loss.survival import WAYS

from millpond.store.segments.files import segment_number
from millpond.store.segments.format import SEGMENT_HEADER_BYTES, Damaged, SegmentHeader, digest_of, scan

_REPO = "repo"
_SCRATCH_BYTES = 512 << 20
_TURNING_POINTS = (
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "ftruncate",
    "truncate",
)
_REMOVALS = ("rename", "renameat", "renameat2", "unlink", "unlinkat")


class Cut(NamedTuple):
    """A moment, a way to lose what was not durable, and the seed of its choices."""

    at: int
    way: str
    seed: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A cut after which something was wrong."""

    cut: Cut
    wrong: list[str]

    def __str__(self) -> str:
        return f"cut {self.cut.at}:{self.cut.way}:{self.cut.seed}\n" + "\n".join(
            f"    {what}" for what in self.wrong[:5]
        )


def choose(recording: Recording, count: int, seed: int) -> list[Cut]:
    """``count`` cuts, in the order of their moments.

    A third lie where an acknowledgement was received a moment ago, a few where a server has ended, a fifth where
    something was removed or renamed a moment ago, a quarter beside or inside of a call after which something is durable
    or there, the others anywhere. Of such calls each sort is as likely as another: there are thousands of syncs, and
    the one file that is renamed matters as much.
    """
    random = Random(seed)
    marks = [mark for mark in recording.marks if mark.at >= 0]
    acknowledged = [mark.at for mark in marks if "acknowledged" in mark.said]
    over = [mark.at for mark in marks if "over" in mark.said]
    turns, removals = list(_turning_points(recording).values()), after_removals(recording)
    ways = sorted(WAYS)
    cuts = []
    for i in range(count):
        sort, way = random.random(), ways[i % len(ways)]
        if sort < 0.35:
            at = random.choice(acknowledged)
        elif sort < 0.45:
            at = random.choice(over)
        elif sort < 0.65:
            at = random.choice(removals)
            way = random.choice((way, "newest_only"))
        elif sort < 0.9:
            turn = random.choice(random.choice(turns))
            at = random.choice((turn.begun, turn.begun + 1, turn.ended, turn.ended + 1))
        else:
            at = random.randrange(recording.end)
        cuts.append(Cut(at, way, random.randrange(1 << 32)))
    return sorted(cuts)


def after_removals(recording: Recording) -> list[int]:
    """The moments after a file got another name or none: what takes its place had to be durable before."""
    return [call.ended + 1 for call in recording.calls if call.name in _REMOVALS and not call.failed]


def _turning_points(recording: Recording) -> dict[tuple[str, str], list[Call]]:
    """Calls by their name and the directory that they are about."""
    turns: dict[tuple[str, str], list[Call]] = {}
    for call in recording.calls:
        if call.name in _TURNING_POINTS and not call.failed:
            path = call.strings[-1].decode() if call.strings else path_of(call.words[0])
            turns.setdefault((call.name, os.path.basename(os.path.dirname(path))), []).append(call)
    return turns


def parse_cut(text: str) -> Cut:
    """A cut as a :class:`Finding` prints it."""
    at, way, seed = text.split(":")
    return Cut(int(at), way, int(seed))


class Expectations:
    """What the marks of a recording say about any moment."""

    def __init__(self, recording: Recording) -> None:
        self._abouts: list[int] = []
        self.versions: list[Version] = []
        self._numbers: dict[tuple[str, int], int] = {}
        self._acknowledged: list[tuple[int, int]] = []
        for mark in recording.marks:
            if "about" in mark.said:
                self._numbers[mark.said["about"], mark.said["version"]] = len(self.versions)
                self._abouts.append(mark.at)
                self.versions.append(Version(mark.said["about"], mark.said["directory"], mark.said["digests"]))
            elif "acknowledged" in mark.said:
                self._acknowledged.append((mark.at, self._numbers[mark.said["acknowledged"], mark.said["version"]]))

    def question(self, at: int, repo: Path, numbers: Iterable[int], held: set[str], *, upkeep: bool) -> Question:
        """What must be true when the power is cut at a moment. Only one push of a name is under way at a time.

        ``held`` is what eviction had left by then.
        """
        versions = [
            replace(version, gone=not held.issuperset(version.digests))
            for version in self.versions[: bisect_right(self._abouts, at)]
        ]
        acknowledged: dict[str, int] = {}
        for when, number in self._acknowledged:
            if when <= at:
                acknowledged[self.versions[number].name] = number
        newer = {
            name: [number, *(i for i in range(number + 1, len(versions)) if versions[i].name == name)]
            for name, number in acknowledged.items()
        }
        return Question(f"{repo}", versions, newer, sorted(numbers), upkeep)


def held(playback: Playback) -> set[str]:
    """The blobs that lie in segments, as processes see them, but for segments that are being removed this moment."""
    going = {
        name
        for change in playback.under_way()
        if isinstance(change, Entered)
        for _, name, inode in change.effects
        if inode is None
    }
    repo = playback.disk.root.entries.get(_REPO)
    segments = repo.entries.get("segments") if isinstance(repo, Directory) else None
    if not isinstance(segments, Directory):
        return set()
    return {
        digest
        for name, file in segments.entries.items()
        if isinstance(file, File) and segment_number(name) is not None and name not in going
        for digest in _records(bytes(file.content()))
    }


def _records(content: bytes) -> Iterator[str]:
    try:
        header = SegmentHeader.decode(content[:SEGMENT_HEADER_BYTES])
    except Damaged:
        return
    view = memoryview(content)
    read = lambda at, size: view[at : at + size]  # noqa: E731
    for record in scan(read, header, start=SEGMENT_HEADER_BYTES, end=len(content), verify_data=False):
        yield f"{digest_of(record)}"


class Auditor:
    """The process that judges."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("audit.py")
        self._process = subprocess.Popen(
            [sys.executable, f"{script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )

    def ask(self, question: Question) -> None:
        assert self._process.stdin
        print(question.to_json(), file=self._process.stdin, flush=True)

    def answer(self) -> list[str]:

        assert self._process.stdout
        answer: list[str] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        self._process.communicate()


@dataclass(slots=True)
class Tally:
    """What was tried."""

    cuts: int = 0
    changes: int = 0
    """Changes that were not durable, all cuts together: what there was to lose."""
    names: int = 0
    """Acknowledged names that had to be there, all cuts together."""


def try_cuts(recording: Recording, cuts: Sequence[Cut], scratch: Path, tally: Tally | None = None) -> Iterator[Finding]:
    """Cut the power at each of ``cuts``, which are in order; those after which something is wrong."""
    playback, expectations, auditor = Playback(recording), Expectations(recording), Auditor()
    tally = tally or Tally()
    asked: deque[tuple[Cut, Path]] = deque()

    def answers(waiting: int) -> Iterator[Finding]:
        while len(asked) > waiting:
            cut, disk = asked.popleft()
            if wrong := auditor.answer():
                yield Finding(cut, wrong)
            shutil.rmtree(disk)

    try:
        for number, cut in enumerate(cuts):
            playback.go_to(cut.at)
            unsynced = playback.unsynced()
            disk = scratch / f"{number}"
            playback.disk.write_out(WAYS[cut.way](unsynced, Random(cut.seed)), disk)
            yield from answers(1)  # one is judged while the next one is written
            question = expectations.question(
                cut.at, disk / _REPO, playback.numbers, held(playback), upkeep=bool(cut.seed % 2)
            )
            tally.cuts, tally.changes = tally.cuts + 1, tally.changes + len(unsynced)
            tally.names += sum(not question.versions[allowed[0]].gone for allowed in question.expected.values())
            auditor.ask(question)
            asked.append((cut, disk))
        yield from answers(0)
    finally:
        auditor.end()


@contextmanager
def scratch_place(fallback: Path) -> Iterator[Path]:
    """A directory for disks that live for a moment: in memory where there is room, so that it costs no real syncs."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and os.statvfs(memory).f_bavail * os.statvfs(memory).f_frsize > _SCRATCH_BYTES
    with tempfile.TemporaryDirectory(prefix="millpond-cuts-", dir=memory if roomy else fallback) as place:
        yield Path(place)
