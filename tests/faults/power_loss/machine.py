"""What recorded system calls do to a disk.

Follows every descriptor of every process, so that a write is known to concern this very file, whatever its name has
become meanwhile. The rule: a call that concerns the disk and has no model here is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from faults.power_loss.disk import Change, Directory, Disk, Entered, File, Resized, Written
from faults.power_loss.strace_output import Call, NotUnderstood, descriptor_of, path_of

SHARED_MEMORY = frozenset({"lock.mdb", "promise.lock"})
"""Files that processes may map shared and write through memory, which nobody can record. What is in them must mean nothing
after a crash."""


@dataclass(slots=True, eq=False)
class _Opened:
    """An open file description, which duplicated and inherited descriptors share."""

    inode: File | Directory
    flags: frozenset[str]
    position: int = 0


@dataclass(slots=True)
class _Descriptors:
    """What the descriptors of one process mean; only those of files on the disk are here."""

    table: dict[int, _Opened] = field(default_factory=dict)
    close_on_exec: set[int] = field(default_factory=set)
    since: dict[int, int] = field(default_factory=dict)

    def put(self, number: int, opened: _Opened, call: Call, *, close_on_exec: bool) -> None:
        self.drop(number)
        self.table[number] = opened
        self.since[number] = call.ended
        if close_on_exec:
            self.close_on_exec.add(number)

    def drop(self, number: int) -> None:
        self.table.pop(number, None)
        self.close_on_exec.discard(number)

    def close(self, call: Call) -> None:
        """A number is free as soon as its close begins; when that ends, another thread may have it again."""
        number = descriptor_of(call.words[0])
        if self.since.get(number, 0) < call.begun:
            self.drop(number)

    def copy(self) -> _Descriptors:
        return _Descriptors(dict(self.table), set(self.close_on_exec), dict(self.since))


class Machine:
    """Processes over a :class:`Disk` that lies at the directory ``root`` and began with what ``before`` holds."""

    def __init__(
        self,
        root: str,
        calls: Iterable[Call],
        *,
        before: Path | None = None,
    ) -> None:
        self.disk = Disk(before)
        self._root = root
        self._processes: dict[int, _Descriptors] = {}
        # Of a new thread or process: who made it, and whether it shares the descriptors. What it does may be recorded
        # before the call that made it has ended, so these are known from the start.
        self._parents: dict[int, tuple[int, bool]] = {}
        for call in calls:
            if call.name in _MAKING_PROCESSES and call.result and call.result > 0:
                self._parents[call.result] = (call.thread, "CLONE_FILES" in call.text)

    # -- one call ---------------------------------------------------------------------------------------------------

    def play(self, call: Call) -> None:
        """Do what ``call`` did.

        Raises:
            NotUnderstood: there is no model of it.
        """
        if call.failed:
            return
        if call.name in _MAKING_PROCESSES:
            if call.result:
                self._descriptors(call.result)  # a copy of what its parent has now
            return
        if call.name in _SYNCS:
            if call.result is not None:
                self._sync(call)
            return
        for change in self.changes(call):
            self.disk.add(change)
            if isinstance(change, Written) and self._writes_through(call):
                self.disk.sync_write(change)
        self._follow(call)

    def changes(self, call: Call) -> list[Change]:
        """What ``call`` changes, given what was played before. Changes nothing itself."""
        if call.failed:
            return []
        try:
            make = _CHANGES.get(call.name)
            return make(self, call) if make else []
        except (KeyError, ValueError, IndexError) as failure:
            raise NotUnderstood(f"{call.name}({call.text[:300]}) = {call.result}: {failure!r}") from failure

    def _follow(self, call: Call) -> None:
        """Keep track of descriptors and positions."""
        descriptors = self._descriptors(call.thread)
        if call.name in ("open", "openat", "creat"):
            self._follow_open(call, descriptors)
        elif call.name == "execve":
            for number in list(descriptors.close_on_exec):
                descriptors.drop(number)
        elif call.name == "close":
            descriptors.close(call)
        elif call.name in ("dup", "dup2", "dup3", "fcntl"):
            self._follow_dup(call, descriptors)
        elif call.name in ("lseek", "write", "writev"):
            opened = self._find_opened(call)
            if opened is not None:
                moved = 0 if call.name == "lseek" else opened.position
                opened.position = moved + (call.result or 0)
        elif call.name in ("mmap", "ioctl"):
            self._check_harmless(call)

    def _follow_open(self, call: Call, descriptors: _Descriptors) -> None:
        if call.result is None:
            return
        inode = self._at(self._path(call))
        if inode is None:
            descriptors.drop(call.result)
            return
        flags = _flags(call)
        descriptors.put(call.result, _Opened(inode, flags), call, close_on_exec="O_CLOEXEC" in flags)

    def _follow_dup(self, call: Call, descriptors: _Descriptors) -> None:
        words = call.words
        if call.name == "fcntl" and not words[1].startswith("F_DUPFD"):
            if words[1] == "F_SETFD" and descriptor_of(words[0]) in descriptors.table:
                number = descriptor_of(words[0])
                (descriptors.close_on_exec.add if "FD_CLOEXEC" in words[2] else descriptors.close_on_exec.discard)(
                    number
                )
            elif words[1] == "F_SETFL" and descriptor_of(words[0]) in descriptors.table:
                raise NotUnderstood(f"flags of an open file are changed: {call.text}")
            return
        if call.result is None:
            return
        opened = descriptors.table.get(descriptor_of(words[0]))
        if opened is None:
            self._must_not_be_ours(words[0], call)
            descriptors.drop(call.result)
        elif call.result != descriptor_of(words[0]):
            cloexec = words[1:2] == ["F_DUPFD_CLOEXEC"] or "O_CLOEXEC" in words[2:]
            descriptors.put(call.result, opened, call, close_on_exec=cloexec)

    def _check_harmless(self, call: Call) -> None:
        words = call.words
        if call.name == "mmap":
            path = path_of(words[4])
            writes = "PROT_WRITE" in words[2] and "MAP_SHARED" in words[3]
            if not writes or not self._is_inside(path) or os.path.basename(path) in SHARED_MEMORY:
                return
        elif words[1] not in ("FICLONE", "FICLONERANGE", "FS_IOC_SETFLAGS") or not self._is_inside(path_of(words[0])):
            return
        raise NotUnderstood(f"{call.name}({call.text[:300]})")

    # -- descriptors and paths --------------------------------------------------------------------------------------

    def _descriptors(self, thread: int) -> _Descriptors:
        known = self._processes.get(thread)
        if known is None:
            parent, shares = self._parents.get(thread, (0, False))
            theirs = self._descriptors(parent) if parent else _Descriptors()
            known = self._processes[thread] = theirs if shares else theirs.copy()
        return known

    def _writes_through(self, call: Call) -> bool:
        opened = self._find_opened(call)
        return opened is not None and bool(opened.flags & _SYNCED)

    def _find_opened(self, call: Call) -> _Opened | None:
        """What the first argument means; None when it is no file of the disk."""
        word = call.text.partition(", ")[0]
        opened = self._descriptors(call.thread).table.get(descriptor_of(word))
        if opened is None:
            self._must_not_be_ours(word, call)
        elif not self._is_inside(path_of(word)):
            # A number that meant a file of ours when we last heard of it, closed by a call that is not recorded.
            self._descriptors(call.thread).drop(descriptor_of(word))
            return None
        return opened

    def _must_not_be_ours(self, word: str, call: Call) -> None:
        if self._is_inside(path_of(word)):
            raise NotUnderstood(f"a descriptor that was never opened: {call.name}({call.text[:300]})")

    def _is_inside(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root + "/")

    def _path(self, call: Call, which: int = 0) -> str:
        """The ``which``-th path that a call names, made absolute by the directory that it is relative to."""
        path = call.strings[which].decode()
        if not os.path.isabs(path):
            directories = [word for word in call.words if _DIRECTORY.match(word)]
            if len(directories) <= which:
                raise NotUnderstood(f"a relative path: {call.name}({call.text}) {call.strings}")
            path = os.path.join(path_of(directories[which]), path)
        return os.path.normpath(path)

    def _at(self, path: str) -> File | Directory | None:
        """What lies at a path; None for a place that is not on the disk."""
        if not self._is_inside(path):
            return None
        inode: File | Directory = self.disk.root
        for name in path[len(self._root) :].split("/"):
            if name:
                if not isinstance(inode, Directory):
                    raise KeyError(path)
                inode = inode.entries[name]
        return inode

    def _place(self, path: str) -> tuple[Directory, str] | None:
        directory = self._at(os.path.dirname(path))
        return (directory, os.path.basename(path)) if isinstance(directory, Directory) else None

    # -- changes ----------------------------------------------------------------------------------------------------

    def _open(self, call: Call) -> list[Change]:
        path = self._path(call)
        flags = _flags(call)
        if "O_TMPFILE" in flags and self._is_inside(path):
            raise NotUnderstood(f"{call.name}({call.text})")
        place = self._place(path) if path != self._root else None
        if place is None:
            return []
        inode = place[0].entries.get(place[1])
        if inode is None and "O_CREAT" in flags:
            return [Entered(((*place, File()),), call.begun, call.ended)]
        if inode is None and call.result is not None:
            raise KeyError(path)
        if isinstance(inode, File) and "O_TRUNC" in flags and inode.size:
            return [Resized(inode, 0, call.begun, call.ended)]
        return []

    def _mkdir(self, call: Call) -> list[Change]:
        place = self._place(self._path(call))
        return [Entered(((*place, Directory()),), call.begun, call.ended)] if place else []

    def _unlink(self, call: Call) -> list[Change]:
        place = self._place(self._path(call))
        if place is None:
            return []
        place[0].entries[place[1]]
        return [Entered(((*place, None),), call.begun, call.ended)]

    def _rename(self, call: Call) -> list[Change]:
        old, new = self._place(self._path(call)), self._place(self._path(call, 1))
        if old is None and new is None:
            return []
        if old is None or new is None or "RENAME_EXCHANGE" in call.text:
            raise NotUnderstood(f"{call.name}: {call.strings}")
        inode = old[0].entries[old[1]]
        return [Entered(((*old, None), (*new, inode)), call.begun, call.ended)]

    def _link(self, call: Call) -> list[Change]:
        old, new = self._path(call), self._place(self._path(call, 1))
        inode = self._at(old)
        if new is None:
            return []
        if inode is None:
            raise NotUnderstood(f"{call.name}: {call.strings}")
        return [Entered(((*new, inode),), call.begun, call.ended)]

    def _symlink(self, call: Call) -> list[Change]:
        if self._is_inside(self._path(call, 1)):
            raise NotUnderstood(f"{call.name}: {call.strings}")
        return []

    def _write(self, call: Call) -> list[Change]:
        opened = self._find_opened(call)
        if opened is None:
            return []
        file = _file(opened)
        data = b"".join(call.strings)
        if call.result is not None:
            data = data[: call.result]
        elif not data:
            return []
        if "O_APPEND" in opened.flags:
            offset = file.size
        elif call.name in ("write", "writev"):
            offset = opened.position
        else:
            # pwrite64(fd, $, count, offset); pwritev(fd, [...], count, offset); pwritev2(..., count, offset, flags)
            after = call.text.rpartition("]")[2] if "]" in call.text else call.text.partition("$")[2]
            offset = int(after.split(", ")[2])
        return [Written(file, offset, data, call.begun, call.ended)] if data else []

    def _resize(self, call: Call) -> list[Change]:
        if call.name == "truncate":
            file = self._at(self._path(call))
        else:
            opened = self._find_opened(call)
            file = opened.inode if opened else None
        if file is None:
            return []
        if not isinstance(file, File):
            raise NotUnderstood(f"{call.name}({call.text})")
        size = int(call.words[1])
        return [Resized(file, size, call.begun, call.ended)] if size != file.size else []

    def _allocate(self, call: Call) -> list[Change]:
        opened = self._find_opened(call)
        if opened is None:
            return []
        file, (_, mode, offset, length) = _file(opened), call.words
        end = int(offset) + int(length)
        if mode == "0":
            return [Resized(file, end, call.begun, call.ended, grows=True)] if end > file.size else []
        if "FALLOC_FL_KEEP_SIZE" in mode and "FALLOC_FL_PUNCH_HOLE" in mode:
            hole = bytes(max(0, min(end, file.size) - int(offset)))
            return [Written(file, int(offset), hole, call.begun, call.ended)] if hole else []
        if mode == "FALLOC_FL_KEEP_SIZE":
            return []
        raise NotUnderstood(f"{call.name}({call.text})")

    def _copy(self, call: Call) -> list[Change]:
        """``copy_file_range`` and ``sendfile``: no model until somebody uses them here."""
        if any(self._is_inside(path_of(word)) for word in call.words) and call.result != 0:
            raise NotUnderstood(f"{call.name}({call.text})")
        return []

    # -- syncs ------------------------------------------------------------------------------------------------------

    def _sync(self, call: Call) -> None:
        if call.name in ("sync", "syncfs"):
            self.disk.sync_all(since=call.begun)
            return
        if call.name in ("msync", "sync_file_range"):
            return  # the latter promises nothing; the former is of no use without writing through memory
        opened = self._find_opened(call)
        if opened is None:
            return
        if isinstance(opened.inode, Directory):
            self.disk.sync_directory(opened.inode, since=call.begun)
        else:
            self.disk.sync_file(opened.inode, since=call.begun)


_DIRECTORY = re.compile(r"(\d+|AT_FDCWD)<")
_MAKING_PROCESSES = frozenset({"clone", "clone3", "fork", "vfork"})
_SYNCED = frozenset({"O_SYNC", "O_DSYNC"})
_SYNCS = frozenset({"fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range"})
_CHANGES: dict[str, Callable[[Machine, Call], list[Change]]] = {
    **dict.fromkeys(("open", "openat", "creat"), Machine._open),
    **dict.fromkeys(("write", "writev", "pwrite64", "pwritev", "pwritev2"), Machine._write),
    **dict.fromkeys(("rename", "renameat", "renameat2"), Machine._rename),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir"), Machine._unlink),
    **dict.fromkeys(("mkdir", "mkdirat"), Machine._mkdir),
    **dict.fromkeys(("link", "linkat"), Machine._link),
    **dict.fromkeys(("symlink", "symlinkat"), Machine._symlink),
    **dict.fromkeys(("truncate", "ftruncate"), Machine._resize),
    **dict.fromkeys(("copy_file_range", "sendfile", "splice"), Machine._copy),
    "fallocate": Machine._allocate,
}

CHANGING = frozenset(_CHANGES)
"""The calls that change what is on the disk."""


def _flags(call: Call) -> frozenset[str]:
    if call.name == "creat":
        return frozenset({"O_CREAT", "O_WRONLY", "O_TRUNC"})
    return frozenset(call.words[1 if call.name == "open" else 2].split("|"))


def _file(opened: _Opened) -> File:
    if not isinstance(opened.inode, File):
        raise NotUnderstood("a directory is written to")
    return opened.inode
