"""The README's table says which test proves which row, and says the truth."""

from __future__ import annotations

from contract import rows


def test_every_row_has_a_test_or_says_later() -> None:
    tests = rows.tests_of_rows()
    assert [row for row, (_, later) in rows.ROWS.items() if not tests[row] and not later] == []


def test_the_table_is_up_to_date() -> None:
    assert (rows.HERE / "README.md").read_text() == rows.page(), "run: python tests/contract/rows.py"
