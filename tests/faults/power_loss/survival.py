"""What a power loss leaves of the changes that were not durable: the ways in which this simulation is cruel.

Each way is a function from these changes, in order, to those that survive, in the order in which they are applied; it
may take them apart. All choices come from the random generator that it is given, so that a seed repeats them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from faults.power_loss.disk import Change, Entered, File, Resized, Written

SECTOR_BYTES = 512
PAGE_BYTES = 4096

Way = Callable[[Sequence[Change], Random], list[Change]]


def nothing(changes: Sequence[Change], random: Random) -> list[Change]:
    """Nothing that was not synced."""
    return []


def everything(changes: Sequence[Change], random: Random) -> list[Change]:
    """Everything; a machine that was only reset."""
    return list(changes)


def all_but_one(changes: Sequence[Change], random: Random) -> list[Change]:
    """Everything but one change, or but one part of it. Each file is as likely to be hit as another."""
    if not changes:
        return []
    groups = _groups(changes)
    hit = random.choice(random.choice(groups))
    survivors: list[Change] = []
    for change in changes:
        if change is not hit:
            survivors.append(change)
        elif isinstance(hit, Written) and random.random() < 0.5:
            pieces = _pieces(hit, random.choice((SECTOR_BYTES, PAGE_BYTES)))
            del pieces[random.randrange(len(pieces))]
            survivors += pieces
    return survivors


def newest_only(changes: Sequence[Change], random: Random) -> list[Change]:
    """Of every file, and of the directories, only what was done last."""
    newest = [group[-1] for group in _groups(changes)]
    return [change for change in changes if any(change is last for last in newest)]


def one_only(changes: Sequence[Change], random: Random) -> list[Change]:
    """One change alone."""
    return [random.choice(random.choice(_groups(changes)))] if changes else []


def in_order(changes: Sequence[Change], random: Random) -> list[Change]:
    """All up to some moment, and of the next a part."""
    count = random.randint(0, len(changes))
    return [*changes[:count], *(_torn(change, random) for change in changes[count : count + 1])]


def some(changes: Sequence[Change], random: Random) -> list[Change]:
    """Each by itself survives or not, or is torn."""
    likely, torn = random.choice((0.1, 0.5, 0.9)), random.choice((0.0, 0.3))
    survivors = [change for change in changes if random.random() < likely]
    return [_torn(change, random) if random.random() < torn else change for change in survivors]


def scattered(changes: Sequence[Change], random: Random) -> list[Change]:
    """Each page, or each sector, of every write survives or not; so does every entry."""
    size, likely = random.choice((SECTOR_BYTES, PAGE_BYTES)), random.choice((0.2, 0.5, 0.8))
    pieces = [
        piece for change in changes for piece in (_pieces(change, size) if isinstance(change, Written) else [change])
    ]
    return [piece for piece in pieces if random.random() < likely]


def reordered(changes: Sequence[Change], random: Random) -> list[Change]:
    """Entries as they came, up to some moment, as a journal keeps them; of the data any pages."""
    entries = [change for change in changes if isinstance(change, Entered)]
    kept = set(entries[: random.randint(0, len(entries))])
    data = [change for change in changes if not isinstance(change, Entered)]
    return [change for change in changes if change in kept] + scattered(data, random)


def names_without_bytes(changes: Sequence[Change], random: Random) -> list[Change]:
    """Entries and sizes, and zeros where the data should be."""
    return [
        Resized(change.file, change.end, change.begun, change.ended, grows=True)
        if isinstance(change, Written)
        else change
        for change in changes
    ]


def bytes_without_names(changes: Sequence[Change], random: Random) -> list[Change]:
    """Everything but entries."""
    return [change for change in changes if not isinstance(change, Entered)]


WAYS: dict[str, Way] = {
    way.__name__: way
    for way in (
        nothing,
        everything,
        all_but_one,
        newest_only,
        one_only,
        in_order,
        some,
        scattered,
        reordered,
        names_without_bytes,
        bytes_without_names,
    )
}


def _groups(changes: Sequence[Change]) -> list[list[Change]]:
    """Changes by file, those of directories together."""
    groups: dict[File | None, list[Change]] = {}
    for change in changes:
        groups.setdefault(None if isinstance(change, Entered) else change.file, []).append(change)
    return list(groups.values())


def _pieces(change: Written, size: int) -> list[Change]:
    """A write cut where sectors (or pages) of the file begin."""
    cuts = range(change.offset - change.offset % size, change.end, size)
    return [change.part(start, start + size) for start in cuts]


def _torn(change: Change, random: Random) -> Change:
    """The beginning of a write, in whole sectors."""
    if not isinstance(change, Written):
        return change
    sectors = range(change.offset - change.offset % SECTOR_BYTES + SECTOR_BYTES, change.end, SECTOR_BYTES)
    return change.part(change.offset, random.choice(sectors)) if sectors else change
