"""The page about the commands is what the commands say of themselves today."""

from __future__ import annotations

import pytest

from millpond.cli import reference


def test_the_committed_page_is_the_one_that_the_commands_make() -> None:
    assert reference.main(["--check"]) == 0, "run: python -m millpond.cli.reference"


def test_every_option_is_on_the_page_with_its_meaning() -> None:
    rows = [line.split(" | ") for line in reference.reference().splitlines() if line.startswith("| `")]
    assert {row[0].split("`")[1] for row in rows} >= {"--listen", "--port", "--head-room-min", "--no-foreign"}
    assert all(row[-1].removesuffix(" |").endswith(".") for row in rows)


def test_the_check_notices_a_page_that_is_old_or_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path_factory.mktemp("page") / "cli.md"
    monkeypatch.setattr(reference, "PAGE", page)
    assert reference.main(["--check"]) == 1
    page.write_text("old")
    assert reference.main(["--check"]) == 1
    assert "python -m millpond.cli.reference" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
