"""What ``millpond import`` does: opens both stores, brings one into the other, and says what was done.

The rule: whatever ends it, a signal too, what was brought by then stays, is told, and need not be brought again.
"""

import functools
import json
import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millpond.cli.progress import Progress, count, several
from millpond.config.settings import Settings
from millpond.config.sizes import Quota, explicit_quota_bytes, format_size
from millpond.core import limits
from millpond.core.clock import wall_clock
from millpond.core.errors import MillpondError, RefusedToStart
from millpond.importing.interface import OldStore, Reason
from millpond.importing.opening import Kind, open_old_store
from millpond.names.interface import NameIndex
from millpond.names.memory import MemoryNames
from millpond.opening_names import open_names
from millpond.services.cache import Cache
from millpond.services.moving_in import LeftBehind, MovingIn, StandingClock
from millpond.services.rehearsing import EstimatedRoom, RehearsedStore
from millpond.services.upkeep import turn
from millpond.store.memory import MemoryStore
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository import filesystem
from millpond.store.repository.layout import recognise
from millpond.store.repository.opening import OpenRepository, existing, open_existing, open_repository
from millpond.store.room.space import Space
from millpond.store.room.spare import Spare
from millpond.store.room.waiting import NEVER
from millpond.store.segment_store import SegmentStore
from millpond.store.uses.merging import Merger
from millpond.store.uses.table import Uses

_SHOWN = 20
"""So much that was left out is listed without being asked; --json and --verbose list all of it."""
_TURN_SECONDS = 30.0
_MERGE_SECONDS = 0.5
WORDS = {
    Reason.DAMAGED: "damaged",
    Reason.INCOMPLETE: "incomplete",
    Reason.GARBAGE: "not readable as names",
    Reason.ODD: "no plain files",
    Reason.UNREADABLE: "unreadable",
    Reason.UNUSABLE: "not usable as names",
    Reason.NO_ROOM: "without room: the quota is reached",
    Reason.EXPIRED: "expired",
    Reason.BOUND: "bound to something else here (--overwrite replaces it)",
    Reason.VANISHED: "removed by the old server meanwhile",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants brought where."""

    kind: str
    old: Path
    repo: Path
    quota: Quota | None
    instance: str
    overwrite: bool = field(kw_only=True)
    all_blobs: bool = field(kw_only=True)
    dry_run: bool = field(kw_only=True)


def run(wanted: Wanted, *, verbose: bool, as_json: bool) -> int:
    """Bring it; the exit status.

    Raises:
        RefusedToStart: one of the two cannot be used.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # what concerns the user is told here
    watch = _Watch()
    with ExitStack() as stack:
        old = open_old_store(Kind(wanted.kind), str(wanted.old))
        stack.callback(old.close)
        moving = (_rehearsing if wanted.dry_run else _moving)(wanted, old, watch, stack)
        ended = _bring(wanted, moving, old, watch)
    if as_json:
        print(json.dumps(_document(wanted, moving, watch, ended=ended), indent=2))
    else:
        for line in _lines(wanted, moving, watch, verbose=verbose):
            print(line)
    if not ended:
        raise KeyboardInterrupt
    return 1 if any(reason.is_loss for reason in moving.moved.left) else 0


def _bring(wanted: Wanted, moving: MovingIn, old: OldStore, watch: "_Watch") -> bool:
    """Bring names and blobs; False when somebody ended it before its time."""
    try:
        entries = moving.listed()
        with Progress("names", len(entries)) as watch.progress:
            moving.bring(entries)
        if wanted.all_blobs:
            blobs = list(old.blobs())
            with Progress("blobs", len(blobs)) as watch.progress:
                moving.bring_blobs(blobs)
    except KeyboardInterrupt:
        return False
    except MillpondError as failure:
        done = several(moving.moved.names, "name")
        raise RefusedToStart(f"{wanted.repo}: {failure} ({done} came; done again, it goes on)") from None
    finally:
        watch.progress = None
    return True


# -- the parts ----------------------------------------------------------------------------------------------------------


def _moving(wanted: Wanted, old: OldStore, watch: "_Watch", stack: ExitStack) -> MovingIn:
    """All that it takes; ``stack`` takes it apart again.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    repository = _opened(wanted)
    stack.callback(repository.close)
    layout, index = repository.layout, repository.index
    if repository.read_only:
        raise RefusedToStart(f"{wanted.repo} can only be read here: import where it can be written")
    names = open_names(layout)
    stack.callback(names.close)
    reserve_bytes = _reserve_bytes(wanted, filesystem.size_bytes(layout.root))
    clock = StandingClock(wall_clock)
    merge = _Merging(repository, stack)
    store = SegmentStore(
        layout,
        index,
        reserve_bytes=reserve_bytes,
        upkeep_seconds=NEVER,
        take_numbers=names.take_numbers,
        clock=clock,
    )
    stack.callback(merge.finish)
    stack.callback(store.close)
    looking = ReadOnlyStore(layout, index)
    stack.callback(looking.close)
    watch.when_idle = merge.now_and_then
    return MovingIn(
        old,
        Cache(store, store, names, clock, foreign=False),
        looking,
        clock,
        Spare(Space(index, layout, reserve_bytes=reserve_bytes), layout),
        watch,
        instance=wanted.instance,
        overwrite=wanted.overwrite,
        rehearsal=False,
        names_fit=lambda: names.held_bytes() < limits.NAMES_KEPT_SHARE * limits.names_bytes(repository.quota_bytes),
    )


def _rehearsing(wanted: Wanted, old: OldStore, watch: "_Watch", stack: ExitStack) -> MovingIn:
    """As :func:`_moving`, with parts that keep nothing.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    clock = StandingClock(wall_clock)
    here: ReadOnlyStore | MemoryStore
    names: NameIndex
    if recognise(wanted.repo) is None:
        here, names = MemoryStore(0), MemoryNames()
        left_bytes, quota_bytes = _room_for_a_new_one(wanted)
    else:
        repository = open_existing(wanted.repo)
        stack.callback(repository.close)
        layout, index = repository.layout, repository.index
        here, names = ReadOnlyStore(layout, index), open_names(layout, read_only=True)
        disk_bytes = filesystem.size_bytes(layout.root)
        quota_bytes = explicit_quota_bytes(wanted.quota, disk_bytes) or repository.quota_bytes
        spare = Spare(Space(index, layout, reserve_bytes=_reserve_bytes(wanted, disk_bytes)), layout)
        left_bytes = spare.bytes() + quota_bytes - repository.quota_bytes
    stack.callback(here.close)
    stack.callback(names.close)
    store = RehearsedStore(here)
    return MovingIn(
        old,
        Cache(store, here, names, clock, foreign=False),
        store,
        clock,
        EstimatedRoom(store, left_bytes=left_bytes, quota_bytes=quota_bytes),
        watch,
        instance=wanted.instance,
        overwrite=wanted.overwrite,
        rehearsal=True,
        names_fit=lambda: True,
    )


def _room_for_a_new_one(wanted: Wanted) -> tuple[int, int]:
    """How much would fit into a repository that is still to be made, and its quota."""
    disk = os.statvfs(next(place for place in (wanted.repo, *wanted.repo.parents) if place.exists()))
    disk_bytes, free_bytes = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    quota_bytes = explicit_quota_bytes(wanted.quota, disk_bytes) or int(free_bytes * limits.DEFAULT_QUOTA_SHARE)
    room_bytes = min(quota_bytes, free_bytes - _reserve_bytes(wanted, disk_bytes))
    return room_bytes - limits.segment_bytes(quota_bytes), quota_bytes  # one is kept free for moving


def _reserve_bytes(wanted: Wanted, file_system_bytes: int) -> int:
    return Settings(repo=wanted.repo, listeners=()).reserve_bytes(file_system_bytes)


def _opened(wanted: Wanted) -> OpenRepository:
    if recognise(wanted.repo) is not None:
        existing(wanted.repo)  # whose it is
    return open_repository(wanted.repo, quota_bytes=functools.partial(explicit_quota_bytes, wanted.quota))


class _Merging:
    """Takes in what the touch logs say, where no server does: they keep a bounded number of lines."""

    def __init__(self, repository: OpenRepository, stack: ExitStack) -> None:
        self._layout = repository.layout
        with turn(self._layout, wait_seconds=_TURN_SECONDS) as mine:
            if not mine:
                raise RefusedToStart(f"{self._layout.root} is busy: another command is at work on it; try again later")
            self._uses = Uses(self._layout.uses)
        stack.callback(self._uses.close)
        self._merged = time.monotonic()

    def now_and_then(self) -> None:
        """Merge, if that was not done just now and nobody else is at it."""
        if time.monotonic() - self._merged > _MERGE_SECONDS:
            self._merge(wait_seconds=0)

    def finish(self) -> None:
        """Merge what is left."""
        self._merge(wait_seconds=_TURN_SECONDS)

    def _merge(self, *, wait_seconds: float) -> None:
        with turn(self._layout, wait_seconds=wait_seconds) as mine:
            if mine:
                Merger(self._layout.touch, self._uses, wall_clock).merge()
        self._merged = time.monotonic()


class _Watch:
    """Draws the bar, and keeps what is to be told in the end."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.when_idle = _nothing
        self.left_behind: list[LeftBehind] = []

    def step(self, names: int) -> None:
        if self.progress is not None:
            self.progress.advance(names)
        self.when_idle()

    def left(self, left: LeftBehind) -> None:
        self.left_behind.append(left)


def _nothing() -> None:
    """What to do while nothing is open yet."""


# -- telling ------------------------------------------------------------------------------------------------------------


def _document(wanted: Wanted, moving: MovingIn, watch: _Watch, *, ended: bool) -> dict[str, Any]:
    moved = moving.moved
    return {
        "old_store": str(wanted.old),
        "kind": wanted.kind,
        "repository": str(wanted.repo),
        "dry_run": wanted.dry_run,
        "ended": ended,
        "imported": {"names": moved.names, "blobs": moving.mover.blobs, "bytes": moving.mover.size_bytes},
        "here_before": moved.here,
        "left": {
            "total": sum(moved.left.values()),
            "by_reason": {reason.value: number for reason, number in sorted(moved.left.items())},
            "each": [
                {"path": left.path, "uri": left.uri, "reason": left.reason.value, "detail": left.detail}
                for left in watch.left_behind
            ],
        },
    }


def _lines(wanted: Wanted, moving: MovingIn, watch: _Watch, *, verbose: bool) -> list[str]:
    lossy = [left for left in watch.left_behind if left.reason.is_loss]
    shown = watch.left_behind if verbose else lossy[:_SHOWN]
    lines = list(map(_line, shown))
    if len(lossy) > len(shown):
        lines.append(f"… and {count(len(lossy) - len(shown))} more; --verbose lists all of it")
    moved, size = moving.moved, format_size(moving.mover.size_bytes)
    imported, left = ("would import", "would stay") if wanted.dry_run else ("imported", "left")
    lines.append(f"{imported} {several(moved.names, 'name')}: {several(moving.mover.blobs, 'blob')}, {size}")
    if moved.here:
        lines.append(f"{several(moved.here, 'name')} were here before")
    if moved.left:
        lines.append(f"{left} in {wanted.old}: {count(sum(moved.left.values()))}")
    lines += [f"  {count(number)} {WORDS[reason]}" for reason, number in moved.left.most_common()]
    return lines


def _line(left: LeftBehind) -> str:
    is_said = left.path.endswith(left.uri.rpartition(":")[2])  # also where nothing is known beyond the path
    called = left.path if is_said else f"{_printable(left.uri)} ({left.path})"
    return f"{called}: {left.reason}" + (f", {_printable(left.detail)}" if left.detail else "")


def _printable(text: str) -> str:
    """What an old store says may hold anything; a terminal must not obey it."""
    return text if text.isprintable() else ascii(text)[1:-1]
