"""How far a long command has come: a bar on a terminal, a plain line now and then in a log.

The rule: it goes to standard error, so that what the command finds can be piped away; a bar is gone when its work is done.
"""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from millpond.config.ages import format_age

_BAR_SECONDS = 0.1
_LINE_SECONDS = 30.0
_BAR_CHARS = 24
_SPEED_SECONDS = 3.0
"""Before so much time has passed nobody can say how long it takes."""


def count(number: int) -> str:
    """A number for reading: ``1 234 567``."""
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def several(number: int, what: str) -> str:
    """``1 name``, ``2 names``."""
    return f"{count(number)} {what}" + ("" if number == 1 else "s")


class Progress:
    """One piece of work of ``total`` units, which ``unit`` puts into words."""

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: Callable[[int], str] = count,
        stream: TextIO | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._unit = unit
        self._stream = stream or sys.stderr
        self._monotonic = monotonic
        self._is_terminal = self._stream.isatty()
        self._done = 0
        self._begun = self._told = monotonic()
        self._width = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def advance(self, units: int) -> None:
        """So much more is done."""
        self._done += units
        now = self._monotonic()
        if now - self._told >= (_BAR_SECONDS if self._is_terminal else _LINE_SECONDS):
            self._told = now
            self._tell(now - self._begun)

    def _tell(self, seconds: float) -> None:
        total = max(self._total, self._done, 1)  # what is counted may have grown meanwhile
        share = self._done / total
        words = f"{100 * share:3.0f} %  {self._unit(self._done)} of {self._unit(total)}"
        if seconds >= _SPEED_SECONDS and self._done:
            words += f", {format_age(int(1000 * seconds * (1 - share) / share))} left"
        if self._is_terminal:
            full = int(_BAR_CHARS * share)
            self._draw(f"{self._what} [{'=' * full}{' ' * (_BAR_CHARS - full)}] {words}")
        else:
            self._write(f"{self._what}: {words.strip()}\n")

    def _draw(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def _clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more
            self._stream.write(text)
            self._stream.flush()


class Pace:
    """Not more than ``rate_bytes`` per second: :meth:`spend` sleeps for what was read too early."""

    def __init__(
        self,
        rate_bytes: int,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate_bytes = rate_bytes
        self._monotonic = monotonic
        self._sleep = sleep
        self._due = monotonic()

    def spend(self, size_bytes: int) -> None:
        """So much was read."""
        now = self._monotonic()
        self._due = max(self._due, now - 1.0) + size_bytes / self._rate_bytes
        if self._due > now:
            self._sleep(self._due - now)
