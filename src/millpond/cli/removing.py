"""What ``millpond names remove`` does.

The rule: it says what it did, name by name, and what it could not do.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from millpond.cli.naming import Entry, matching, opened, quiet
from millpond.cli.progress import several
from millpond.config.settings import Settings
from millpond.config.sizes import format_size
from millpond.core.errors import RefusedToStart
from millpond.core.patterns import matches
from millpond.services.purging import plan, purge
from millpond.services.soundness import called
from millpond.services.upkeep import turn
from millpond.store.repository.opening import open_existing
from millpond.store.repository.presence import present
from millpond.upkeep import backups, eraser, parts

_TURN_SECONDS = 120.0
_AT_ONCE = 1000
_SHOWN = 20


def removed(path: Path, patterns: Sequence[str], *, purge: bool, ask: bool) -> int:
    """Remove; the exit status.

    Raises:
        RefusedToStart: the repository cannot be used, or not now.
    """
    with quiet(path):
        found = _found(path, patterns)
        if found and ask and not _confirmed(found, purge=purge):
            return 1
        gone = _purged(path, found) if purge and found else _unbound(path, found)
    for name, _ in gone:
        print(f"removed {called(name)}")
    unmatched = [pattern for pattern in patterns if not any(matches(pattern, name) for name, _ in found)]
    for pattern in unmatched:
        print(f"nothing in {path} is called {pattern}", file=sys.stderr)
    return 1 if unmatched else 0


def _found(path: Path, patterns: Sequence[str]) -> list[Entry]:
    with present(path) as layout, opened(layout, read_only=True) as names:
        return matching(names.names(), patterns)


def _confirmed(found: Sequence[Entry], *, purge: bool) -> bool:
    for name, _ in found[:_SHOWN]:
        click.echo(f"  {called(name)}", err=True)
    if len(found) > _SHOWN:
        click.echo(f"  and {several(len(found) - _SHOWN, 'more name')}", err=True)
    what = "remove and overwrite what only these hold" if purge else "remove"
    return click.confirm(f"{what} ({several(len(found), 'name')})?".capitalize(), err=True)


def _unbound(path: Path, found: Sequence[Entry]) -> list[Entry]:
    gone: list[Entry] = []
    with present(path) as layout, opened(layout) as names:
        for start in range(0, len(found), _AT_ONCE):
            gone += names.unbind_many(found[start : start + _AT_ONCE])
    return gone


def _purged(path: Path, found: Sequence[Entry]) -> Sequence[Entry]:
    with ExitStack() as stack:
        repository = open_existing(path)
        stack.callback(repository.close)
        if repository.read_only:
            raise RefusedToStart(f"{path} can only be read here: purge where it can be written")
        work = parts(Settings(repo=path, listeners=()), repository, stack, wait_seconds=_TURN_SECONDS)
        planned = plan(work.names, work.looking, found)  # before anybody has to wait for us
        if not stack.enter_context(turn(repository.layout, wait_seconds=_TURN_SECONDS)):
            raise RefusedToStart(f"{path} is busy: another command is at work on it; try again when that has ended")
        try:
            purged = purge(work.names, work.looking, eraser(work), planned)
        except OSError as failure:
            raise RefusedToStart(f"{path}: the purge is not done ({failure.strerror}): do it again") from None
        backups(work).renew()
    print(f"purged {several(purged.blobs, 'blob')}: {format_size(purged.erased_bytes)} were overwritten")
    if purged.shared:
        size = format_size(sum(digest.size_bytes for digest in purged.shared))
        print(f"{several(len(purged.shared), 'blob')} ({size}) stay: other names need them")
    return found
