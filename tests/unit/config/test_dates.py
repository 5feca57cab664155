"""Dates as people write them."""

import pytest

from millpond.config.dates import format_time, format_until, parse_until

DAY_MS = 86_400_000
NEW_YEAR_2027_MS = 1_798_761_600_000


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2026-12-31", NEW_YEAR_2027_MS),
        (" 20261231 ", NEW_YEAR_2027_MS),
        ("2027-01-01T00:00", NEW_YEAR_2027_MS),
        ("2027-01-01T01:00+01:00", NEW_YEAR_2027_MS),
        ("2027-01-01 00:00:01Z", NEW_YEAR_2027_MS + 1000),
    ],
)
def test_a_date_is_a_whole_day_and_a_time_is_utc_unless_it_says_otherwise(text: str, time_ms: int) -> None:
    assert parse_until(text) == time_ms


@pytest.mark.parametrize("text", ["", "tomorrow", "31.12.2026", "2026-13-01", "2026-12", "1798761600"])
def test_what_is_no_date_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="2027-01-31"):
        parse_until(text)


def test_a_time_is_written_as_it_is_read() -> None:
    assert format_time(NEW_YEAR_2027_MS + 60_000) == "2027-01-01 00:01 UTC"
    assert format_until(NEW_YEAR_2027_MS) == "2026-12-31"
    assert format_until(NEW_YEAR_2027_MS + DAY_MS // 2) == "2027-01-01 12:00 UTC"
