"""What is not JSON is a ValueError, however it is not."""

from __future__ import annotations

import pytest

from millpond.core import json_text
from millpond.core.names import Name, Namespace
from millpond.names import values


def test_what_is_written_is_read() -> None:
    assert json_text.parse(b'{"a": [1, null]}') == {"a": [1, None]}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", "[" * 100_000, b"[" * 100_000], ids=lambda text: repr(text[:8]))
def test_anything_else_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
        json_text.parse(text)


def test_a_name_that_is_nested_deeply_is_damage() -> None:
    row = Name("", Namespace.ASSET_BLOB, "k").row
    with pytest.raises(values.Damaged):
        values.entry_of(row, values.seal(row, b"[" * 50_000 + b"\n"))
