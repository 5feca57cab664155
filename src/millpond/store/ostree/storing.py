"""From what a push brought to what the repository holds: objects, then refs, then the summary.

The order, under the lock (a kill between any two leaves a repository that ``ostree fsck`` likes):

1. the closure of each commit, from what was received and what is stored; what is stored is verified before it counts
2. room
3. every object linked to its place, commits last; what lies there already stays, if it is what its name says
4. refs and summary written beside the old ones, and all of it synced at once
5. refs renamed, the summary renamed, their directories synced

The rule: what fails before 5 leaves nothing behind.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.errors import IncompleteClosure
from millpond.disk.files import sync_directory
from millpond.protocol.ostree.names import loose_path
from millpond.store.ostree.closure import closure, is_sound, verify_stored
from millpond.store.ostree.disk import make_directories
from millpond.store.ostree.making import configure
from millpond.store.ostree.refs import Change, check_room_for, list_refs
from millpond.store.ostree.summary import NewSummary, begin_change, end_change, listed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from millpond.core.clock import Clock
    from millpond.store.ostree.repository import Repository
    from millpond.store.ostree.room import Room
    from millpond.store.ostree.staging import Key, Metadata, Staging


class Push:
    """One push into a repository, of these refs and their commits.

    ``say`` is told what an administrator would want to know.
    """

    def __init__(
        self,
        repository: Repository,
        commits: Mapping[str, str],
        staging: Staging,
        room: Room,
        *,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self._repository = repository
        self._repo = repository.path
        self._commits = dict(commits)
        self._staging = staging
        self._room = room
        self._clock = clock
        self._say = say
        self._linked: list[Key] = []

    def store(self) -> None:
        """Store it.

        Raises:
            IncompleteClosure: a commit lacks something.
            InvalidRequest: something that it needs is damaged, or a ref cannot be.
            NoSpace: there is no room for it.
            NotReady: the lock could not be had.
            OSError: the disk is full, or fails.
        """
        self._staging.sync()
        while True:
            with self._repository.lock():
                keys = self._closure()
                check_room_for(self._repo, list(self._commits))
                refs = list_refs(self._repo) | self._commits
                short_bytes = self._room.short_bytes(self._staging, keys, refs)
                if short_bytes <= 0:
                    self._commit(keys, refs)
                    return
            self._room.make(short_bytes, keep_refs=self._commits.keys(), keep=keys)

    # -- what belongs to it ---------------------------------------------------------------------------------------------

    def _closure(self) -> dict[Key, None]:
        keys: dict[Key, None] = {}
        for ref, commit in self._commits.items():
            try:
                keys |= closure(commit, self._load)
            except IncompleteClosure as why:
                raise IncompleteClosure(f"{ref}: {why}") from None
        for commit in self._commits.values():
            if (commit, "commitmeta") in self._staging.sizes:
                keys[commit, "commitmeta"] = None
        return keys

    def _load(self, key: Key) -> Metadata | None:
        if key in self._staging.sizes:
            return self._staging.metadata.get(key)
        return verify_stored(self._repo, key)

    # -- into its place ---------------------------------------------------------------------------------------------------

    def _commit(self, keys: dict[Key, None], refs: Mapping[str, str]) -> None:
        change = Change(self._repo, self._commits, self._staging.path)
        summary: NewSummary | None = None
        try:
            self._link_all(keys)
            change.prepare()
            entries = listed(self._repo, refs, self._staging.commits)
            tombstones = self._repository.settings.has_tombstones
            summary = NewSummary(self._repo, entries, self._clock(), has_tombstones=tombstones)
            self._staging.sync()
            begin_change(self._repo)
            change.apply()
            summary.apply()
        except BaseException:
            if summary is not None:
                summary.abandon()
            if change.revert():
                end_change(self._repo)
                self._unlink()  # else a ref may need them, and whoever comes next writes the summary
            raise
        self._settle(change)

    def _settle(self, change: Change) -> None:
        for path in [*sorted(change.directories()), self._repo]:
            sync_directory(path)
        end_change(self._repo)
        for commit in self._commits.values():
            with suppress(OSError):  # it may be that only a part of it was pulled in by an administrator
                os.unlink(f"{self._repo}/state/{commit}.commitpartial")
        with suppress(OSError):  # whoever may not write the config has a summary that is true after the next push
            if not self._repository.settings.updates_summary:
                configure(self._repository)
        with suppress(OSError):
            self._room.stored(self._linked, self._staging)

    def _link_all(self, keys: dict[Key, None]) -> None:
        commits = [key for key in keys if key[1] == "commit"]
        objects = f"{self._repo}/objects"
        made = set(os.listdir(objects))
        for key in [*(key for key in reversed(keys) if key[1] != "commit"), *commits]:
            if key not in self._staging.sizes:
                continue
            checksum, kind = key
            if checksum[:2] not in made:
                make_directories(f"{objects}/{checksum[:2]}", objects)
                made.add(checksum[:2])
            staged, place = self._staging.place(checksum, kind), f"{objects}/{checksum[:2]}/{checksum[2:]}.{kind}"
            try:
                os.link(staged, place)
            except FileExistsError:
                self._look_at(key, staged, place)
            else:
                self._linked.append(key)

    def _look_at(self, key: Key, staged: str, place: str) -> None:
        """Something lies in its place: the same, or the same otherwise compressed; or it is damaged and gives way."""
        checksum, kind = key
        if kind == "commitmeta":
            return  # who signed first has signed: nothing shows that the later one is better
        if _are_same(staged, place) or is_sound(self._repo, key):
            return
        self._say(f"{checksum}.{kind} was damaged here, and is whole again")
        os.rename(staged, place)

    def _unlink(self) -> None:
        for checksum, kind in self._linked:
            with suppress(OSError):
                os.unlink(f"{self._repo}/{loose_path(checksum, kind)}")


def _are_same(one: str, other: str) -> bool:
    if os.stat(one).st_size != os.stat(other).st_size:
        return False
    with open(one, "rb", buffering=0) as left, open(other, "rb", buffering=0) as right:
        while True:
            piece = left.read(1 << 20)
            if piece != right.read(1 << 20):
                return False
            if not piece:
                return True
