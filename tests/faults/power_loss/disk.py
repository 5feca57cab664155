"""A disk that may lose its power: what is durable, and what is not yet.

The model, which is that of POSIX and not of one file system:

* what was written to a file is durable after an fsync or fdatasync of that file that began after the write had ended;
  until then each part of it may be there or not, whatever became of the parts before and after it;
* a directory's entries are durable after an fsync of that directory; until then each may be there or not;
* a rename is one change, in both directories: all of it or nothing;
* a sector of 512 bytes is written whole or not at all;
* bytes that a file was made longer by and that were not written are zeros.

So a file may be durable without a name, a name without the file's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True, eq=False)
class File:
    """A file. ``durable`` is what is on the disk, ``pending`` what was done to it since, in order."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Written | Resized] = field(default_factory=list)
    size: int = 0
    """As processes see it."""

    def content(self) -> bytearray:
        """As processes see it."""
        return applied(self.durable, self.pending)


@dataclass(slots=True, eq=False)
class Directory:
    """A directory; ``entries`` as processes see them, ``durable`` as they are on the disk."""

    entries: dict[str, File | Directory] = field(default_factory=dict)
    durable: dict[str, File | Directory] = field(default_factory=dict)


@dataclass(slots=True, eq=False, frozen=True)
class Written:
    """Bytes were written into a file. Times are positions in the recording."""

    file: File
    offset: int
    data: bytes
    begun: int
    ended: int

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def part(self, start: int, end: int) -> Written:
        """What of it lies between two offsets of the file."""
        start = max(start, self.offset)
        end = max(start, min(end, self.end))
        return Written(self.file, start, self.data[start - self.offset : end - self.offset], self.begun, self.ended)


@dataclass(slots=True, eq=False, frozen=True)
class Resized:
    """A file was cut, or made longer by zeros. With ``grows`` it is never made shorter."""

    file: File
    size: int
    begun: int
    ended: int
    grows: bool = False


@dataclass(slots=True, eq=False, frozen=True)
class Entered:
    """Entries changed, all at once: (directory, name, what it leads to or None)."""

    effects: tuple[tuple[Directory, str, File | Directory | None], ...]
    begun: int
    ended: int


Change = Written | Resized | Entered


def applied(content: bytes | bytearray, changes: list[Written | Resized]) -> bytearray:
    """A file's content after some changes."""
    content = bytearray(content)
    for change in changes:
        if isinstance(change, Resized):
            if change.size > len(content):
                content += bytes(change.size - len(content))
            elif not change.grows:
                del content[change.size :]
        else:
            if change.offset > len(content):
                content += bytes(change.offset - len(content))
            content[change.offset : change.end] = change.data
    return content


def _loaded(place: Path) -> Directory:
    """A tree of files and directories, all of it durable."""
    directory = Directory()
    for path in place.iterdir():
        content = bytearray() if path.is_dir() else bytearray(path.read_bytes())
        inode = _loaded(path) if path.is_dir() else File(durable=content, size=len(content))
        directory.entries[path.name] = directory.durable[path.name] = inode
    return directory


class Disk:
    """The tree below one directory, which was there before and is durable, with what ``place`` holds."""

    def __init__(self, place: Path | None = None) -> None:
        self.root = _loaded(place) if place else Directory()
        self.pending_entries: list[Entered] = []
        self._unsynced: dict[File, None] = {}

    def add(self, change: Change) -> None:
        """Something was done, as processes see it at once."""
        if isinstance(change, Entered):
            for directory, name, inode in change.effects:
                if inode is None:
                    del directory.entries[name]
                else:
                    directory.entries[name] = inode
            self.pending_entries.append(change)
            return
        file = change.file
        if isinstance(change, Written):
            file.size = max(file.size, change.end)
        else:
            file.size = max(file.size, change.size) if change.grows else change.size
        file.pending.append(change)
        self._unsynced[file] = None

    def sync_file(self, file: File, *, since: int) -> None:
        """An fsync that began at ``since`` has ended."""
        durable = [change for change in file.pending if change.ended < since]
        file.durable = applied(file.durable, durable)
        file.pending = [change for change in file.pending if change.ended >= since]
        if not file.pending:
            self._unsynced.pop(file, None)

    def sync_write(self, change: Written) -> None:
        """A write through a descriptor that syncs what it writes: these bytes are durable, others of the file not."""
        file = change.file
        file.durable = applied(file.durable, [change])
        left: list[Written | Resized] = []
        for other in file.pending:
            if isinstance(other, Resized) or other.end <= change.offset or other.offset >= change.end:
                left += [other] if other is not change else []
            elif other is not change:  # what it wrote here is overwritten for good
                parts = (other.part(0, change.offset), other.part(change.end, other.end))
                left += [part for part in parts if part.data]
        file.pending = left

    def sync_directory(self, directory: Directory, *, since: int) -> None:
        """An fsync of a directory that began at ``since`` has ended."""
        durable: set[Entered] = set()
        places: set[tuple[Directory, str]] = set()
        for change in reversed(self.pending_entries):
            concerns = any(where is directory for where, _, _ in change.effects) and change.ended < since
            # One half of a rename is not durable without the other, and nothing older is so after something newer.
            if concerns or any((where, name) in places for where, name, _ in change.effects):
                durable.add(change)
                places.update((where, name) for where, name, _ in change.effects)
        for change in self.pending_entries:
            if change in durable:
                _enter(change, lambda where: where.durable)
        self.pending_entries = [change for change in self.pending_entries if change not in durable]

    def sync_all(self, *, since: int) -> None:
        """``sync`` or ``syncfs``."""
        for file in list(self._unsynced):
            self.sync_file(file, since=since)
        durable = [change for change in self.pending_entries if change.ended < since]
        for change in durable:
            _enter(change, lambda where: where.durable)
        self.pending_entries = [change for change in self.pending_entries if change.ended >= since]

    def unsynced(self) -> list[Change]:
        """All that a power loss may take, in order."""
        changes: list[Change] = [*self.pending_entries]
        for file in self._unsynced:
            changes += file.pending
        changes.sort(key=lambda change: change.ended)
        return changes

    def write_out(self, survivors: list[Change], to: Path) -> None:
        """The tree as it is after a power loss that left ``survivors``, applied in their order, in the new ``to``."""
        trees: dict[Directory, dict[str, File | Directory]] = {}

        def tree(directory: Directory) -> dict[str, File | Directory]:
            return trees.setdefault(directory, dict(directory.durable))

        changes: dict[File, list[Written | Resized]] = {}
        for change in survivors:
            if isinstance(change, Entered):
                _enter(change, tree)
            else:
                changes.setdefault(change.file, []).append(change)
        written: dict[File, Path] = {}

        def put(directory: Directory, place: Path) -> None:
            place.mkdir()
            for name, inode in tree(directory).items():
                if isinstance(inode, Directory):
                    put(inode, place / name)
                elif inode in written:
                    os.link(written[inode], place / name)
                else:
                    content = applied(inode.durable, changes[inode]) if inode in changes else inode.durable
                    (place / name).write_bytes(content)
                    written[inode] = place / name

        put(self.root, to)


def _enter(change: Entered, tree_of: Callable[[Directory], dict[str, File | Directory]]) -> None:
    for directory, name, inode in change.effects:
        entries = tree_of(directory)
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode
