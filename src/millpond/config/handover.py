"""What the supervisor and the processes it starts say to each other.

Down, on standard input: the settings, one line of JSON; then nothing. The end of that stream means that the supervisor
is gone, however it went, and the process ends within a second. Up, on a pipe whose descriptor is an argument: one line
per :class:`Report`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a process is for. The value is an argument of ``python -m millpond.worker``."""

    WORKER = "worker"
    UPKEEP = "upkeep"
    OSTREE = "ostree"


class News(StrEnum):
    """What a process may report."""

    OPENING = "opening"
    READY = "ready"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Report:
    """A word and what people are to be told: with READY the quota, with REFUSED and FAILED a sentence."""

    news: News
    sentence: str = ""

    def line(self) -> bytes:
        """As it crosses the pipe; shorter than PIPE_BUF, so it is written whole."""
        sentence = " ".join(self.sentence.split())
        return f"{self.news} {sentence}".strip().encode()[:2000] + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> "Report":
        """What :meth:`line` wrote."""
        word, _, sentence = line.decode(errors="replace").strip().partition(" ")
        return cls(News(word), sentence)
