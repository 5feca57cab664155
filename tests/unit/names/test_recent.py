"""Bindings that are remembered: as many as fit, and never forgotten all at once."""

from __future__ import annotations

import pytest

from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace
from millpond.names import recent, values
from millpond.names.binding import Binding
from millpond.names.recent import Recent

_BINDING = Binding(Digest.of(b"x"), pushed_at_ms=1)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The rows that were decoded."""
    rows: list[bytes] = []

    def binding_of(row: bytes, value: bytes) -> Binding:
        rows.append(row)
        return _BINDING

    monkeypatch.setattr(recent, "_MOST", 10)
    monkeypatch.setattr(values, "binding_of", binding_of)
    return rows


def _row(number: int) -> bytes:
    return Name("", Namespace.ASSET_BLOB, str(number)).row


def test_who_has_a_few_names_more_in_use_decodes_none_of_them_again(decoded: list[bytes]) -> None:
    remembered = Recent()
    for _ in range(5):
        for number in range(11):
            assert remembered.binding_of(_row(number), b"value") is _BINDING
    assert len(decoded) == 11


def test_what_is_remembered_has_a_bound(decoded: list[bytes]) -> None:
    remembered = Recent()
    for number in range(100):
        remembered.binding_of(_row(number), b"value")
    assert len(remembered._latest) + len(remembered._before) <= 20


def test_what_is_used_again_and_again_stays_while_others_come_and_go(decoded: list[bytes]) -> None:
    remembered = Recent()
    for number in range(1, 100):
        remembered.binding_of(_row(0), b"value")
        remembered.binding_of(_row(number), b"value")
    assert decoded.count(_row(0)) == 1


def test_a_value_that_changed_is_decoded_whatever_is_remembered_of_its_row(decoded: list[bytes]) -> None:
    remembered = Recent()
    remembered.binding_of(_row(1), b"value")
    remembered.binding_of(_row(1), b"another")
    assert decoded == [_row(1), _row(1)]
