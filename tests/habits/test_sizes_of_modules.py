"""Modules and functions stay small enough to be read at once.

The rule of the house is 40 lines for a function; up to 60 are let through here, for a signature or a table that is long.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "millpond"
MODULE_LINES = 400
FUNCTION_LINES = 60


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if "_protos" not in path.relative_to(SOURCE).parts)


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Functions of more than ``FUNCTION_LINES``, docstring included and decorators not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield node.name, lines


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_and_its_functions_can_be_read_at_once(module: Path) -> None:
    source = module.read_text()
    assert len(source.splitlines()) <= MODULE_LINES
    assert list(long_functions(source)) == []


def test_a_long_function_is_noticed() -> None:
    body = "    pass\n" * FUNCTION_LINES
    assert list(long_functions(f"class A:\n  async def f(self):\n{body}")) == [("f", FUNCTION_LINES + 1)]
    assert list(long_functions(f"def f():\n{body.removesuffix(chr(10)).rpartition(chr(10))[0]}")) == []
