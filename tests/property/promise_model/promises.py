"""What must be true in every state: the invariants that ARCHITECTURE.md lists, as far as they are about this protocol."""

from __future__ import annotations

from .steps import Steps
from .world import FORWARD, SWEEPING, World, held, is_owed, is_suspect, linked


def broken(world: World, protocol: Steps) -> str:
    """The promise that does not hold in this state; empty when all do."""
    if world.broken:
        return world.broken
    for place, entry in enumerate(world.index.entries):
        if entry is None:
            continue
        blob = chr(ord("a") + place)
        file = linked(world, entry[0])
        row = world.index.row(entry[0])
        if file < 0 or row is None:
            return f"the index lists {blob} in segment {entry[0]}, which is gone (I3)"
        if world.files[file].records[entry[1] : entry[1] + 1] != blob:
            return f"the index lists {blob} in segment {entry[0]}, where it is not (I1)"
    for blob in world.owed:
        if is_owed(world, blob) and not held(world, blob):
            return f"{blob} was promised and is not held (I8)"
        if blob not in world.used and not _noted(world, blob, protocol):
            return f"{blob} is called present and nobody noted the promise (I8)"
    for name, binding in world.whole:
        for blob in protocol.closure(name, binding) if world.names[name] == binding else "":
            if not held(world, blob) and not is_suspect(world, blob):
                return f"name {name} lost {blob}, which was not evicted (I2)"
    return ""


def _noted(world: World, blob: str, protocol: Steps) -> bool:
    return any(
        blob in (what if kind == "lease" else _closures(protocol, int(what)))
        for kind, what in world.log
        if kind in ("lease", "name")
    )


def _closures(protocol: Steps, name: int) -> str:
    return protocol.closure(name, 1) + protocol.closure(name, 2)


def left_over(world: World) -> str:
    """What is wrong with a state in which nobody can do anything any more."""
    for process in world.processes:
        if process.steps:
            return f"it waits for ever: {process.steps[0][0]}"
    for number, row in enumerate(world.index.rows, start=1):
        if row is not None and row.state in (SWEEPING, FORWARD):
            return f"segment {number} is {row.state} for ever: its space never returns"
    return ""
