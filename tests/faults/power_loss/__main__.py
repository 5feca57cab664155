"""Long runs of the power-loss simulation, and single cuts again. In ``tests/``, with the project's Python::

python -m faults.power_loss DIRECTORY [--pushes 4] [--cuts 200] [--seed 0]   record into a new DIRECTORY, or use the
                                                                          recording there
python -m faults.power_loss DIRECTORY --cut NAME [--keep PLACE]           one cut; the disk that it leaves is kept
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

from faults.power_loss.cuts import Cut, Tally, choose, parse_cut, scratch_place, try_cuts
from faults.power_loss.recording import Playback
from faults.power_loss.runs import PLANS, load_run, record_run
from faults.power_loss.survival import WAYS


def main() -> None:
    parser = argparse.ArgumentParser(prog="faults.power_loss")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--plan", choices=PLANS, default="lives")
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cut", type=parse_cut)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    place: Path = arguments.directory.absolute()
    begun = time.monotonic()
    recording = load_run(place) if place.exists() else record_run(place, PLANS[arguments.plan])
    if arguments.keep:
        keep(Playback(recording), arguments.cut, arguments.keep)
    marks = sum("acknowledged" in mark.said for mark in recording.marks)
    print(f"{len(recording.calls)} calls, {marks} acknowledged pushes, {time.monotonic() - begun:.0f} s")
    cuts = [arguments.cut] if arguments.cut else choose(recording, arguments.cuts, arguments.seed)
    begun, tally, wrong = time.monotonic(), Tally(), 0
    with scratch_place(place) as scratch:
        for finding in try_cuts(recording, cuts, scratch, tally):
            print(finding)
            wrong += 1
    print(
        f"{tally.cuts} cuts, {tally.changes} changes that were not durable, {tally.names} names looked for,"
        f" {time.monotonic() - begun:.0f} s: {wrong} cuts after which something is wrong"
    )
    raise SystemExit(wrong > 0)


def keep(playback: Playback, cut: Cut, place: Path) -> None:
    """Write the disk that a cut leaves."""
    playback.go_to(cut.at)
    playback.disk.write_out(WAYS[cut.way](playback.unsynced(), Random(cut.seed)), place)


if __name__ == "__main__":
    main()
