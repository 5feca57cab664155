"""How names are spoken, and what a pattern means."""

import time

import pytest

from millpond.core import limits
from millpond.core.errors import InvalidRequest
from millpond.core.names import Name, Namespace, asset_key, element_of, spoken
from millpond.core.patterns import check_pattern, glob, matches

URN = "urn:fdc:buildstream.build:2020:"
BLOB, DIRECTORY = Namespace.ASSET_BLOB, Namespace.ASSET_DIRECTORY


@pytest.mark.parametrize(
    ("key", "kind", "text"),
    [
        (f"{URN}artifact:project/element/key", "artifact", "project/element/key"),
        (f"{URN}source:git/0a1b", "source", "git/0a1b"),
        (f"{URN}source:0a1b", "source", "0a1b"),
        (f"{URN}v1:project/element/key", "ref", "project/element/key"),
        ("https://example.org/x.tar", "asset", "https://example.org/x.tar"),
        (f"{URN}other:x", "asset", f"{URN}other:x"),
        (asset_key("uri", [("b", "2"), ("a", "1")]), "asset", "uri [a=1, b=2]"),
        (asset_key(f"{URN}artifact:p/e/k", [("a", "")]), "asset", f"{URN}artifact:p/e/k [a=]"),
    ],
)
def test_a_name_is_called_as_its_generation_calls_it(key: str, kind: str, text: str) -> None:
    assert spoken(Name("", BLOB, key)) == (kind, text)


def test_an_element_is_all_but_the_last_part_in_its_instance_and_kind() -> None:
    artifact = Name("team", BLOB, f"{URN}artifact:project/element/key")
    assert element_of(artifact) == element_of(Name("team", BLOB, f"{URN}artifact:project/element/other"))
    for other in (
        Name("", BLOB, artifact.key),
        Name("team", DIRECTORY, artifact.key),
        Name("team", BLOB, f"{URN}v1:project/element/key"),
        Name("team", BLOB, f"{URN}artifact:project/element2/key"),
    ):
        assert element_of(other) != element_of(artifact)


@pytest.mark.parametrize(
    "pattern",
    [
        "project/element/key",
        "project/*",
        "*",
        "artifact:project/*/key",
        f"{URN}artifact:*",
        "*element*",
        "project/element/key*",
    ],
)
def test_a_pattern_means_a_name_as_spoken_with_its_kind_or_as_a_whole(pattern: str) -> None:
    assert matches(pattern, Name("", BLOB, f"{URN}artifact:project/element/key"))


@pytest.mark.parametrize(
    "pattern", ["project", "roject/*", "source:*", "project/element/ke", "?*", "[p]*", "PROJECT/*"]
)
def test_a_pattern_means_no_more_than_it_says(pattern: str) -> None:
    assert not matches(pattern, Name("", BLOB, f"{URN}artifact:project/element/key"))


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*a*b*", "xxaxxbxx", True),
        ("*a*b*", "xxbxxaxx", False),
        ("a*bc*c", "abc", False),
        ("a*bc*c", "abcc", True),
        ("**", "", True),
        ("*ab*ab*", "abab", True),
        ("*ab*ab*", "ababa"[1:], False),
    ],
)
def test_a_star_stands_for_anything_and_nothing_counts_twice(pattern: str, text: str, fits: bool) -> None:
    assert glob(pattern, text) is fits


def test_no_pattern_takes_long_on_any_text() -> None:
    begun = time.process_time()
    assert not glob("*a" * 500 + "b", "a" * 100_000)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("pattern", ["", "a\nb", "\0", "x" * (limits.PATTERN_CHARS + 1)])
def test_what_cannot_be_a_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest, match="project/element"):
        check_pattern(pattern)
    assert check_pattern("p/*") == "p/*"
