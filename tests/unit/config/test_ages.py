"""Ages mean what their unit says."""

from __future__ import annotations

import pytest

from millpond.config.ages import format_age, parse_age

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("text", "age_ms"),
    [
        ("30d", 30 * DAY),
        ("30 D", 30 * DAY),
        ("2w", 14 * DAY),
        ("36h", 36 * HOUR),
        ("90m", 90 * MINUTE),
        ("10s", 10 * SECOND),
        ("1.5d", 36 * HOUR),
        ("250ms", 250),
        ("0", 0),
        ("0d", 0),
    ],
)
def test_an_age_is_a_number_and_a_unit(text: str, age_ms: int) -> None:
    assert parse_age(text) == age_ms


@pytest.mark.parametrize("text", ["", "d", "7", "-1d", "1e3d", "7 days", "7y", "a week", "٥d"])
def test_what_is_not_an_age_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 30d") as refusal:
        parse_age(text)
    assert repr(text) in str(refusal.value)


def test_an_age_that_nobody_lives_to_see_is_refused() -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_age("1000000d")


@pytest.mark.parametrize(
    ("age_ms", "text"),
    [
        (0, "0 s"),
        (8 * SECOND, "8 s"),
        (100 * SECOND, "100 s"),
        (150 * SECOND, "2.5 min"),
        (47 * HOUR, "47 h"),
        (48 * HOUR, "2 d"),
        (30 * DAY, "30 d"),
    ],
)
def test_ages_are_shown_in_a_unit_of_which_there_are_two(age_ms: int, text: str) -> None:
    assert format_age(age_ms) == text
