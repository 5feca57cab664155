"""A power loss at any moment: what was acknowledged is there, nothing wrong is served, nobody has to help.

Runs of real servers are recorded from outside and played to many moments. What is wrong after a cut is printed with the
cut's own name; ``python -m faults.power_loss RECORDING --cut NAME``, in ``tests/``, repeats it.
``MILLPOND_POWER_CUTS`` asks for more cuts than the usual ones, ``MILLPOND_POWER_SEED`` for others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from faults.power_loss.cuts import Cut, Tally, after_removals, choose, scratch_place, try_cuts
from faults.power_loss.recording import Recording
from faults.power_loss.runs import EVICTION, LIVES, record_after, record_run
from faults.power_loss.strace_output import Call, path_of
from system.parts import require

CUTS = int(os.environ.get("MILLPOND_POWER_CUTS", "160"))
"""Half of them in the first run, the others in the two that follow."""
SEED = int(os.environ.get("MILLPOND_POWER_SEED", "3"))
PLANTED_CUTS = 200
"""Tried until one finds something."""
pytestmark = pytest.mark.timeout(300 + CUTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("tracing")
    return tmp_path_factory.mktemp("power")


@pytest.fixture(scope="module")
def lives(place: Path) -> Recording:
    return record_run(place / "lives", LIVES)


@pytest.fixture(scope="module")
def eviction(place: Path) -> Recording:
    return record_run(place / "eviction", EVICTION)


def survives(recording: Recording, cuts: Sequence[Cut], scratch_fallback: Path) -> Tally:
    tally = Tally()
    with scratch_place(scratch_fallback) as scratch:
        found = list(try_cuts(recording, cuts, scratch, tally))
    told = "\n".join(map(str, found[:20]))
    assert not found, f"{len(found)} of {len(cuts)} cuts of {recording.root}:\n{told}"
    return tally


def test_an_acknowledged_name_survives_a_power_loss_at_any_moment(lives: Recording, tmp_path: Path) -> None:
    tally = survives(lives, choose(lives, CUTS // 2, SEED), tmp_path)
    assert tally.names > 5 * CUTS
    assert tally.changes > 50 * CUTS


def test_an_acknowledged_name_survives_while_others_are_evicted(eviction: Recording, tmp_path: Path) -> None:
    removed = [call for call in eviction.calls if call.name == "rename" and call.strings[0].endswith(b".seg")]
    assert len(removed) > 10
    tally = survives(eviction, choose(eviction, CUTS // 4, SEED), tmp_path)
    assert tally.names > CUTS


@pytest.mark.parametrize("way", ["scattered", "names_without_bytes"])
def test_a_power_loss_while_recovering_from_one_loses_nothing_more(
    lives: Recording, place: Path, tmp_path: Path, way: str
) -> None:
    acknowledged = [mark.at for mark in lives.marks if "acknowledged" in mark.said]
    recovery = record_after(lives, Cut(acknowledged[-1], way, SEED), place / way)
    survives(recovery, choose(recovery, CUTS // 8, SEED), tmp_path)


# -- it finds what is wrong -----------------------------------------------------------------------------------------


def is_sync_of(end: str, call: Call) -> bool:
    """Of a file or directory whose path ends so."""
    return call.name in ("fsync", "fdatasync") and path_of(call.text.partition(", ")[0]).endswith(end)


def is_found(planted: Recording, cuts: Sequence[Cut], scratch_fallback: Path) -> bool:
    with scratch_place(scratch_fallback) as scratch:
        return next(try_cuts(planted, cuts, scratch), None) is not None


FORGOTTEN: dict[str, Callable[[Call], bool]] = {
    "segments": partial(is_sync_of, ".seg"),
    "the directory of segments": partial(is_sync_of, "/segments"),
    "names": partial(is_sync_of, "/names/data.mdb"),
    "the directory of names": partial(is_sync_of, "/names"),
    "the directory that the repository is made in": partial(is_sync_of, "/disk"),
    "the marker": partial(is_sync_of, "/millpond.json.new"),
}


@pytest.mark.parametrize("forgotten", FORGOTTEN.values(), ids=FORGOTTEN.keys())
def test_a_sync_that_a_server_forgets_is_found(
    lives: Recording, tmp_path: Path, forgotten: Callable[[Call], bool]
) -> None:
    assert any(map(forgotten, lives.calls)), "the server itself has forgotten it"
    planted = lives.without(forgotten)
    assert is_found(planted, choose(planted, PLANTED_CUTS, SEED), tmp_path)


@pytest.mark.parametrize("what", [".seg", "/segments"], ids=["segments", "their directory"])
def test_a_sync_that_eviction_forgets_before_it_removes_is_found(
    eviction: Recording, tmp_path: Path, what: str
) -> None:
    processes = eviction.processes()
    upkeep = {
        processes[call.thread]
        for call in eviction.calls
        if call.name == "rename" and call.strings[0].endswith(b".seg") and not call.failed
    }
    planted = eviction.without(lambda call: is_sync_of(what, call) and processes[call.thread] in upkeep)
    assert len(planted.calls) < len(eviction.calls)
    ways = ("newest_only", "names_without_bytes")
    assert is_found(planted, [Cut(at, way, SEED) for at in after_removals(planted) for way in ways], tmp_path)
