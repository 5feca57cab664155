"""Types of GVariant and values of them, for hypothesis."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import strategies as st

from millpond.protocol.gvariant import Variant

RANGES = {"y": (0, 2**8 - 1), "n": (-(2**15), 2**15 - 1), "q": (0, 2**16 - 1), "i": (-(2**31), 2**31 - 1)}
RANGES |= {"u": (0, 2**32 - 1), "x": (-(2**63), 2**63 - 1), "t": (0, 2**64 - 1), "h": (-(2**31), 2**31 - 1)}
BASIC = "bynqiuxthdsog"
OSTREE_TYPES = ["a{sv}", "a{ss}", "(ss)", "(a{sv}aya(say)sstayay)", "(a(say)a(sayay))", "(uuua(ayay))"]
OSTREE_TYPES += ["(uuuusa(ayay))", "(tuuuusa(ayay))", "(a(s(taya{sv}))a{sv})"]

types = st.recursive(
    st.sampled_from([*BASIC, "v", "ay", "()"]),
    lambda inner: st.one_of(
        inner.map("a{}".format),
        inner.map("m{}".format),
        st.lists(inner, min_size=1, max_size=4).map(lambda members: f"({''.join(members)})"),
        st.tuples(st.sampled_from(BASIC), inner).map(lambda pair: f"a{{{pair[0]}{pair[1]}}}"),
    ),
    max_leaves=6,
)
every_type = st.one_of(st.sampled_from(OSTREE_TYPES), types)
orders = st.sampled_from(["little", "big"])
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def split(text: str) -> list[str]:
    """The types that stand one after another in ``text``."""
    found, at = [], 0
    while at < len(text):
        end = at
        while text[end] in "am":
            end += 1
        depth = 0
        while True:
            depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(text[end], 0)
            end += 1
            if not depth:
                break
        found.append(text[at:end])
        at = end
    return found


def values(kind: str) -> st.SearchStrategy[Any]:
    """Values of this type."""
    if kind in RANGES:
        return st.integers(*RANGES[kind])
    simple = {
        "b": st.booleans(),
        "d": st.floats(),
        "s": _TEXT,
        "o": st.sampled_from(["/", "/a", "/a/b_1"]),
        "g": st.sampled_from(["", "s", "a{sv}(ii)"]),
        "ay": st.binary(max_size=300),
        "v": st.sampled_from(["s", "u", "t", "b", "ay", "as", "(yt)", "a{sv}", "v"]).flatmap(
            lambda inner: st.deferred(lambda: values(inner)).map(lambda value: Variant(inner, value))
        ),
    }
    if kind in simple:
        return simple[kind]
    if kind[0] == "a":
        return st.lists(values(kind[1:]), max_size=5)
    if kind[0] == "m":
        return st.lists(values(kind[1:]), max_size=1)
    return st.tuples(*map(values, split(kind[1:-1])))


def typed(kinds: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, Any]]:
    """A type and a value of it."""
    return kinds.flatmap(lambda kind: st.tuples(st.just(kind), values(kind)))


def plain(kind: str, value: Any) -> Any:
    """A value as ``glib_judge.py`` says it."""
    if kind == "v":
        return {"type": value.type, "value": plain(value.type, value.value)}
    if kind == "d":
        return struct.pack("<d", value).hex()
    if kind == "ay":
        return list(value)
    if kind[0] in "am":
        return [plain(kind[1:], one) for one in value]
    if kind[0] in "({":
        return [plain(*pair) for pair in zip(split(kind[1:-1]), value, strict=True)]
    return value


def from_plain(kind: str, said: Any) -> Any:
    """The value that ``plain`` said."""
    if kind == "v":
        return Variant(said["type"], from_plain(said["type"], said["value"]))
    if kind == "d":
        return struct.unpack("<d", bytes.fromhex(said))[0]
    if kind == "ay":
        return bytes(said)
    if kind[0] in "am":
        return [from_plain(kind[1:], one) for one in said]
    if kind[0] in "({":
        return tuple(from_plain(*pair) for pair in zip(split(kind[1:-1]), said, strict=True))
    return said
