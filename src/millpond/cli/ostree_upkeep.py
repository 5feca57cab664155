"""What ``millpond ostree init``, ``check``, ``list`` and ``prune`` do, and how they say it.

The rule: text and JSON are made of the same things; progress goes to standard error.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millpond.cli.progress import Progress, count, several
from millpond.config.ages import format_age
from millpond.config.settings import Settings
from millpond.config.sizes import Quota, explicit_quota_bytes, format_size
from millpond.core.clock import wall_clock
from millpond.core.errors import MillpondError, RefusedToStart
from millpond.store.ostree.checking import Checkup, Entry, Problem, entries
from millpond.store.ostree.evicting import Eviction, older_or_over
from millpond.store.ostree.making import make_repository
from millpond.store.ostree.places import make_state
from millpond.store.ostree.repository import open_repository
from millpond.store.repository import filesystem

_SHOWN = 100


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever stops the command is one sentence.

    Raises:
        RefusedToStart: with that sentence.
    """
    try:
        yield
    except RefusedToStart:
        raise
    except MillpondError as failure:
        raise RefusedToStart(f"{path}: {failure}") from None
    except OSError as failure:
        raise RefusedToStart(f"{path}: {failure.strerror or failure}") from None


def init(path: Path, quota: Quota | None, reserve: Quota | None) -> int:
    """Make or take over a repository; the exit status."""
    with _told(path):
        size_bytes = filesystem.size_bytes(str(_existing(path)))
        quota_bytes = explicit_quota_bytes(quota, size_bytes)
        reserve_bytes: int | None = Settings(repo=path, listeners=(), reserve=reserve).reserve_bytes(size_bytes)
        if reserve is None and _has_reserve(path):
            reserve_bytes = None
        repository, is_new = make_repository(str(path), quota_bytes=quota_bytes, reserve_bytes=reserve_bytes)
    settings = repository.settings
    may_hold = "what the disk holds" if settings.quota_bytes is None else format_size(settings.quota_bytes)
    print(
        f"{path}: {'made' if is_new else 'taken over'}; it may hold {may_hold},"
        f" {format_size(settings.reserve_bytes)} of the disk are left to others"
    )
    return 0


def _existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.is_dir())


def _has_reserve(path: Path) -> bool:
    return (path / "config").exists() and open_repository(str(path)).settings.has_reserve


def check(path: Path, *, repair: bool, as_json: bool) -> int:
    """Look at everything; the exit status."""
    problems: list[Problem] = []
    with _told(path):
        repository = open_repository(str(path))
        checkup = Checkup(repository, problems.append, wall_clock, repair=repair)
        with Progress("objects", checkup.size_bytes, unit=format_size) as progress:
            for size_bytes in checkup.read_objects():
                progress.advance(size_bytes)
        refs = checkup.settle()
    if as_json:
        found = [{**one._asdict(), "repaired": not one.next_step} for one in problems]
        checked = {"objects": checkup.objects, "bytes": checkup.size_bytes, "refs": refs}
        print(
            json.dumps(
                {"repository": str(path), "sound": not problems, "checked": checked, "problems": found}, indent=2
            )
        )
        return int(bool(problems))
    for problem in problems[:_SHOWN]:
        print(f"{problem.thing}: {problem.trouble}")
        print(f"    next: {problem.next_step}" if problem.next_step else "    repaired")
    if len(problems) > _SHOWN:
        print(f"… and {count(len(problems) - _SHOWN)} more; --json lists all of them")
    verdict = "sound" if not problems else several(len(problems), "problem") + (", repaired" if repair else "")
    looked_at = f"{several(checkup.objects, 'object')} ({format_size(checkup.size_bytes)}), {several(refs, 'ref')}"
    print(f"{path}: {verdict}; {looked_at}")
    return int(bool(problems))


def list_all(path: Path, *, as_json: bool) -> int:
    """Print every ref; the exit status."""
    with _told(path):
        repository = open_repository(str(path))
        found = list(entries(repository.path))
    if as_json:
        print(json.dumps([one._asdict() for one in found], indent=2))
        return 0
    for one in found:
        print(_line(one, wall_clock()))
    return 0


def _line(one: Entry, now_ms: int) -> str:
    size = "not whole" if one.size_bytes is None else format_size(one.size_bytes)
    pushed, used = (format_age(max(0, now_ms - at)) for at in (one.pushed_ms, one.used_ms))
    return f"{one.ref}  {one.commit or 'damaged'}  {size}, pushed {pushed} ago, used {used} ago"


def prune(path: Path, *, older_than_ms: int | None, quota_bytes: int | None, as_json: bool) -> int:
    """Let go what is to go; the exit status."""
    with _told(path):
        repository = open_repository(str(path))
        make_state(repository.path)
        if older_than_ms is None and quota_bytes is None:
            quota_bytes = repository.settings.quota_bytes
        before_ms = None if older_than_ms is None else wall_clock() - older_than_ms
        evicted = Eviction(repository, wall_clock).run(older_or_over(before_ms, quota_bytes))
    if as_json:
        print(json.dumps(evicted._asdict(), indent=2))
        return 0
    for ref in evicted.refs:
        print(ref)
    went = f"{several(len(evicted.refs), 'ref')} and {several(evicted.objects, 'object')} went"
    print(f"{path}: {went}, {format_size(evicted.freed_bytes)}; {format_size(evicted.left_bytes)} are left")
    if evicted.pulled_refs:
        print("still being pulled, their objects go with the next prune: " + ", ".join(evicted.pulled_refs))
    return 0
