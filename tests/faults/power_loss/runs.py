"""The runs that are recorded: servers on a new disk, and servers on a disk that a power loss left."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from faults.power_loss.cuts import Cut
from faults.power_loss.recording import Mark, Playback, Recording, record, settled
from faults.power_loss.survival import WAYS


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``load.py`` is told."""

    steps: str
    quota: str = "24Mi"
    """Segments of 384 KiB: a blob above 96 KiB gets one of its own."""
    pushes: int = 4
    """By each of three callers in each life, times three."""
    may_fill_up: bool = False
    """Otherwise whatever is refused is an error."""


LIVES = Plan("1,kill,damage,2,stop,3,kill")
"""The first life makes the repository and is killed; the second finds its index damaged, makes it anew, and is ended as
one should; the third believes the index."""
EVICTION = Plan("1,kill,2,stop,3,kill", quota="12Mi", pushes=6, may_fill_up=True)
"""More is written than the quota lets stay."""
RECOVERY = Plan("4,kill", pushes=2)
"""One life."""
PLANS = {"lives": LIVES, "eviction": EVICTION}


def record_run(place: Path, plan: Plan) -> Recording:
    """Record a run on a new disk, in the new directory ``place``; :func:`load_run` reads it again."""
    (place / "disk").mkdir(parents=True)
    return _record(place, plan)


def record_after(run: Recording, cut: Cut, place: Path, plan: Plan = RECOVERY) -> Recording:
    """Record a run on the disk that a power loss left, in the new directory ``place``."""
    playback = Playback(run)
    playback.go_to(cut.at)
    place.mkdir(parents=True)
    playback.disk.write_out(WAYS[cut.way](playback.unsynced(), Random(cut.seed)), place / "disk")
    shutil.copytree(place / "disk", place / "before")
    known = [asdict(mark) for mark in run.marks if mark.at <= cut.at and "over" not in mark.said]
    (place / "known").write_text(json.dumps({"marks": known, "numbers": sorted(playback.numbers)}))
    return _record(place, plan)


def _record(place: Path, plan: Plan) -> Recording:
    script = Path(__file__).with_name("load.py")
    paths = (f"{place}/disk", f"{place}/marks")
    full = "full" if plan.may_fill_up else "roomy"
    record([sys.executable, f"{script}", *paths, plan.quota, f"{plan.pushes}", full, plan.steps], place / "trace")
    return load_run(place)


def load_run(place: Path) -> Recording:
    """A run that was recorded in ``place``; its disk still is as it was left.

    Raises:
        NotUnderstood: the recording is not all that was done to the disk.
    """
    recording = Recording.load(place / "trace", place / "disk", place / "marks")
    if (place / "known").exists():
        known = json.loads((place / "known").read_text())
        recording.marks = [*(Mark(-1, mark["said"]) for mark in known["marks"]), *recording.marks]
        recording.before, recording.numbers = place / "before", frozenset(known["numbers"])
    return settled(recording)
