"""Dates as people write them.

The rule: times of day are UTC unless they say otherwise, and a date without one means the whole day.
"""

from datetime import UTC, datetime, timedelta

_EXAMPLE = "such as 2027-01-31, 2027-01-31T18:00 or 2027-01-31T18:00+01:00"


def parse_until(text: str) -> int:
    """The end of a date, or a point in time; milliseconds since 1970 (UTC).

    Raises:
        ValueError: neither; the message is for the user.
    """
    words = text.strip()
    try:
        when = datetime.fromisoformat(words)
    except ValueError:
        raise ValueError(f"{text!r} is not a date: write year, month and day, {_EXAMPLE}") from None
    if len(words) <= len("2027-01-31"):
        when += timedelta(days=1)
    return int((when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp() * 1000)


def format_time(time_ms: int) -> str:
    """A time for reading: ``2027-01-31 18:00 UTC``."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_until(time_ms: int) -> str:
    """The end of something: ``2027-01-31`` when that is the end of the day, else the time."""
    when = datetime.fromtimestamp(time_ms / 1000, UTC)
    if (when.hour, when.minute, when.second) == (0, 0, 0):
        return (when - timedelta(seconds=1)).strftime("%Y-%m-%d")
    return format_time(time_ms)
