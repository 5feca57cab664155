"""What ``millpond check`` does: opens a repository as it is, looks at all of it, and says what was found.

The rule: a problem is told with what was expected and what to do next; what stands in the way of a look is a problem,
too, and not the end of the others.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from millpond.cli.progress import Pace, Progress, count, several
from millpond.config.sizes import format_size
from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import NotReady, RefusedToStart
from millpond.core.names import Name
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.opening_names import open_names
from millpond.services.cache import Cache
from millpond.services.soundness import State, called, check_names
from millpond.store.care.check import Problem, StoreCheck
from millpond.store.care.quarantine import quarantine
from millpond.store.care.verification import verify
from millpond.store.index import Entry
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository.layout import Layout
from millpond.store.repository.opening import (
    IndexNotTrusted,
    OpenRepository,
    forget_index,
    open_existing,
    open_repository,
)
from millpond.store.segments.durability import intact

_SHOWN = 100
"""So many problems are listed one by one; --json lists them all."""
_REBUILD = "stop the servers, then millpond check --rebuild makes the index anew from the segments"
_DEEP = "millpond check --deep --repair takes it off the index; the next upload brings it back"


@dataclass(slots=True)
class Findings:
    """What was looked at and what was found."""

    problems: list[Problem] = field(default_factory=list)
    checked: dict[str, Any] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def run(path: Path, *, deep: bool, rate_bytes: int, repair: bool, rebuild: bool, as_json: bool) -> int:
    """Check and print; the exit status.

    Raises:
        RefusedToStart: it cannot be checked, or not so.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # what is logged elsewhere is told here, as problems
    findings = Findings()
    with ExitStack() as stack:
        try:
            opened = _open(path, rebuild=rebuild)
        except IndexNotTrusted as why:
            findings.problems.append(
                Problem(
                    "index",
                    f"{why}".partition(": ")[0],
                    "start a server, or millpond check --rebuild: either makes it anew",
                )
            )
            _look_at_names_only(path, findings)
        else:
            stack.callback(opened.close)
            if repair and opened.read_only:
                raise RefusedToStart(f"{path} can only be read here: check it without --repair")
            _Checkup(opened, findings, repair=repair).run(deep=deep, rate_bytes=rate_bytes)
    _tell(path, findings, as_json=as_json)
    return 0 if findings.sound else 1


def _open(path: Path, *, rebuild: bool) -> OpenRepository:
    if not rebuild:
        return open_existing(path)
    forget_index(path)
    return open_repository(path)


def _look_at_names_only(path: Path, findings: Findings) -> None:
    with _names(Layout(str(path)), findings) as names:
        if names is not None:
            findings.checked["names"] = {"total": sum(1 for _ in names.names())}
            _damaged_names(names, findings)


@contextmanager
def _names(layout: Layout, findings: Findings) -> Iterator[LmdbNames | None]:
    try:
        names = open_names(layout, read_only=True)
    except RefusedToStart as why:
        findings.problems.append(Problem("names", str(why), "see there"))
        yield None
        return
    try:
        yield names
    finally:
        names.close()


def _damaged_names(names: LmdbNames, findings: Findings) -> None:
    for row in sorted(names.damaged):
        findings.problems.append(
            Problem(
                f"name in row {row.hex()}",
                "its value does not verify: it counts as absent",
                "the next push of it writes it anew; or millpond names restore, from the copies in backup/",
            )
        )


class _Checkup:
    """One look at an opened repository."""

    def __init__(self, opened: OpenRepository, findings: Findings, *, repair: bool) -> None:
        self._opened = opened
        self._index = opened.index
        self._findings = findings
        self._repair = repair
        self._damaged: set[tuple[Digest, Entry]] = set()

    def run(self, *, deep: bool, rate_bytes: int) -> None:
        try:
            self._structure()
            if deep:
                self._bytes(rate_bytes)
            with _names(self._opened.layout, self._findings) as names:
                if names is not None:
                    self._names(names)
        except (lmdb.Error, NotReady) as why:
            self._found(Problem("index", f"it is damaged: {why.__cause__ or why}", _REBUILD))

    def _found(self, problem: Problem) -> None:
        self._findings.problems.append(problem)

    def _structure(self) -> None:
        check = StoreCheck(self._index, self._opened.layout, self._found, repair=self._repair, clock=wall_clock)
        with self._index.reading() as txn:
            rows = [row for _, row in self._index.all_segments(txn)]
        blobs = check.blobs()
        _drive("segments", len(rows), check.segments())
        _drive("index", blobs, check.entries())
        check.orphans()
        check.ledger()
        live_bytes = sum(row.live_bytes for row in rows if row.holds)
        self._findings.checked |= {"segments": len(rows), "blobs": blobs, "bytes": live_bytes}

    def _bytes(self, rate_bytes: int) -> None:
        pace, verified, size_bytes = Pace(rate_bytes), 0, 0
        with Progress("bytes", self._findings.checked["bytes"], unit=format_size) as progress:
            for step in verify(self._index, self._opened.layout.segments, self._damaged_blob):
                verified += step.blobs
                size_bytes += step.size_bytes
                progress.advance(step.size_bytes)
                pace.spend(step.size_bytes)
        self._findings.checked |= {"verified_blobs": verified, "verified_bytes": size_bytes}

    def _damaged_blob(self, digest: Digest, entry: Entry, why: str) -> None:
        self._damaged.add((digest, entry))
        where = f"segment {entry.segment:08x}, offset {entry.offset}: {why}"
        next_step = _DEEP
        if self._repair:
            with self._index.writing() as txn:
                count = quarantine(self._index, self._opened.layout.segments, txn, digest.key, entry)
            if not count:
                return
            next_step = ""
            where += "; it counts as missing now, and the next upload brings it back"
        self._found(Problem(f"blob {digest}", where, next_step))

    def _names(self, names: LmdbNames) -> None:
        def damaged(digest: Digest, entry: Entry) -> None:
            if (digest, entry) not in self._damaged:  # not told already
                self._damaged_blob(digest, entry, "it does not verify")

        def claims(name: Name, binding: Binding) -> bool:
            return intact(self._index, name.row, binding.stamp)

        store = ReadOnlyStore(self._opened.layout, self._index, damaged=damaged)
        states: Counter[State] = Counter()
        try:
            with Progress("names", names.count()) as progress:
                for name, _, state, lacking in check_names(Cache(store, store, names, wall_clock), claims):
                    states[state] += 1
                    progress.advance(1)
                    if state is State.WRONG:
                        self._wrong_name(name, lacking)
        except NotReady as why:
            self._found(
                Problem("names", str(why), "try again; the machine lacks memory or descriptors, or its disk fails")
            )
        finally:
            store.close()
        _damaged_names(names, self._findings)
        self._findings.checked["names"] = {
            "total": states.total(), **{state.value: states[state] for state in State if states[state]}
        }  # fmt: skip

    def _wrong_name(self, name: Name, lacking: str) -> None:
        trouble, next_step = f"it counts as whole, and {lacking}", "millpond check --repair makes it a miss"
        if self._repair:
            with self._index.writing() as txn:
                txn.delete(name.row, db=self._index.closures)
            trouble, next_step = f"{trouble}; it is a miss now, until it is pushed again", ""
        self._found(Problem(f"name {called(name)}", trouble, next_step))


def _drive(what: str, total: int, steps: Iterator[int]) -> None:
    with Progress(what, total) as progress:
        for done in steps:
            progress.advance(done)


def _tell(path: Path, findings: Findings, *, as_json: bool) -> None:
    if as_json:
        document = {
            "repository": str(path),
            "sound": findings.sound,
            "checked": findings.checked,
            "problems": [{**asdict(one), "repaired": not one.next_step} for one in findings.problems],
        }
        print(json.dumps(document, indent=2))
        return
    for problem in findings.problems[:_SHOWN]:
        print(f"{problem.thing}: {problem.trouble}")
        print(f"    next: {problem.next_step}" if problem.next_step else "    repaired")
    more = len(findings.problems) - _SHOWN
    if more > 0:
        print(f"… and {count(more)} more; --json lists all of them")
    print(_summary(path, findings))
    sys.stdout.flush()


def _summary(path: Path, findings: Findings) -> str:
    checked = findings.checked
    words = []
    if "blobs" in checked:
        words.append(
            f"{several(checked['blobs'], 'blob')} ({format_size(checked['bytes'])})"
            f" in {several(checked['segments'], 'segment')}"
        )
    if "names" in checked:
        states = ", ".join(f"{count(n)} {state}" for state, n in checked["names"].items() if state != "total")
        words.append(several(checked["names"]["total"], "name") + (f" ({states})" if states else ""))
    if "verified_blobs" in checked:
        words.append(f"{format_size(checked['verified_bytes'])} read and verified")
    left = sum(bool(problem.next_step) for problem in findings.problems)
    repaired = len(findings.problems) - left
    verdict = (
        "sound" if findings.sound else several(left, "problem") + (f", {count(repaired)} repaired" if repaired else "")
    )
    return f"{path}: {verdict}" + (f"; {', '.join(words)}" if words else "")
