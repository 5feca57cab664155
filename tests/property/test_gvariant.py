"""The GVariant codec: both ways for every type, and the same opinion as GLib's."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from property.gvariants import OSTREE_TYPES, every_type, from_plain, orders, plain, typed
from system.parts import require

from millpond.protocol.gvariant import NotNormal, decode, encode

JUDGE = Path(__file__).with_name("glib_judge.py")


def is_same(one: Any, other: Any) -> bool:
    """Equal, and not a number is itself."""
    if isinstance(one, float):
        return isinstance(other, float) and (one == other or (math.isnan(one) and math.isnan(other)))
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and one == other


@given(typed(every_type), orders)
def test_what_is_encoded_is_decoded_as_it_was(one: tuple[str, Any], order: str) -> None:
    kind, value = one
    data = encode(kind, value, order=order)
    assert is_same(decode(kind, data, order=order), value)


@given(every_type, st.binary(max_size=80), orders)
def test_what_is_decoded_at_all_is_encoded_as_it_was(kind: str, data: bytes, order: str) -> None:
    """So a hash of the bytes is a hash of what they say."""
    try:
        value = decode(kind, data, order=order)
    except NotNormal:
        return
    assert encode(kind, value, order=order) == data


@given(typed(every_type), st.data())
def test_a_changed_byte_is_another_value_or_refused(one: tuple[str, Any], data: st.DataObject) -> None:
    kind, value = one
    encoded = encode(kind, value)
    if encoded:
        at = data.draw(st.integers(0, len(encoded) - 1))
        mutated = encoded[:at] + bytes([encoded[at] ^ data.draw(st.integers(1, 255))]) + encoded[at + 1 :]
        try:
            assert encode(kind, decode(kind, mutated)) == mutated
        except NotNormal:
            return


@pytest.mark.parametrize("size", [0, 1, 250, 253, 254, 255, 256, 257, 65530, 65533, 65534, 65535, 65536, 70000])
def test_offsets_are_as_wide_as_the_container_demands(size: int) -> None:
    for kind, value in (("(ays)", (bytes(size), "x")), ("aay", [bytes(size), b"y"]), ("as", ["z" * size])):
        data = encode(kind, value)
        assert decode(kind, data) == value
        assert encode(kind, decode(kind, data, order="big"), order="big") == data, "offsets are little-endian in both"


WRONG_VALUES = [("y", 256), ("y", -1), ("u", "1"), ("i", True), ("b", 1), ("s", b"x"), ("s", "a\0b"), ("ay", "x")]
WRONG_VALUES += [("(ss)", ("a",)), ("as", "ab"), ("v", 5), ("o", "a"), ("g", "z"), ("a{ss}", [("a",)]), ("t", 2**64)]
WRONG_VALUES += [("s", "\ud800"), ("d", 1), ("ms", ["a", "b"])]


@pytest.mark.parametrize(("kind", "value"), WRONG_VALUES)
def test_a_value_of_another_type_is_refused(kind: str, value: Any) -> None:
    with pytest.raises(NotNormal):
        encode(kind, value)


@pytest.mark.parametrize(
    "kind", ["", "z", "a", "(", "(s", "s)", "{ss}x", "a{vs}", "a{s}", "a{sss}", "m", "ss", "(" * 300]
)
def test_a_type_that_is_none_is_refused(kind: str) -> None:
    for call in (lambda: decode(kind, b""), lambda: encode(kind, [])):
        with pytest.raises(NotNormal):
            call()


def test_what_is_nested_without_end_is_refused_and_not_followed() -> None:
    data = b"\0s"
    for _ in range(5000):
        data += b"\0v"
    with pytest.raises(NotNormal):
        decode("v", data)
    with pytest.raises(NotNormal):
        decode("a" * 200 + "s", b"x\0")


# -- GLib -------------------------------------------------------------------------------------------------------------


class Judge:
    """GLib in a process of Debian's Python."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["/usr/bin/python3", JUDGE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, kind: str, data: bytes, order: str) -> tuple[bool, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{kind} {order} {data.hex()}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._process.stderr and self._process.stderr.read()
        said = json.loads(answer)
        return said["normal"], said["value"]

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream
            stream.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def glib() -> Iterator[Judge]:
    require("glib")
    judge = Judge()
    yield judge
    judge.close()


with_a_judge = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400, deadline=None)


@with_a_judge
@given(one=typed(every_type), order=orders)
def test_glib_reads_what_we_wrote(glib: Judge, one: tuple[str, Any], order: str) -> None:
    kind, value = one
    assert glib.ask(kind, encode(kind, value, order=order), order) == (True, plain(kind, value))


@with_a_judge
@given(kind=st.sampled_from(OSTREE_TYPES), data=st.data(), order=orders)
def test_glib_has_the_same_opinion_of_damaged_bytes(glib: Judge, kind: str, data: st.DataObject, order: str) -> None:
    """Whatever we accept is normal for GLib, with the same value.

    What it accepts we do, too, but for nothing at all in place of a container, which GLib reads as an empty one.
    """
    _, value = data.draw(typed(st.just(kind)))
    mutated = bytearray(encode(kind, value, order=order))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(mutated)))
        end = min(len(mutated), at + data.draw(st.integers(0, 3)))
        mutated[at:end] = data.draw(st.binary(max_size=3))
    try:
        ours: tuple[bool, Any] = (True, plain(kind, decode(kind, bytes(mutated), order=order)))
    except NotNormal:
        ours = (False, None)
    theirs = glib.ask(kind, bytes(mutated), order)
    if theirs[0] and not ours[0]:
        assert encode(kind, from_plain(kind, theirs[1]), order=order) != mutated
    else:
        assert theirs == ours


WIDE = {
    "(ays)": bytes(252) + b"x\0" + (252).to_bytes(2, "little"),
    "as": b"x" * 253 + b"\0" + (254).to_bytes(2, "little"),
    "aay": bytes(251) + (250).to_bytes(2, "little") + (251).to_bytes(2, "little") + b"",
}


@pytest.mark.parametrize("kind", WIDE)
def test_offsets_that_are_wider_than_they_need_to_be_are_damage(kind: str) -> None:
    """The same value would have two forms, and a hash of one of them says nothing of the other."""
    with pytest.raises(NotNormal):
        decode(kind, WIDE[kind])
