"""What strace wrote, as system calls.

Expects ``strace -f -y -xx``: a line begins with a thread id, every string and path is in hexadecimal, so that nothing
inside of one can be mistaken for syntax. A call that others overlapped takes two lines, "unfinished" and "resumed".
The rule: what is not understood is an error, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_RESUMED = re.compile(r"<\.\.\. (\w+) resumed>(.*)", re.DOTALL)
_STARTED = re.compile(r"(\w+)\((.*)", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_DETACHED = " <detached ...>"
"""Behind a call whose process was gone before strace had written the line to its end."""
_ENDS = ("+++", "---")
# The thread was killed at the door of a call, before strace had read which.
_NEVER_BEGUN = ("???(", "<... ??? resumed>")
# Calls that say which thread has which descriptors; they name no path.
_OF_PROCESSES = ("clone(", "clone3(", "fork(", "vfork(", "execve(")

CALLS = (
    "open,openat,creat,close,dup,dup2,dup3,fcntl,lseek,mmap,execve,clone,clone3,fork,vfork,"
    "write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,ioctl,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,"
    "fsync,fdatasync,sync,syncfs,sync_file_range,msync"
)
"""All that may change a file, a directory entry, or what a descriptor means; and all that makes them durable."""


class NotUnderstood(Exception):
    """The recording holds something that the simulator has no model of."""


class Call(NamedTuple):
    """One system call. ``text`` is its arguments with a ``$`` for every string; times are positions in the recording."""

    thread: int
    name: str
    text: str
    strings: list[bytes]
    result: int | None
    """None: the process was killed in it."""
    begun: int
    ended: int

    @property
    def words(self) -> list[str]:
        """The arguments, of a call whose arguments are plain."""
        return self.text.split(", ")

    @property
    def failed(self) -> bool:
        """Whether it did nothing. Of a call in which its process was killed nobody knows."""
        return self.result is not None and self.result < 0


def hexadecimal(path: str) -> str:
    """A path as ``-xx`` prints it."""
    return "".join(f"\\x{byte:02x}" for byte in path.encode())


def calls(lines: Iterable[str], places: Iterable[str]) -> Iterator[Call]:
    """The calls that concern processes, or files below one of ``places``, in the order of their ends.

    Positions count two per line, so that there is a moment inside of a call that takes one line only.

    Raises:
        NotUnderstood: a line that strace does not write when it is called as it should be.
    """
    wanted = [hexadecimal(place) for place in places]
    open_ones: dict[int, tuple[str, str, int]] = {}
    number = 0
    for number, line in enumerate(lines):
        thread_text, _, rest = line.rstrip("\n").partition(" ")
        rest = rest.lstrip(" ")
        if not thread_text.isdigit():
            raise NotUnderstood(f"line {number}: {line[:200]}")
        thread = int(thread_text)
        if rest.startswith((*_ENDS, *_NEVER_BEGUN)):
            continue
        begun = 2 * number
        if rest.startswith("<..."):
            resumed = _RESUMED.match(rest)
            if resumed is None or thread not in open_ones:
                raise NotUnderstood(f"line {number}: {line[:200]}")
            name, before, begun = open_ones.pop(thread)
            rest = f"{name}({before}{resumed[2]}"
        if rest.endswith(_UNFINISHED):
            started = _STARTED.match(rest.removesuffix(_UNFINISHED))
            if started is None:
                raise NotUnderstood(f"line {number}: {line[:200]}")
            open_ones[thread] = (started[1], started[2], begun)
            continue
        if rest.endswith(_DETACHED):
            rest = f"{rest.removesuffix(_DETACHED)}) = ?"
        if any(place in rest for place in wanted) or rest.startswith(_OF_PROCESSES):
            yield _call(thread, rest, begun, 2 * number + 1)
    for thread, (name, before, begun) in open_ones.items():  # strace itself was ended
        rest = f"{name}({before}) = ?"
        if any(place in rest for place in wanted):
            yield _call(thread, rest, begun, 2 * number + 1)


def _call(thread: int, rest: str, begun: int, ended: int) -> Call:
    started = _STARTED.match(rest)
    arguments, equals, outcome = started[2].rpartition(" = ") if started else ("", "", "")
    arguments = arguments.rstrip(" ")
    if arguments.endswith(_UNFINISHED.strip() + ")"):  # killed in it
        arguments = arguments.removesuffix(_UNFINISHED.strip() + ")").rstrip(" ") + ")"
    if started is None or not equals or not arguments.endswith(")"):
        raise NotUnderstood(f"a call that does not end: {rest[:200]} … {rest[-100:]}")
    pieces = arguments[:-1].split('"')
    if any(piece.startswith("...") for piece in pieces[2::2]):
        raise NotUnderstood(f"a string was cut off, -s is too small: {rest[:200]}")
    strings = [_bytes(piece) for piece in pieces[1::2]]
    result = outcome.split()[0].partition("<")[0]
    return Call(
        thread, started[1], "$".join(pieces[::2]), strings, None if result == "?" else int(result, 0), begun, ended
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def path_of(word: str) -> str:
    """The path in ``5</path>`` or ``AT_FDCWD</path>``; empty when there is none."""
    if "<\\x2f" not in word:
        return ""
    return _bytes(word[word.index("<") + 1 : word.index(">")]).decode()


def descriptor_of(word: str) -> int:
    """The number in ``5</path>``."""
    return int(word.partition("<")[0])
