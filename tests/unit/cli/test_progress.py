"""A bar on a terminal, plain lines in a log, and a rate that is kept."""

import io

import pytest

from millpond.cli.progress import Pace, Progress, count
from millpond.config.sizes import format_size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_terminal_gets_a_bar_that_is_gone_in_the_end() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("bytes", 8_000_000, unit=format_size, stream=terminal, monotonic=clock) as progress:
        for _ in range(4):
            clock.seconds += 1
            progress.advance(1_000_000)
        assert "\n" not in terminal.getvalue()
        drawn = terminal.getvalue().split("\r")[-1]
        assert drawn.startswith("bytes [============            ]  50 %  4 MB of 8 MB, 4 s left")
    assert terminal.getvalue().endswith("\r" + " " * len(drawn) + "\r")


def test_a_terminal_is_not_drawn_upon_for_every_step() -> None:
    terminal, clock = Terminal(), Clock()
    with Progress("index", 10_000, stream=terminal, monotonic=clock) as progress:
        for _ in range(10_000):
            clock.seconds += 0.0001
            progress.advance(1)
    assert 5 <= terminal.getvalue().count("index [") <= 10


def test_a_log_gets_a_line_now_and_then() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress("names", 200, stream=log, monotonic=clock) as progress:
        for _ in range(100):
            clock.seconds += 1
            progress.advance(1)
    assert log.getvalue().splitlines() == [
        "names: 15 %  30 of 200, 2.8 min left",
        "names: 30 %  60 of 200, 2.3 min left",
        "names: 45 %  90 of 200, 110 s left",
    ]


def test_what_grew_meanwhile_is_never_more_than_all() -> None:
    log, clock = io.StringIO(), Clock()
    progress = Progress("index", 10, stream=log, monotonic=clock)
    clock.seconds = 60
    progress.advance(25)
    assert log.getvalue() == "index: 100 %  25 of 25, 0 s left\n"


def test_nobody_who_reads_is_no_reason_to_stop() -> None:
    closed = Terminal()
    closed.close()
    terminal = Terminal()
    progress = Progress("index", 10, stream=terminal, monotonic=lambda: 0.0)
    progress._stream = closed
    progress._tell(1.0)


def test_numbers_are_written_so_that_they_can_be_read() -> None:
    assert [count(number) for number in (0, 999, 1234, 5_000_000)] == [
        "0",
        "999",
        "1\N{NARROW NO-BREAK SPACE}234",
        "5\N{NARROW NO-BREAK SPACE}000\N{NARROW NO-BREAK SPACE}000",
    ]


def test_a_rate_is_kept_and_a_pause_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(1000, monotonic=clock, sleep=clock.sleep)
    for _ in range(50):
        pace.spend(100)
    assert clock.seconds == pytest.approx(5.0, abs=1.1)
    clock.seconds += 100
    before = clock.seconds
    for _ in range(50):
        pace.spend(100)
    assert clock.seconds - before == pytest.approx(4.0, abs=0.2)
