"""What the tests need is listed once: the installer, the pins, the tests and the documents agree about it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from system.old_clients import EVERYBODY, Release
from system.parts import tools_of

ROOT = Path(__file__).resolve().parents[2]
INSTALLING = ROOT / "tests" / "installing"
COMPATIBILITY = ROOT / "docs" / "reference" / "compatibility.md"
_TODAY = "2.8.1"


def rows() -> list[tuple[str, str, str]]:
    """Part, tool, and where it comes from."""
    lines = (INSTALLING / "parts.txt").read_text().splitlines()
    return [(words[0], words[1], words[2]) for line in lines if (words := line.split()) and not line.startswith("#")]


def excused(environment: dict[str, str]) -> set[str]:
    command = [INSTALLING / "excused"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return set(said.strip().split(","))


def test_every_release_that_is_tested_is_a_part_with_pins_of_that_version() -> None:
    assert {part for part in tools_of() if part.startswith("bst")} == {Release(number).part for number in EVERYBODY}
    for part, tool, origin in rows():
        if origin == "python" or origin.startswith("python3."):
            name = tool.split("/")[0].removeprefix(".venv-")
            number = _TODAY if name == "bst" else name.removeprefix("bst-")
            pins = (INSTALLING / f"bst-{number}.txt").read_text()
            assert re.search(rf"^buildstream=={re.escape(number)}(\.dev0)?$", pins, re.MULTILINE), part
            assert all(re.fullmatch(r"#.*|[\w.]+(-\w+)*==[\w.]+", line) for line in pins.splitlines()), part


def test_only_parts_whose_python_is_missing_are_excused_without_being_asked_for(tmp_path: Path) -> None:
    for tool in ("bash", "tr", "dirname"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)
    nowhere = {"PATH": str(tmp_path), "HOME": "/nonexistent"}
    need_an_old_one = {part for part, _, origin in rows() if origin.startswith("python3.")}
    assert excused(nowhere) == need_an_old_one
    assert excused({**nowhere, "MILLPOND_SKIP": "tracing,bst-1.4.3"}) == need_an_old_one | {"tracing"}


def test_every_part_is_in_the_readme_of_the_tests() -> None:
    readme = (ROOT / "tests" / "README.md").read_text()
    table = {
        name for line in readme.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w.-]+)`", line)
    }
    assert set(tools_of()) - table == set()


def test_the_page_on_compatibility_has_a_column_for_every_release_and_a_test_in_every_row() -> None:
    lines = [line.strip("|").split("|") for line in COMPATIBILITY.read_text().splitlines() if line.startswith("|")]
    header, _, *table = [[cell.strip() for cell in line] for line in lines if len(line) == len(EVERYBODY) + 2]
    assert header == ["what", *EVERYBODY, "shown by"]
    assert {cell for row in table for cell in row[1:-1]} <= {"yes", "–", ""}
    assert all("`test_" in row[-1] for row in table)
