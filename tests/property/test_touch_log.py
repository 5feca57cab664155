"""Touch logs: what is read of a damaged one was written, in its order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.store.uses.touch_log import Group, Kind, decode, encode

groups = st.builds(
    lambda kind, time_ms, length, count, fill: Group(kind, time_ms, [bytes([fill]) * length] * count),
    st.sampled_from(Kind),
    st.integers(0, 2**64 - 1),
    st.integers(1, 255),
    st.integers(1, 5),
    st.integers(0, 255),
)


def log_of(written: list[Group]) -> bytearray:
    return bytearray(b"".join(encode(group.kind, group.time_ms, group.rows) for group in written))


@settings(deadline=None)
@given(st.lists(groups, max_size=6))
def test_a_log_is_read_as_written(written: list[Group]) -> None:
    assert list(decode(bytes(log_of(written)))) == written


@settings(deadline=None)
@given(st.lists(groups, max_size=6), st.integers(0, 10_000))
def test_a_log_that_was_cut_off_is_read_up_to_the_cut(written: list[Group], cut: int) -> None:
    content = log_of(written)
    del content[cut:]
    found = list(decode(bytes(content)))
    assert found == written[: len(found)]
    assert len(log_of(written[: len(found) + 1])) > len(content) or found == written


@settings(deadline=None)
@given(st.lists(groups, min_size=1, max_size=6), st.integers(0, 1 << 20), st.integers(0, 7))
def test_a_flipped_bit_ends_the_log_there(written: list[Group], where: int, bit: int) -> None:
    content = log_of(written)
    where %= len(content)
    content[where] ^= 1 << bit
    found = list(decode(bytes(content)))
    assert found == written[: len(found)]
    assert len(log_of(found)) <= where


@settings(deadline=None)
@given(st.binary(max_size=500), st.lists(groups, max_size=2))
def test_garbage_is_no_group(garbage: bytes, written: list[Group]) -> None:
    assert list(decode(garbage)) == []
    assert list(decode(bytes(log_of(written)) + garbage)) == written
    assert list(decode(garbage + bytes(log_of(written)))) == (written if not garbage else [])
