"""The rules of the API that peers get wrong, and which test proves each: ``python tests/contract/rows.py`` writes the
table in the README anew; ``test_rows.py`` fails when it is not up to date.
"""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- rows: begin -->\n", "<!-- rows: end -->\n"

ROWS: dict[str, tuple[str, str]] = {
    # row: (the rule in a line, what comes later)
    "versions": ("low 2.0, high 2.12, an explicit batch limit, 16 MiB in, never more than 4 MiB encoded out", ""),
    "digest_function": ("unset or SHA256; what is not advertised is refused, never taken for SHA256", ""),
    "ByteStream names": ("every form of a name; an instance that is not served is NOT_FOUND", ""),
    "digest": ("the right hash with a wrong size is nothing", ""),
    "Write": ("ends at once when the blob exists, refuses lies, gaps and other names", "-1 for a compressed upload"),
    "QueryWriteStatus": ("the truth about running, finished and unknown uploads, and where to go on", ""),
    "Read": ("offset and limit honoured, OUT_OF_RANGE outside", ""),
    "compressed": ("what is not advertised is refused", "compressors"),
    "BatchUpdateBlobs": ("items alone, the advertised size exactly, duplicates, an empty batch", ""),
    "BatchReadBlobs": ("a status per item, identity always, an empty batch", ""),
    "FindMissingBlobs": ("60 000 digests in one call; what is reported present is promised", ""),
    "GetTree": ("all below the root, holes left out, pages", ""),
    "empty blob": ("present without upload", ""),
    "SplitBlob": ("UNIMPLEMENTED, in a sentence", "the RPC"),
    "SpliceBlob": ("UNIMPLEMENTED, in a sentence", "the RPC"),
    "FastCDC 2020": ("", "with SplitBlob"),
    "ActionCache": ("", "the service"),
    "Asset Fetch": ("any URI, all qualifiers in any order, age and expiry; a miss is the status of the call", ""),
    "Asset Push": ("what is not held does not become a name; the probe tells the truth", ""),
    "HTTP": ("", "the front"),
    "keepalive": ("a ping every 10 s with and without calls, and far more", ""),
    "load": ("UNAVAILABLE with a sentence", "RetryInfo"),
}


def tests_of_rows() -> dict[str, list[str]]:
    """The tests that are marked with each row, as ``file::test``."""
    found: dict[str, list[str]] = {row: [] for row in ROWS}
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                for row in map(_row, node.decorator_list):
                    if row is not None:
                        found[row].append(f"{file.name}::{node.name}")
    return found


def _row(decorator: ast.expr) -> str | None:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.row":
        return str(ast.literal_eval(decorator.args[0]))
    return None


def table() -> str:
    """The table of the README."""
    tests = tests_of_rows()
    lines = ["| row | rule | tests | later |", "|---|---|---|---|"]
    for row, (rule, later) in ROWS.items():
        by_file: dict[str, list[str]] = {}
        for test in tests[row]:
            file, _, name = test.partition("::")
            by_file.setdefault(file, []).append(f"`{name.removeprefix('test_')}`")
        cell = "; ".join(f"[{file}]({file}): {', '.join(names)}" for file, names in by_file.items())
        lines.append(f"| {row} | {rule} | {cell} | {later} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The README with its table up to date."""
    text = (HERE / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    (HERE / "README.md").write_text(page())
