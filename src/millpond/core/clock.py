"""Time as an argument: whatever depends on it can be tested a week ahead."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Milliseconds since 1970-01-01 UTC."""


def wall_clock() -> int:
    """The machine's clock, in milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000
