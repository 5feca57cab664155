"""Resource names: what is right is taken apart into what it was made of; whatever else is refused, never a crash."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.core.names import RESERVED_SEGMENTS
from millpond.protocol.resource_names import IDENTITY, instance_of, parse_read, parse_write

texts = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
segments = texts.filter(lambda text: text.isprintable() and text not in RESERVED_SEGMENTS)
instances = st.lists(segments, max_size=4).map("/".join)
digests = st.builds(
    Digest,
    st.binary(min_size=32, max_size=32).map(lambda raw: b"\x01" + raw),
    st.integers(0, 2**63 - 1) | st.integers(0, 9),
)
compressors = st.sampled_from([IDENTITY, "zstd", "deflate", "something-new"])
slashes = st.sampled_from(["", "/"])
functions = st.sampled_from(["", "sha256/"])


def blob_name(digest: Digest, compressor: str, function: str) -> str:
    marker = "blobs" if compressor == IDENTITY else f"compressed-blobs/{compressor}"
    return f"{marker}/{function}{digest}"


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


@given(slashes, instances, digests, compressors, functions)
def test_a_read_comes_apart_into_what_it_was_made_of(
    slash: str, instance: str, digest: Digest, compressor: str, function: str
) -> None:
    name = slash + join(instance, blob_name(digest, compressor, function))
    parsed = parse_read(name)
    assert (parsed.instance, parsed.digest, parsed.compressor) == (instance, digest, compressor)
    assert instance_of(name) == instance


@given(slashes, instances, texts, digests, compressors, functions, st.lists(texts, max_size=3))
def test_a_write_comes_apart_into_what_it_was_made_of(
    slash: str, instance: str, upload: str, digest: Digest, compressor: str, function: str, metadata: list[str]
) -> None:
    name = slash + join(instance, "uploads", upload, blob_name(digest, compressor, function), *metadata)
    parsed = parse_write(name)
    assert (parsed.instance, parsed.upload) == (instance, upload)
    assert (parsed.digest, parsed.compressor) == (digest, compressor)
    assert instance_of(name) == instance


words = st.sampled_from(
    [
        *sorted(RESERVED_SEGMENTS),
        *("", ".", "..", "sha256", "blake3", "zstd", "inst", "\0", "é", "%2e%2e"),
        *("a" * 64, "A" * 64, "0" * 63, "5", "-5", "05", "9" * 19, "9" * 20, "٣"),
    ]
)
garbage = st.text() | st.lists(words | texts, max_size=10).map("/".join)


@given(garbage)
@example("a" * 10_000)
@example("/" * 10_000)
@example("blobs/" * 300)
@example("blobs/" + "a" * 64 + "/" + "9" * 10_000)
def test_garbage_is_refused_or_means_something_valid(name: str) -> None:
    for parse in (parse_read, parse_write):
        try:
            parsed = parse(name)
        except InvalidRequest:
            continue
        assert len(parsed.digest.key) == 33
        assert 0 <= parsed.digest.size_bytes < 2**63
        assert not set(parsed.instance.split("/")) & RESERVED_SEGMENTS
        assert "\0" not in parsed.instance + parsed.compressor
        assert len(name) <= limits.RESOURCE_NAME_CHARS
        # What is admitted by the first look is what the second one means.
        assert instance_of(name) == parsed.instance


@given(garbage)
def test_the_instance_of_garbage_is_refused_or_ends_before_a_reserved_word(name: str) -> None:
    try:
        instance = instance_of(name)
    except InvalidRequest:
        return
    assert name.removeprefix("/").startswith(instance)
    assert not {"blobs", "uploads", "compressed-blobs"} & set(instance.split("/"))


@given(st.integers(10**19, 10**40) | st.integers(2**63, 10**19))
def test_a_size_beyond_int64_is_refused(size: int) -> None:
    with pytest.raises(InvalidRequest):
        parse_read(f"blobs/{'a' * 64}/{size}")
