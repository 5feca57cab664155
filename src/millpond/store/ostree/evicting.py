"""Letting refs go, and then the objects that nothing leads to any more.

The order: the summary is written without the refs, the refs go, some time passes in which those who read the old summary
come for their commits, and only then objects go, commits first: a kill at any moment leaves a repository that
``ostree fsck`` likes. What is being pulled stays until that is over.

The rule: who was not used for longest goes first. A use is a pull that our serving noted, or else the push.
"""

from __future__ import annotations

import os
import time
from collections import namedtuple
from contextlib import suppress

from millpond.core.errors import NoSpace
from millpond.core.limits import OSTREE_LEAVING_SECONDS, OSTREE_PULLING_SECONDS
from millpond.disk.files import sync_directory
from millpond.protocol.ostree.names import loose_path
from millpond.store.ostree.ballast import take_ballast, throw_ballast
from millpond.store.ostree.disk import FULL, sync_repository
from millpond.store.ostree.reach import Reach, packed, unpacked
from millpond.store.ostree.refs import HEADS, list_refs, read_ref, remove_ref
from millpond.store.ostree.room import refs_bytes
from millpond.store.ostree.summary import NewSummary, begin_change, end_change, listed
from millpond.store.ostree.uses import Uses

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from millpond.core.clock import Clock
    from millpond.protocol.ostree.summary import Listed
    from millpond.store.ostree.repository import Repository
    from millpond.store.ostree.staging import Key

    Choice = Callable[["Candidates"], list[str]]
    """Which refs go; may raise NoSpace."""

_PATIENCE_ROUNDS = 20
"""So often ``OSTREE_PULLING_SECONDS`` a pull is waited for; what it needs stays then, until the next time."""


class Evicted(namedtuple("Evicted", ("refs", "objects", "freed_bytes", "left_bytes", "pulled_refs"))):
    """What went and what is left; ``pulled_refs`` are those whose objects stay for now because somebody pulls them."""

    __slots__ = ()
    refs: list[str]
    objects: int
    freed_bytes: int
    left_bytes: int
    pulled_refs: list[str]


class Used(namedtuple("Used", ("ref", "commit", "last_ms"))):
    """A ref and when it was last used."""

    __slots__ = ()
    ref: str
    commit: str
    last_ms: int


class Candidates:
    """Refs that may go, least recently used first, and what each would free."""

    def __init__(self, reach: Reach, refs: list[Used], garbage_bytes: int, total_bytes: int) -> None:
        self.refs = refs
        self.garbage_bytes = garbage_bytes
        self.total_bytes = total_bytes
        self._reach = reach

    def freed_without(self, one: Used) -> int:
        """How much more is free when this ref goes, too."""
        return self._reach.release(packed((one.commit, "commit"))) + refs_bytes(1) if one.commit else refs_bytes(1)


def enough(short_bytes: int, slack_bytes: int) -> Choice:
    """Refs until so much is free, and beyond that only what fits into ``slack_bytes``."""

    def choose(candidates: Candidates) -> list[str]:
        freed, chosen = candidates.garbage_bytes, []
        for one in candidates.refs:
            more = candidates.freed_without(one)
            if freed >= short_bytes and freed + more > short_bytes + slack_bytes:
                break
            freed += more
            chosen.append(one.ref)
        if freed < short_bytes:
            raise NoSpace("the push does not fit: it needs more than the cache may hold besides it")
        return chosen

    return choose


def older_or_over(before_ms: int | None, quota_bytes: int | None) -> Choice:
    """Refs that were last used before this, and then others until no more than the quota is left."""

    def choose(candidates: Candidates) -> list[str]:
        left, chosen = candidates.total_bytes - candidates.garbage_bytes, []
        for one in candidates.refs:
            if not (before_ms is not None and one.last_ms < before_ms) and (quota_bytes is None or left <= quota_bytes):
                break
            left -= candidates.freed_without(one)
            chosen.append(one.ref)
        return chosen

    return choose


def by_use(repo: str, refs: Mapping[str, str], uses: Mapping[str, int]) -> list[Used]:
    """These refs, least recently used first."""
    found = []
    for ref, commit in refs.items():
        with suppress(FileNotFoundError):
            pushed_ms = os.stat(f"{repo}/{HEADS}/{ref}").st_mtime_ns // 1_000_000
            found.append(Used(ref, commit, max(pushed_ms, uses.get(commit, 0))))
    return sorted(found, key=lambda used: (used.last_ms, used.ref))


class Eviction:
    """One round of it."""

    def __init__(self, repository: Repository, clock: Clock, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._repository = repository
        self._repo = repository.path
        self._clock = clock
        self._sleep = sleep
        self._uses = Uses(repository.path)

    def run(self, choose: Choice, *, keep_refs: Collection[str] = (), keep: Iterable[Key] = ()) -> Evicted:
        """Let go what ``choose`` says, never these refs and objects.

        Raises:
            NoSpace: ``choose`` said so; nothing went.
            NotReady: the lock could not be had.
            OSError: the disk fails.
        """
        kept = [packed(key) for key in keep]
        with self._repository.lock():
            heads = list_refs(self._repo)
            reach = self._reach(kept, {}, None)
            garbage = sum(reach.sizes[one] for one in reach.garbage())
            total = sum(reach.sizes.values()) + self._directories_bytes() + refs_bytes(len(heads))
            may_go = {ref: commit for ref, commit in heads.items() if ref not in keep_refs}
            candidates = by_use(self._repo, may_go, self._uses.last())
            chosen = choose(Candidates(reach, candidates, garbage, total))
            if chosen:
                self._drop(heads, chosen)
        pulled = self._wait(heads[ref] for ref in chosen) if chosen else set()
        with self._repository.lock():
            gone, gone_bytes, left_bytes = self._collect(kept, reach)
            take_ballast(self._repo)
        freed_bytes = gone_bytes + refs_bytes(len(chosen))
        return Evicted(chosen, gone, freed_bytes, left_bytes, [ref for ref in chosen if heads[ref] in pulled])

    def _reach(self, kept: Iterable[bytes], used: Mapping[str, int], known: Reach | None) -> Reach:
        reach = Reach(self._repo, known=known)
        for directory in ("refs/heads", "refs/remotes", "refs/mirrors"):
            commits = _all_commits(f"{self._repo}/{directory}")
            reach.add(packed((commit, "commit")) for commit in commits)
        reach.add(kept)
        since_ms = self._clock() - 1000 * OSTREE_PULLING_SECONDS
        reach.add(packed((commit, "commit")) for commit, at in used.items() if at > since_ms)
        return reach

    def _drop(self, heads: Mapping[str, str], chosen: list[str]) -> None:
        gone = set(chosen)
        stay = {ref: commit for ref, commit in heads.items() if ref not in gone}
        summary = self._summary(listed(self._repo, stay))
        begin_change(self._repo)
        summary.apply()
        sync_directory(self._repo)
        for ref in chosen:
            remove_ref(self._repo, ref)
        end_change(self._repo)
        sync_repository(self._repo)  # a ref that came back after a power loss would name what is gone

    def _summary(self, entries: dict[str, Listed]) -> NewSummary:
        """A summary written on a disk that may be full to the last byte: the ballast gives way to it."""
        tombstones = self._repository.settings.has_tombstones
        try:
            return NewSummary(self._repo, entries, self._clock(), has_tombstones=tombstones)
        except OSError as failure:
            if failure.errno not in FULL or not throw_ballast(self._repo):
                raise
        return NewSummary(self._repo, entries, self._clock(), has_tombstones=tombstones)

    def _wait(self, commits: Iterable[str]) -> set[str]:
        """Let those finish who pull one of these commits; which of them are pulled even then."""
        leaving = set(commits)
        self._sleep(OSTREE_LEAVING_SECONDS)
        pulled: set[str] = set()
        for _ in range(_PATIENCE_ROUNDS):
            leaving -= set(list_refs(self._repo).values())  # somebody pushed it again: it does not leave
            uses = self._uses.last()
            youngest = max((uses.get(commit, 0) for commit in leaving), default=0)
            wait_ms = youngest + 1000 * OSTREE_PULLING_SECONDS - self._clock()
            if wait_ms <= 0:
                return set()
            self._sleep(wait_ms / 1000)
            pulled = {commit for commit in leaving if uses.get(commit, 0) == youngest}
        return pulled

    def _collect(self, kept: Iterable[bytes], known: Reach) -> tuple[int, int, int]:
        reach = self._reach(kept, self._uses.last(), known)
        garbage = sorted(reach.garbage(), key=_leaving_order)
        gone_bytes, at = 0, 0
        for at, one in enumerate(garbage):
            checksum, kind = unpacked(one)
            if at and kind != "commit" and unpacked(garbage[at - 1])[1] == "commit":
                self._sync_commits(garbage[:at])
            with suppress(FileNotFoundError):
                os.unlink(f"{self._repo}/{loose_path(checksum, kind)}")
                gone_bytes += reach.sizes[one]
            if kind == "commit":
                with suppress(OSError):
                    os.unlink(f"{self._repo}/state/{checksum}.commitpartial")
        left = sum(reach.sizes.values()) - gone_bytes + self._directories_bytes()
        return len(garbage), gone_bytes, left + refs_bytes(len(list_refs(self._repo)))

    def _sync_commits(self, commits: list[bytes]) -> None:
        """Commits are gone from the disk before anything that they need."""
        for name in {one[:1].hex() for one in commits}:
            sync_directory(f"{self._repo}/objects/{name}")

    def _directories_bytes(self) -> int:
        objects = f"{self._repo}/objects"
        return sum(os.stat(f"{objects}/{name}").st_size for name in os.listdir(objects))


def _leaving_order(one: bytes) -> int:
    return {"commit": 0, "dirtree": 1}.get(unpacked(one)[1], 2)


def _all_commits(directory: str) -> Iterable[str]:
    for where, _, names in os.walk(directory):
        for name in names:
            commit = read_ref(f"{where}/{name}")
            if commit:
                yield commit
