"""Looking at all of a repository: every object, every closure, every ref, the summary.

The rule: the look holds no lock, so pushes go on meanwhile; what seemed wrong is looked at once more under the lock
before it is told or put right. Putting right means taking away: a ref that cannot be pulled is a miss, and the next push
brings it back. What is damaged never stays where a push would find it.
"""

from __future__ import annotations

import os
from collections import namedtuple
from contextlib import suppress

from millpond.core.errors import IncompleteClosure, InvalidRequest
from millpond.protocol.ostree.names import METADATA_TYPES, OBJECT_TYPES, loose_path
from millpond.protocol.ostree.objects import check_commitmeta, parse_metadata
from millpond.store.ostree.closure import closure, verify_stored
from millpond.store.ostree.disk import read_file, sync_repository
from millpond.store.ostree.places import LEDGER
from millpond.store.ostree.reach import packed, scan
from millpond.store.ostree.refs import list_refs, read_ref, remove_ref
from millpond.store.ostree.staging import on_disk
from millpond.store.ostree.summary import NewSummary, begin_change, current, end_change, listed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millpond.core.clock import Clock
    from millpond.store.ostree.repository import Repository
    from millpond.store.ostree.staging import Key, Metadata


class Problem(namedtuple("Problem", ("thing", "trouble", "next_step"))):
    """Something that is not as it should be; without a next step it was put right."""

    __slots__ = ()
    thing: str
    trouble: str
    next_step: str


_REPAIR = "millpond ostree check --repair {}; the next push of it brings it back"


class Checkup:
    """One look at a repository; ``found`` is told each problem."""

    def __init__(self, repository: Repository, found: Callable[[Problem], None], clock: Clock, *, repair: bool) -> None:
        self._repository = repository
        self._repo = repository.path
        self._found = found
        self._clock = clock
        self._repair = repair
        self._damaged: dict[Key, str] = {}
        self._whole: set[bytes] = set()
        self.objects = 0
        self.size_bytes = sum(on_disk(size) for _, size in scan(self._repo))

    def read_objects(self) -> Iterator[int]:
        """Verify every object, and yield how much each takes."""
        for key, size in scan(self._repo):
            trouble = self._trouble(key)
            if trouble:
                self._damaged[key] = trouble
            self.objects += 1
            yield on_disk(size)

    def settle(self) -> int:
        """Say what is wrong, and put it right if that is wanted; how many refs there are.

        Raises:
            NotReady: the lock could not be had.
            OSError: the disk fails.
        """
        with self._repository.lock():
            self._damaged = {key: why for key in self._damaged if (why := self._trouble(key))}
            refs = list_refs(self._repo)
            broken = {ref: why for ref, commit in refs.items() if (why := self._broken(commit))}
            commits = [key[0] for key, _ in scan(self._repo) if key[1] == "commit"]
            torn = {commit: why for commit in commits if (why := self._broken(commit))}
            stale = self._stale(refs)
            if self._repair:
                self._put_right(broken, torn, refs)
        self._tell(broken, {commit: why for commit, why in torn.items() if commit not in refs.values()}, stale)
        return len(refs)

    def _trouble(self, key: Key) -> str:
        try:
            if key[1] in OBJECT_TYPES:
                verify_stored(self._repo, key)
            elif key[1] == "commitmeta":
                check_commitmeta(read_file(f"{self._repo}/{loose_path(*key)}"))
        except (IncompleteClosure, FileNotFoundError):
            return ""  # it has gone meanwhile; whoever needs it lacks it
        except InvalidRequest as why:
            return str(why)
        except OSError as failure:
            return f"it cannot be read: {os.strerror(failure.errno or 0)}"
        return ""

    def _broken(self, commit: str) -> str:
        """What a commit lacks; empty when it is whole."""
        if not commit:
            return "its file holds no commit"
        try:
            found = closure(commit, self._load)
        except (IncompleteClosure, InvalidRequest) as why:
            return str(why)
        self._whole.update(packed(key) for key in found)
        return ""

    def _load(self, key: Key) -> Metadata | None:
        if packed(key) in self._whole:  # with all that it names
            return None
        if key in self._damaged:
            raise IncompleteClosure(f"{key[0]}.{key[1]} is damaged")
        path = f"{self._repo}/{loose_path(*key)}"
        if key[1] in METADATA_TYPES:
            try:
                return parse_metadata(key[1], read_file(path))
            except OSError:
                raise IncompleteClosure(f"{key[0]}.{key[1]} is missing") from None
        if not os.path.exists(path):
            raise IncompleteClosure(f"{key[0]}.{key[1]} is missing")
        return None

    def _stale(self, refs: dict[str, str]) -> str:
        summary = current(self._repo)
        if summary is None:
            return "there is none, or it is damaged"
        said, true = dict(summary.refs), listed(self._repo, refs)
        differing = sorted(ref for ref in said.keys() | true.keys() if said.get(ref) != true.get(ref))
        return f"it does not say the same as the refs, of {differing[0]!r} for one" if differing else ""

    # -- putting right ----------------------------------------------------------------------------------------------------

    def _put_right(self, broken: dict[str, str], torn: dict[str, str], refs: dict[str, str]) -> None:
        stay = {ref: commit for ref, commit in refs.items() if ref not in broken}
        tombstones = self._repository.settings.has_tombstones
        summary = NewSummary(self._repo, listed(self._repo, stay), self._clock(), has_tombstones=tombstones)
        begin_change(self._repo)
        summary.apply()
        for ref in broken:
            remove_ref(self._repo, ref)
        end_change(self._repo)
        sync_repository(self._repo)
        for commit in torn:  # before anything else of it, or ostree fsck would miss the rest
            self._remove((commit, "commit"))
            self._remove((commit, "commitmeta"))
        for key in self._damaged:
            self._remove(key)
        with suppress(OSError):
            os.unlink(f"{self._repo}/{LEDGER}")

    def _remove(self, key: Key) -> None:
        with suppress(FileNotFoundError):
            os.unlink(f"{self._repo}/{loose_path(*key)}")

    def _tell(self, broken: dict[str, str], torn: dict[str, str], stale: str) -> None:
        def next_step(what: str) -> str:
            return "" if self._repair else _REPAIR.format(what)

        for (checksum, kind), why in self._damaged.items():
            self._found(Problem(f"object {checksum}.{kind}", why, next_step("removes it")))
        for ref, why in broken.items():
            self._found(Problem(f"ref {ref}", why, next_step("drops it")))
        for commit, why in torn.items():
            self._found(Problem(f"commit {commit}", f"no ref names it, and {why}", next_step("removes it")))
        if stale:
            self._found(
                Problem("summary", stale, "" if self._repair else "millpond ostree check --repair writes it anew")
            )


class Entry(namedtuple("Entry", ("ref", "commit", "size_bytes", "pushed_ms", "used_ms"))):
    """A ref as ``millpond ostree list`` shows it; a size of None: it is not whole."""

    __slots__ = ()
    ref: str
    commit: str
    size_bytes: int | None
    pushed_ms: int
    used_ms: int


def entries(repo: str) -> Iterator[Entry]:
    """Every ref, by name: what all that it needs takes, when it was pushed and last used."""
    from millpond.store.ostree.uses import Uses

    uses, sizes = Uses(repo).last(), {packed(key): on_disk(size) for key, size in scan(repo)}

    def load(key: Key) -> Metadata | None:
        if packed(key) not in sizes:
            raise IncompleteClosure(f"{key[0]}.{key[1]} is missing")
        return parse_metadata(key[1], read_file(f"{repo}/{loose_path(*key)}")) if key[1] in METADATA_TYPES else None

    for ref in sorted(list_refs(repo)):
        path = f"{repo}/refs/heads/{ref}"
        try:
            pushed_ms, commit = os.stat(path).st_mtime_ns // 1_000_000, read_ref(path)
        except FileNotFoundError:
            continue
        try:
            size: int | None = sum(sizes[packed(key)] for key in closure(commit or "", load)) if commit else None
        except (IncompleteClosure, InvalidRequest, OSError):
            size = None
        yield Entry(ref, commit or "", size, pushed_ms, max(pushed_ms, uses.get(commit or "", 0)))
