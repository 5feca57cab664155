"""The pushing client of BuildStream 1.0 and 1.1, rebuilt from what the real ones were seen to send.

It shares nothing with the receiver: its messages are laid out by hand, its tar streams are made by ``tarfile``. The
same conversation goes through a pipe or through ``ssh``; ``start`` says which.
"""

from __future__ import annotations

import io
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO, Literal

Order = Literal["little", "big"]
NO_COMMIT = "0" * 64
SECONDS = 120
_TAR_BLOCKS = 10240


class Command(IntEnum):
    """What a message is."""

    INFO = 0
    UPDATE = 1
    PUTOBJECTS = 2
    STATUS = 3
    DONE = 4


# -- GVariant, as much of it as a client writes ---------------------------------------------------------------------------


def _framed(parts: Sequence[tuple[bytes, int]], *, is_array: bool) -> bytes:
    """Parts of variable size, each with its alignment, and where they end. The ends are little-endian everywhere."""
    body = b""
    ends = []
    for part, alignment in parts:
        body += bytes(-len(body) % alignment) + part
        ends.append(len(body))
    if not is_array:
        ends = ends[-2::-1]  # of a tuple: all but the last, the last of them first
    for width in (1, 2, 4):
        if len(body) + width * len(ends) < 1 << (8 * width):
            return body + b"".join(end.to_bytes(width, "little") for end in ends)
    raise AssertionError("too long for a frame")


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _pair(first: str, second: str) -> bytes:
    """``(ss)`` and ``{ss}``."""
    return _framed([(_text(first), 1), (_text(second), 1)], is_array=False)


def _texts(pairs: dict[str, str]) -> bytes:
    """``a{ss}``."""
    return _framed([(_pair(*pair), 1) for pair in pairs.items()], is_array=True)


def _dictionary(entries: dict[str, tuple[bytes, str]]) -> bytes:
    """``a{sv}`` of values with their types."""
    made = []
    for key, (value, kind) in entries.items():
        variant = value + b"\0" + kind.encode()
        made.append((_framed([(_text(key), 1), (variant, 8)], is_array=False), 8))
    return _framed(made, is_array=True)


def message(command: Command, body: bytes = b"", *, order: Order = "little") -> bytes:
    """A frame: byte order, version 1, command, length, body."""
    sign = {"little": b"l", "big": b"B"}[order]
    return sign + bytes([1, command]) + len(body).to_bytes(2, order) + body


def info(mode: int, refs: dict[str, str], *, order: Order = "little") -> bytes:
    number = struct.pack("<i" if order == "little" else ">i", mode)
    return message(Command.INFO, _dictionary({"mode": (number, "i"), "refs": (_texts(refs), "a{ss}")}), order=order)


def update(refs: dict[str, str], *, order: Order = "little") -> bytes:
    changes = {ref: (_pair(NO_COMMIT, commit), "(ss)") for ref, commit in refs.items()}
    return message(Command.UPDATE, _dictionary(changes), order=order)


# -- the objects -----------------------------------------------------------------------------------------------------------


def tar_of(objects: Iterable[Path], *, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    """The objects as one tar stream. With PAX each has an extended header, because its time is a fraction."""
    stream = io.BytesIO()
    with tarfile.open(mode="w|", fileobj=stream, bufsize=_TAR_BLOCKS, format=tar_format) as tar:
        for path in objects:
            member = tarfile.TarInfo(path.parent.name + path.name)
            status = path.stat()
            member.size = status.st_size
            member.mtime = status.st_mtime if tar_format == tarfile.PAX_FORMAT else int(status.st_mtime)
            with path.open("rb") as file:
                tar.addfile(member, file)
    assert len(stream.getvalue()) % _TAR_BLOCKS == 0
    return stream.getvalue()


# -- the conversation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a push ended. ``said`` are the commands that came, ``answers`` their bodies."""

    said: tuple[Command, ...]
    answers: tuple[bytes, ...]
    stderr: str
    status: int

    @property
    def is_done(self) -> bool:
        """What a client takes for success; it does not look at the exit status any more."""
        return self.said[-1:] == (Command.DONE,)


class Pusher:
    """A client that can start the receiver; ``start(verbose)`` does so with pipes to its three streams."""

    def __init__(self, start: Callable[[bool], subprocess.Popen[bytes]], *, order: Order = "little") -> None:
        self._start = start
        self._order: Order = order

    def probe(self) -> Outcome:
        """Ask whether one might push, and wait for the receiver's end with its standard input open, as 1.0 does."""
        with _Conversation(self._start(False)) as receiver:
            receiver.send(info(0, {}, order=self._order))
            receiver.hear()
            receiver.send(message(Command.DONE, order=self._order))
            return receiver.end()

    def push(self, refs: dict[str, str], tar: bytes) -> Outcome:
        """The whole conversation: info, update, putobjects with the tar, done."""
        with _Conversation(self._start(True)) as receiver:
            receiver.send(info(1, {}, order=self._order))
            if receiver.hear() is not Command.INFO:
                return receiver.end()
            receiver.send(update(refs, order=self._order))
            if receiver.hear() is not Command.STATUS or b"result" not in receiver.bodies[-1]:
                return receiver.end()
            if not _is_true(receiver.bodies[-1]):
                receiver.send(message(Command.DONE, order=self._order))
                return receiver.end()
            receiver.send(message(Command.PUTOBJECTS, order=self._order))
            receiver.send(tar)
            receiver.send(message(Command.DONE, order=self._order))
            receiver.hear()
            return receiver.end()

    def say(self, *chunks: bytes) -> Outcome:
        """Send just this, hang up, and hear what comes."""
        with _Conversation(self._start(True)) as receiver:
            for chunk in chunks:
                receiver.send(chunk)
            receiver.hang_up()
            while receiver.hear() is not None:
                pass
            return receiver.end()


def _is_true(status: bytes) -> bool:
    """Whether a ``status`` says yes: the value of ``result`` is one byte, followed by its type."""
    at = status.index(b"result\0") + 8  # the value of an entry is aligned to 8, and so is the entry
    return status[at : at + 1] == b"\1"


class _Conversation:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self._process = process
        self._stdin: IO[bytes] = process.stdin
        self._stdout: IO[bytes] = process.stdout
        self.commands: list[Command] = []
        self.bodies: list[bytes] = []

    def __enter__(self) -> _Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._stdin, self._stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process.wait()

    def send(self, data: bytes) -> None:
        with suppress(BrokenPipeError):  # what it said before it left is still to be heard
            self._stdin.write(data)
            self._stdin.flush()

    def hang_up(self) -> None:
        with suppress(BrokenPipeError):
            self._stdin.close()

    def hear(self) -> Command | None:
        """The next message's command; None when there is none."""
        header = self._stdout.read(5)
        if len(header) < 5:
            return None
        order: Order = {b"l": "little", b"B": "big"}[header[:1]]  # type: ignore[assignment]
        assert header[1] == 1
        self.bodies.append(self._stdout.read(int.from_bytes(header[3:5], order)))
        self.commands.append(Command(header[2]))
        return self.commands[-1]

    def end(self) -> Outcome:
        """Wait for the receiver to end. Standard input stays open unless somebody hung up."""
        status = self._process.wait(SECONDS)
        assert self._stdout.read() == b"", "something came after the last message"
        assert self._process.stderr
        stderr = self._process.stderr.read().decode(errors="replace")
        return Outcome(tuple(self.commands), tuple(self.bodies), stderr, status)
