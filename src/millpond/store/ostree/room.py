"""How much a repository holds, how much it may hold, and room for a push.

The rule: what is counted is what ``du`` would say of objects and refs, and the count is exact under the lock: for each
directory of objects its size is remembered with the directory's mtime, so what others did there is counted anew.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.errors import NoSpace
from millpond.core.limits import MIB
from millpond.core.wording import format_size
from millpond.store.ostree.disk import read_file, write_file
from millpond.store.ostree.places import LEDGER, make_state
from millpond.store.ostree.staging import BLOCK_BYTES, on_disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from millpond.core.clock import Clock
    from millpond.store.ostree.repository import Repository
    from millpond.store.ostree.staging import Key, Staging

_LOOK_BYTES = 16 * MIB
"""Free space is looked at whenever so much more was received."""


def refs_bytes(refs: int) -> int:
    """What so many refs take: each is a file, most have a directory of their own."""
    return 2 * BLOCK_BYTES * refs


def objects_bytes(repo: str) -> int:
    """What the objects take, with their directories; under the lock.

    Raises:
        OSError: they cannot be counted.
    """
    known, counted, total = _read_ledger(repo), {}, 0
    for name in os.listdir(f"{repo}/objects"):
        path = f"{repo}/objects/{name}"
        found = os.stat(path)
        remembered = known.get(name)
        if remembered is not None and remembered[0] == found.st_mtime_ns:
            size_bytes = remembered[1]
        elif os.path.isdir(path):
            size_bytes = sum(on_disk(entry.stat(follow_symlinks=False).st_size) for entry in os.scandir(path))
        else:
            continue
        counted[name] = (found.st_mtime_ns, size_bytes)
        total += size_bytes + found.st_size
    if counted != known:
        _write_ledger(repo, counted)
    return total


def _read_ledger(repo: str) -> dict[str, tuple[int, int]]:
    try:
        rows = [line.split() for line in read_file(f"{repo}/{LEDGER}").decode("ascii").splitlines()]
        return {name: (int(mtime), int(size)) for name, mtime, size in rows}
    except (OSError, ValueError):
        return {}


def _write_ledger(repo: str, counted: Mapping[str, tuple[int, int]]) -> None:
    content = "".join(f"{name} {mtime} {size}\n" for name, (mtime, size) in sorted(counted.items())).encode()
    new = f"{repo}/{LEDGER}.new"
    with suppress(OSError):
        make_state(repo)
        with suppress(FileNotFoundError):
            os.unlink(new)
        write_file(new, content, mode=0o660)
        os.rename(new, f"{repo}/{LEDGER}")


def free_bytes(repo: str) -> int:
    """What the file system has free for us."""
    found = os.statvfs(repo)
    return found.f_bavail * found.f_frsize


class Room:
    """Room for one push, as quota and reserve of its repository allow."""

    def __init__(self, repository: Repository, clock: Clock, say: Callable[[str], None]) -> None:
        self._repository = repository
        self._repo = repository.path
        self._quota_bytes = repository.settings.quota_bytes
        self._reserve_bytes = repository.settings.reserve_bytes
        self._clock = clock
        self._say = say
        self._received = 0
        self._looked = -_LOOK_BYTES
        self.keep_refs: Collection[str] = ()
        """Refs of this push: they do not go for its sake."""

    def grow(self, size_bytes: int) -> None:
        """So many bytes more are about to be received.

        Raises:
            NoSpace: they will never find room.
        """
        self._received += size_bytes
        quota_bytes = self._quota_bytes
        if quota_bytes is not None and self._received > quota_bytes:
            raise NoSpace(f"the push is larger than the cache, which may hold {format_size(quota_bytes)}")
        if self._reserve_bytes and self._received - self._looked >= _LOOK_BYTES:
            self._looked = self._received
            short_bytes = self._reserve_bytes + max(_LOOK_BYTES, size_bytes) - free_bytes(self._repo)
            if short_bytes > 0:
                self.make(short_bytes, keep_refs=self.keep_refs, keep={})

    def short_bytes(self, staging: Staging, keys: Collection[Key], refs: Collection[str]) -> int:
        """How much has to go before this push is stored with these refs; under the lock.

        Raises:
            NoSpace: it will never find room.
            OSError: nothing can be counted.
        """
        short = [0]
        if self._reserve_bytes:
            short.append(self._reserve_bytes - free_bytes(self._repo))
        if self._quota_bytes is not None:
            wanted = refs_bytes(len(refs)) + objects_bytes(self._repo)
            for checksum, kind in keys:
                size = staging.sizes.get((checksum, kind))
                if size is not None and not os.path.exists(
                    f"{self._repo}/objects/{checksum[:2]}/{checksum[2:]}.{kind}"
                ):
                    wanted += on_disk(size)
            short.append(wanted - self._quota_bytes)
        return max(short)

    def make(self, short_bytes: int, *, keep_refs: Collection[str], keep: Collection[Key]) -> None:
        """Let refs go that were not used for longest, until so much is free; never these refs and objects.

        Raises:
            NoSpace: not so much can go; then nothing went.
            NotReady: the lock could not be had.
            OSError: the disk fails.
        """
        from millpond.store.ostree.evicting import Eviction, enough

        slack_bytes = self._slack_bytes()
        eviction = Eviction(self._repository, self._clock)
        evicted = eviction.run(enough(short_bytes, slack_bytes), keep_refs=keep_refs, keep=keep)
        names = ", ".join(evicted.refs) or "no ref"
        self._say(f"made room of {format_size(evicted.freed_bytes)}: {names} had to go")
        if evicted.freed_bytes < short_bytes:
            raise NoSpace("the cache is full, and what might go is being pulled: try again in some minutes")

    def _slack_bytes(self) -> int:
        from millpond.core.limits import OSTREE_EVICTED_SHARE

        return int((self._quota_bytes or 0) * OSTREE_EVICTED_SHARE)

    def stored(self, linked: Collection[Key], staging: Staging) -> None:
        """These objects were linked just now; under the lock. Their directories need not be counted for that.

        Raises:
            OSError: it cannot be noted.
        """
        if self._quota_bytes is None or not linked:
            return
        known, grown = _read_ledger(self._repo), dict[str, int]()
        for checksum, kind in linked:
            grown[checksum[:2]] = grown.get(checksum[:2], 0) + on_disk(staging.sizes[checksum, kind])
        for name, size_bytes in grown.items():
            before = known.get(name, (0, 0))[1]
            known[name] = (os.stat(f"{self._repo}/objects/{name}").st_mtime_ns, before + size_bytes)
        _write_ledger(self._repo, known)
