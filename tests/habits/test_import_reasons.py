"""Why something was left in an old store is explained where people look for it."""

from pathlib import Path

from millpond.cli.importing import WORDS
from millpond.importing.interface import Reason

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "move-in.md"


def test_every_reason_is_on_the_page_and_has_words() -> None:
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert {f"`{reason}`" for reason in Reason} == {row for row in rows if " " not in row}
    assert set(WORDS) == set(Reason)
