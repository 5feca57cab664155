"""Putting a copy of the names in the place of what is damaged, while nobody has the repository open.

The rule (I9): no segment number that was ever given out is given out again, so the counter is raised above every number
that anybody has seen, and a good deal more. What was there is set aside, not deleted.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from millpond.core.errors import MillpondError, RefusedToStart
from millpond.disk.files import sync_directory
from millpond.names import backups
from millpond.names.lmdb_names import LmdbNames

ASIDE = "names.damaged"
_NEW = "names.new"
_NUMBERS_SKIPPED = 65_536
"""More than a copy can be behind: segments of an hour, or of the days in which no copy could be made."""


def sound_copy(directory: Path, *, number: int | None) -> Path:
    """The newest copy in ``directory`` that is sound, or the ``number``-th newest (1 is the newest).

    Raises:
        RefusedToStart: there is none, or that one is damaged.
    """
    found = backups.copies(directory)
    if number is not None:
        if not 1 <= number <= len(found):
            raise RefusedToStart(f"there is no copy number {number} in {directory}: it holds {len(found)}")
        found = [found[number - 1]]
    damage: RefusedToStart | None = None
    for copy in found:
        try:
            for _ in backups.verify(copy):
                pass
        except RefusedToStart as why:
            damage = damage or why
        else:
            return copy
    if damage is not None:
        raise damage
    raise RefusedToStart(
        f"{directory} holds no copy of the names: begin without any with --empty (blobs stay, clients push names again),"
        " or put your own backup of the whole repository in its place"
    )


def restore(names: Path, copy: Path | None, *, numbers_seen: Iterable[int]) -> int:
    """Make ``names`` what ``copy`` holds, or empty. How many names that are. Nobody may have them open.

    Raises:
        OSError: the disk does not allow it. What was there is still there, or in ``names.damaged``.
    """
    new, aside = names.with_name(_NEW), names.with_name(ASIDE)
    shutil.rmtree(new, ignore_errors=True)
    first = max([0, *numbers_seen, *_numbers_known_to([names, *backups.copies(names.with_name("backup"))])])
    new.mkdir()
    if copy is not None:
        shutil.copyfile(copy / "data.mdb", new / "data.mdb")
    made = LmdbNames(new)
    try:
        made.raise_numbers(first + 1 + _NUMBERS_SKIPPED)
        count = sum(1 for _ in made.rows())
    finally:
        made.close()
    for lock in ("lock.mdb", "open.lock"):
        (new / lock).unlink(missing_ok=True)
    _sync_file(new / "data.mdb")
    sync_directory(str(new))
    if names.exists():
        shutil.rmtree(aside, ignore_errors=True)
        names.rename(aside)
    new.rename(names)
    sync_directory(str(names.parent))
    return count


def _numbers_known_to(places: Iterable[Path]) -> Iterable[int]:
    """The counters of those of ``places`` that can still be read."""
    for place in places:
        try:
            held = LmdbNames(place, read_only=True, lock=False, must_exist=True)
        except MillpondError:
            continue
        try:
            yield held.next_number()
        except MillpondError:
            continue
        finally:
            held.close()


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
