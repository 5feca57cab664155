"""A digest that came from outside is what it should be, or is refused."""

import pytest

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest, DigestFunction
from millpond.core.errors import InvalidRequest

HASH = "ab" * 32
BAD_HASHES = ["", "ab" * 31, "ab" * 33, "AB" * 32, "aB" + "ab" * 31, " " + HASH, "ab " * 32, "g" * 64, "../" * 21 + "x"]
BAD_HASHES += ["ａ" * 64, "ab" * 31 + "a\n", "\0" * 64, "ab" * 31 + "é"]


def test_a_digest_is_read_as_it_is_spelled() -> None:
    digest = Digest.parse(HASH, 5)
    assert (digest.hash, digest.size_bytes, digest.function, str(digest)) == (
        HASH,
        5,
        DigestFunction.SHA256,
        f"{HASH}/5",
    )
    assert digest.key == b"\x01" + b"\xab" * 32


@pytest.mark.parametrize("bad", BAD_HASHES, ids=ascii)
def test_what_is_no_hash_is_refused_one_by_one_and_in_a_batch(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        Digest.parse(bad, 5)
    for pairs in ([(bad, 5)], [(HASH, 5), (bad, 5)], [(bad, 5), (HASH, 5)]):
        with pytest.raises(InvalidRequest):
            Digest.parse_many(pairs)


def test_hashes_whose_lengths_only_add_up_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        Digest.parse_many([("ab" * 31, 5), ("ab" * 33, 5)])


@pytest.mark.parametrize("size_bytes", [-1, -(2**63), 2**63])
def test_what_is_no_size_is_refused(size_bytes: int) -> None:
    with pytest.raises(InvalidRequest):
        Digest.parse(HASH, size_bytes)


def test_a_negative_size_in_a_batch_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        Digest.parse_many([(HASH, 1), (HASH, -1)])


def test_a_batch_is_what_its_digests_are_one_by_one() -> None:
    pairs = [(Digest.of(b"%d" % i).hash, i) for i in range(1000)]
    assert Digest.parse_many(pairs) == [Digest.parse(*pair) for pair in pairs]
    assert Digest.parse_many([]) == []


def test_bytes_match_their_digest_and_no_other() -> None:
    digest = Digest.of(b"right")
    assert digest.matches(bytearray(b"right"))
    assert digest.matches(memoryview(b"right"))
    assert not digest.matches(b"wrong")
    assert not digest._replace(size_bytes=4).matches(b"right")
    assert EMPTY.matches(b"")


@pytest.mark.parametrize(
    ("quota_bytes", "segment_bytes"),
    [(0, limits.SEGMENT_MIN_BYTES), (64 * limits.MIB, limits.MIB), (limits.GIB * 1000, limits.SEGMENT_MAX_BYTES)],
)
def test_a_segment_is_a_part_of_the_quota_within_bounds(quota_bytes: int, segment_bytes: int) -> None:
    assert limits.segment_bytes(quota_bytes) == segment_bytes
