"""What ``millpond names restore`` does.

The rule: it never makes things worse. It works alone, on a copy that it has read to the end, and sets aside what was
there; names that are sound are only replaced by somebody who said by which copy.
"""

from pathlib import Path

from millpond.cli.naming import quiet
from millpond.cli.progress import several
from millpond.config.dates import format_time
from millpond.core.errors import MillpondError, RefusedToStart
from millpond.names import backups, restoring
from millpond.opening_names import open_names
from millpond.store.repository.layout import Layout
from millpond.store.repository.presence import alone
from millpond.store.segments.rebuild import segment_paths


def restored(path: Path, *, number: int | None, empty: bool) -> int:
    """Restore; the exit status.

    Raises:
        RefusedToStart: it cannot be done, or need not be.
    """
    with quiet(path), alone(path) as layout:
        if number is None and not empty and _sound(layout):
            raise RefusedToStart(
                f"the names in {path} are sound: nothing was restored; --from N goes back to a copy all the same"
            )
        copy = None if empty else restoring.sound_copy(Path(layout.backup), number=number)
        numbers = [number for number, _ in segment_paths(layout.segments)]
        count = restoring.restore(Path(layout.names), copy, numbers_seen=numbers)
        aside = Path(layout.root) / restoring.ASIDE
    if copy is None:
        print(f"{path} begins without names; clients will push them again")
    else:
        print(f"restored {several(count, 'name')} as of {format_time(backups.made_at_ms(copy))}")
    if aside.exists():
        print(f"what was there before is in {aside}: delete it when you do not need it")
    return 0


def _sound(layout: Layout) -> bool:
    try:
        names = open_names(layout, read_only=True)
    except RefusedToStart:
        return False
    try:
        names.next_number()
    except MillpondError:
        return False
    finally:
        names.close()
    return True
