"""How steps are put together: a process is a stack of them, and a step leaves worlds in which it is done."""

from __future__ import annotations

from typing import Any

from .rules import Rules
from .world import Step, World, changed


class Steps:
    """What the steps of workers and of the upkeeper have in common.

    A step gets the world, whose it is, what is left to do after it, and its arguments. No worlds: it must wait.
    """

    def __init__(self, rules: Rules, closures: dict[tuple[int, int], str]) -> None:
        self.rules = rules
        self._closures = closures

    def closure(self, name: int, binding: int) -> str:
        """The blobs that a name needs."""
        return self._closures.get((name, binding), "")

    def then(self, world: World, me: int, rest: tuple[Step, ...], *steps: Step, **changes: Any) -> World:
        """The world in which ``steps`` come next. ``changes`` are of the process or of the world."""
        mine = {field: changes.pop(field) for field in ("lock", "current") if field in changes}
        process = world.processes[me]._replace(steps=(*steps, *rest), **mine)
        return world._replace(processes=changed(world.processes, me, process), **changes)

    def back(self, world: World, me: int, rest: tuple[Step, ...], answer: object, **changes: Any) -> World:
        """The world in which whoever asked has an answer, as one more argument."""
        return self.then(world, me, ((*rest[0], answer), *rest[1:]), **changes)

    def break_(self, world: World, what: str) -> list[World]:
        """A world in which a promise is broken."""
        return [world._replace(broken=what)]

    def synced(self, world: World, place: int) -> tuple[Any, ...]:
        """The files, one of them synced, with its directory."""
        file = world.files[place]
        synced = file.synced if file.refused else len(file.records)
        file = file._replace(synced=synced, entered=True, footer_synced=bool(file.footer))
        return changed(world.files, place, file)

    def fresh_number(self, world: World) -> int:
        """A number for a new segment (I9)."""
        if self.rules.new_numbers:
            return world.counter + 1
        taken = {file.number for file in world.files if file.linked}
        taken.update(number for number, row in enumerate(world.index.rows, start=1) if row is not None)
        return next(number for number in range(1, world.counter + 2) if number not in taken)
