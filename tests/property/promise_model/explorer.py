"""Goes through every order in which the steps of all processes can happen, with deaths and power losses between any two.

Breadth first, so the first thing that goes wrong is told with a shortest story.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .power import outcomes, rebuilt
from .promises import broken, left_over
from .rules import Rules
from .upkeeper import UpkeeperSteps
from .worker import WorkerSteps
from .world import UPKEEPER, WORKERS, File, Process, Step, World, changed


class Protocol(WorkerSteps, UpkeeperSteps):
    """All steps."""


_MISHAPS = ("dies", "power")
_Label = tuple[str, int, Step]
"""What happened: somebody does a step, dies before it, or power is lost."""


@dataclass(frozen=True)
class Scenario:
    """Where it begins, and what everybody sets out to do."""

    start: World
    closures: dict[tuple[int, int], str]
    after_power_loss: tuple[tuple[Step, ...], ...] = ()
    rounds_of_successor: int = 1


@dataclass(frozen=True)
class Verdict:
    """What came of it."""

    states: int
    what: str = ""
    """The promise that was broken; empty when none was."""
    story: tuple[str, ...] = ()


def explore(scenario: Scenario, rules: Rules) -> Verdict:
    """Look at every state that can be reached, until one breaks a promise."""
    protocol = Protocol(rules, scenario.closures)
    start = scenario.start
    for me in range(len(start.processes)):
        start = _settled(protocol, start, me)
    came_from: dict[World, tuple[World | None, _Label]] = {start: (None, ("", -1, ()))}
    layer = [start]
    disks: set[tuple[object, ...]] = set()
    while layer:
        following: list[World] = []
        for world in layer:
            moved = False
            for label, successor in _successors(protocol, scenario, world, disks):
                moved = moved or label[0] not in _MISHAPS
                if successor in came_from:
                    continue
                came_from[successor] = (world, label)
                if what := broken(successor, protocol):
                    return Verdict(len(came_from), what, _story(came_from, successor))
                following.append(successor)
            if not moved and (what := left_over(world)):
                return Verdict(len(came_from), what, _story(came_from, world))
        layer = following
    return Verdict(len(came_from))


def _successors(
    protocol: Protocol, scenario: Scenario, world: World, disks: set[tuple[object, ...]]
) -> Iterator[tuple[_Label, World]]:
    """What can happen next. ``disks``: those of which it is known what a power loss leaves."""
    for me, process in enumerate(world.processes):
        if not process.steps:
            continue
        step, rest = process.steps[0], process.steps[1:]
        for successor in getattr(protocol, step[0])(world, me, rest, *step[1:]):
            yield ("does", me, step), _settled(protocol, successor, me)
        if world.crashes:
            yield ("dies", me, step), _without(world, me, scenario.rounds_of_successor)
    disk = (world.files, world.names, world.counter, world.whole)
    if world.power_losses and disk not in disks:
        disks.add(disk)
        for left in outcomes(world.files):
            yield ("power", -1, ()), _after_power_loss(scenario, world, left)


_PRIVATE = frozenset({"push", "ask", "asked", "upload", "walk", "stored", "walked", "again", "fetched", "let_go"})
"""Steps that go together with the one before: nobody else can tell whether they are done yet."""


def _settled(protocol: Protocol, world: World, me: int) -> World:
    """The same state in one form: private steps done, and what nobody can reach any more forgotten."""
    process = world.processes[me]
    while process.steps and process.steps[0][0] in _PRIVATE and not world.broken:
        step, rest = process.steps[0], process.steps[1:]
        (world,) = getattr(protocol, step[0])(world, me, rest, *step[1:])
        process = world.processes[me]
    if not process.steps and process.descriptors:
        world = world._replace(processes=changed(world.processes, me, process._replace(descriptors=())))
    for place, file in enumerate(world.files):
        if not file.linked and file.records and not any(place in process.descriptors for process in world.processes):
            gone = File(file.number, linked=False)
            world = world._replace(files=changed(world.files, place, gone))
    return world


def _without(world: World, me: int, rounds: int) -> World:
    """A process is killed: its locks are free. The upkeeper has a successor."""
    fresh = Process(steps=(("begin", rounds),)) if me == UPKEEPER else Process(alive=False)
    files = tuple(file._replace(locked_by=-1) if file.locked_by == me else file for file in world.files)
    return world._replace(processes=changed(world.processes, me, fresh), files=files, crashes=world.crashes - 1)


def _after_power_loss(scenario: Scenario, world: World, left: tuple[File, ...]) -> World:
    """Everybody begins anew with what is on disk. What was promised was promised to clients that are gone."""
    files, index = rebuilt(left, len(world.index.entries), len(world.names))
    return World(
        files=files,
        index=index,
        names=world.names,
        counter=world.counter,
        log=(),
        used="",
        processes=tuple(Process(steps) for steps in scenario.after_power_loss),
        crashes=0,
        power_losses=0,
        whole=world.whole,
    )


_WHO = {
    **{worker: f"worker {worker + 1}" for worker in WORKERS},
    UPKEEPER: "the upkeeper",
    UPKEEPER + 1: "another upkeeper",
}


def _told(kind: str, me: int, step: Step) -> str:
    if kind == "power":
        return "power is lost, and all begin anew"
    does = (getattr(Protocol, step[0]).__doc__ or step[0]).strip().format(*map(_word, step[1:]))
    return f"{_WHO[me]} {does}" if kind == "does" else f"{_WHO[me]} is killed before it {does}"


def _word(value: object) -> str:
    return value if isinstance(value, str) else repr(value)


def _story(came_from: dict[World, tuple[World | None, _Label]], world: World) -> tuple[str, ...]:
    story: list[str] = []
    before, label = came_from[world]
    while before is not None:
        story.append(_told(*label))
        before, label = came_from[before]
    return tuple(reversed(story))
