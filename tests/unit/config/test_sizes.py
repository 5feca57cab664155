"""Sizes mean what their unit says, and nothing is guessed."""

from __future__ import annotations

import pytest

from millpond.config.sizes import Quota, format_size, parse_quota, parse_reserve, parse_share, parse_size
from millpond.core import limits


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("10000000000", 10**10),
        ("50G", 50 * 10**9),
        ("50GB", 50 * 10**9),
        ("50g", 50 * 10**9),
        ("50Gi", 50 * 2**30),
        ("50 GiB", 50 * 2**30),
        ("7K", 7000),
        ("7Ki", 7168),
        ("3M", 3 * 10**6),
        ("3Mi", 3 * 2**20),
        ("2T", 2 * 10**12),
        ("2Ti", 2 * 2**40),
        ("1.5G", 1_500_000_000),
        ("0.1T", 10**11),
        ("1.5Ki", 1536),
        (" 4096 ", 4096),
        ("12B", 12),
    ],
)
def test_a_unit_with_i_is_a_power_of_two_and_one_without_a_power_of_ten(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "G", "5x", "5Gx", "-1", "1e9", "1,5G", "1_000", "0x10", "five", "5 0", "٥", "1.G", ".5G", "50%", "nan"]
)
def test_what_is_not_a_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="50Gi") as refusal:
        parse_size(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["0", "0.1", "0G", "9223372036854775808", "99999999999T"])
def test_a_size_that_no_file_system_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_size(text)


def test_a_quota_is_a_size_or_a_share_of_the_file_system() -> None:
    assert parse_quota("50G") == Quota(50 * 10**9)
    assert parse_quota("80%") == Quota(80, is_percent=True)
    assert parse_quota("12.5 %").bytes_of(8000) == 1000
    assert parse_quota("50G").bytes_of(8000) == 50 * 10**9


def test_a_quota_that_holds_nothing_is_refused_with_the_least_that_does() -> None:
    assert parse_quota(str(limits.SEGMENT_MIN_BYTES)) == parse_quota("256Ki")
    for text in ("100", "255Ki", "1"):
        with pytest.raises(ValueError, match="too little to hold anything: the least quota is 262144 bytes"):
            parse_quota(text)


@pytest.mark.parametrize("text", ["0%", "101%", "%", "-5%", "5%%", "much"])
def test_a_quota_that_is_neither_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="80%"):
        parse_quota(text)


def test_a_reserve_is_a_size_a_share_of_the_file_system_or_nothing() -> None:
    assert parse_reserve("2G") == Quota(2 * 10**9)
    assert parse_reserve("5%") == Quota(5, is_percent=True)
    assert [parse_reserve(text) for text in ("0", "0%", " 0 ")] == [Quota(0)] * 3


@pytest.mark.parametrize("text", ["-1", "much", "5%%", ""])
def test_a_reserve_that_is_neither_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 5%, or 0"):
        parse_reserve(text)


def test_a_reserve_leaves_something() -> None:
    for text in ("100%", "250%"):
        with pytest.raises(ValueError, match="less than 100%"):
            parse_reserve(text)


def test_a_share_is_a_percentage() -> None:
    assert [parse_share(text) for text in ("50%", "50", "12.5 %", "0%", "100")] == [0.5, 0.5, 0.125, 0.0, 1.0]
    for text in ("101%", "half", "-5%", "", "%", "50%%"):
        with pytest.raises(ValueError, match="such as 50%"):
            parse_share(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1 MB"),
        (50 * 10**9, "50 GB"),
        (2**40, "1.1 TB"),
        (2**63 - 1, "9.2 EB"),
    ],
)
def test_sizes_are_shown_short(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
