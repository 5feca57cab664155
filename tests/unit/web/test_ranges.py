"""Which part of a file is asked for: RFC 9110 §14, and everything that is not of its shape is no part at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.web.ranges import NotSatisfiable, Part, part_of

SIZE = 1000


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", Part(0, 1)),
        ("bytes=0-999", Part(0, 1000)),
        ("bytes=500-", Part(500, 500)),
        ("bytes=-1", Part(999, 1)),
        ("bytes=-5000", Part(0, 1000)),
        ("bytes=990-5000", Part(990, 10)),
        ("Bytes= 1-2 ", Part(1, 2)),
    ],
)
def test_one_range_is_that_part(header: str, part: Part) -> None:
    assert part_of(header, SIZE) == part


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,4-5", "items=0-1", "bytes=a-b", "bytes=0--1", "0-1"],
)
def test_what_is_not_one_range_of_bytes_is_all_of_it(header: str | None) -> None:
    assert part_of(header, SIZE) is None


@pytest.mark.parametrize("header", ["bytes=1000-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_had(header: str) -> None:
    with pytest.raises(NotSatisfiable):
        part_of(header, SIZE)


def test_of_nothing_there_is_no_part() -> None:
    with pytest.raises(NotSatisfiable):
        part_of("bytes=0-0", 0)
    with pytest.raises(NotSatisfiable):
        part_of("bytes=-1", 0)


@given(st.text(alphabet="bytes=0123456789-, \t", max_size=30), st.integers(0, 2000))
def test_a_part_always_lies_within(header: str, size_bytes: int) -> None:
    try:
        part = part_of(header, size_bytes)
    except NotSatisfiable:
        return
    assert part is None or (part.count > 0 and part.offset >= 0 and part.offset + part.count <= size_bytes)
