"""What is reachable in a repository from its refs, and what each object takes.

The rule: nothing is verified here: what cannot be read leads nowhere. Objects are bytes, a checksum and a kind, because
there may be millions of them.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.errors import InvalidRequest
from millpond.protocol.ostree.names import METADATA_TYPES, OBJECT_TYPES, UNVERIFIED_TYPES, is_checksum, loose_path
from millpond.protocol.ostree.objects import parse_metadata
from millpond.store.ostree.closure import children
from millpond.store.ostree.disk import read_file
from millpond.store.ostree.staging import on_disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from millpond.store.ostree.staging import Key

KINDS = OBJECT_TYPES + UNVERIFIED_TYPES


def packed(key: Key) -> bytes:
    """An object as few bytes."""
    return bytes.fromhex(key[0]) + bytes((KINDS.index(key[1]),))


def unpacked(small: bytes) -> Key:
    """The checksum and the type."""
    return small[:-1].hex(), KINDS[small[-1]]


def scan(repo: str) -> Iterator[tuple[Key, int]]:
    """Every object that lies in the repository, and the size of its file."""
    for name in sorted(os.listdir(f"{repo}/objects")):
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(f"{repo}/objects/{name}"):
                rest, _, kind = entry.name.partition(".")
                if kind in KINDS and is_checksum(name + rest):
                    with suppress(FileNotFoundError):
                        yield (name + rest, kind), entry.stat(follow_symlinks=False).st_size


class Reach:
    """Objects, who refers to them how often, and what would be free without a commit."""

    def __init__(self, repo: str, *, known: Reach | None = None) -> None:
        self._repo = repo
        self._children: dict[bytes, list[bytes]] = known._children if known is not None else {}
        self._counts: dict[bytes, int] = {}
        self.sizes = {packed(key): on_disk(size) for key, size in scan(repo)}

    def add(self, objects: Iterable[bytes]) -> None:
        """Something refers to these."""
        waiting = list(objects)
        while waiting:
            one = waiting.pop()
            count = self._counts.get(one, 0)
            self._counts[one] = count + 1
            if not count:
                waiting.extend(self._named_by(one))

    def release(self, one: bytes) -> int:
        """Something refers to it no more; how many bytes nothing leads to any more because of that."""
        freed, waiting = 0, [one]
        while waiting:
            one = waiting.pop()
            count = self._counts.get(one, 0)
            if count > 1:
                self._counts[one] = count - 1
            elif count:
                del self._counts[one]
                freed += self.sizes.get(one, 0)
                waiting.extend(self._named_by(one))
        return freed

    def garbage(self) -> list[bytes]:
        """What lies here and nothing leads to."""
        return [one for one in self.sizes if one not in self._counts]

    def _named_by(self, one: bytes) -> list[bytes]:
        known = self._children.get(one)
        if known is not None:
            return known
        checksum, kind = unpacked(one)
        if kind not in METADATA_TYPES:
            return []
        found: list[bytes] = []
        try:
            data = read_file(f"{self._repo}/{loose_path(checksum, kind)}")
            found = [packed(key) for key in children(parse_metadata(kind, data))]
        except (OSError, InvalidRequest):
            return found
        if kind == "commit":
            found += [packed((checksum, beside)) for beside in UNVERIFIED_TYPES]
        if found:
            self._children[one] = found
        return found
