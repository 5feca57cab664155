"""The documents say what there is, all of it, and lead nowhere that does not exist."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from millpond.cli.bst_artifact_server import bst_artifact_server
from millpond.cli.main import millpond
from millpond.cli.reference import commands
from millpond.core import errors, limits
from millpond.ssh import arguments as receiving
from millpond.wire.calling import Caller
from millpond.wire.errors import CODES
from millpond.wire.gate import Gate
from millpond.wire.services import Rpc, rpcs

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
NOT_OURS = {"build", "dist", "millpond-data", "node_modules"}
FRAGMENT_KINDS = {"added", "changed", "fixed", "removed", "security"}

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_PATH = re.compile(r"`((?:src|tests|docs|deploy|proto|benchmarks|changelog\.d)/[\w./-]+)`")
_TEST = re.compile(r"`(test_\w+)`")
_MAKE = re.compile(r"(?:`|^[ $#]*|&& (?:sudo )?|sudo )make ((?:[A-Z]+=\S+ )*)([a-z][a-z-]*)", re.MULTILINE)


def pages() -> list[Path]:
    """Every Markdown file that is ours."""
    return sorted(path for path in ROOT.rglob("*.md") if not _is_foreign(path.relative_to(ROOT).parts))


def _is_foreign(parts: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part in NOT_OURS or part.endswith(".egg-info") for part in parts)


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", pages(), ids=page_id)


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page of the reference."""
    lines = (REFERENCE / page).read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


# -- links, paths, names ------------------------------------------------------------------------------------------------


@every_page
def test_no_relative_link_is_broken(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    links = [link for link in _LINK.findall(text) if not re.match(r"[a-z][a-z+.-]*:", link)]
    assert [link for link in links if not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page if not path else (page.parent / path).resolve()
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in _anchors(target)


@cache
def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_path_that_is_named_exists(page: Path) -> None:
    named = _PATH.findall(page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@every_page
def test_every_test_that_is_named_exists(page: Path) -> None:
    named = set(_TEST.findall(page.read_text()))
    assert named - _all_tests() == set()


@cache
def _all_tests() -> frozenset[str]:
    sources = (path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    return frozenset(name for source in sources for name in re.findall(r"def (test_\w+)", source)) | {
        path.stem for path in (ROOT / "tests").rglob("test_*.py")
    }


@every_page
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    named = {target for _, target in _MAKE.findall(page.read_text())}
    assert named - make_targets() == set()


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    commands = re.findall(r"^```\nmake ([a-z-]+)\n```$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["serve", "test"]
    assert set(commands) <= make_targets()


def test_every_page_below_docs_is_on_the_map() -> None:
    docs = ROOT / "docs"
    linked = {(docs / link.partition("#")[0]).resolve() for link in _LINK.findall((docs / "README.md").read_text())}
    assert set(docs.rglob("*.md")) - {docs / "README.md"} - linked == set()


# -- the reference is complete --------------------------------------------------------------------------------------------


def options() -> Iterator[tuple[str, str]]:
    for path, command in [*commands(millpond, "millpond"), ("bst-artifact-server", bst_artifact_server)]:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield from ((path, name) for name in parameter.opts)
    for names, _, _ in receiving.OPTIONS:
        yield from ((receiving.PROGRAM, name) for name in names.split(", "))


def test_every_option_of_every_command_is_in_the_reference() -> None:
    sections = re.split(r"^## ", (REFERENCE / "cli.md").read_text(), flags=re.MULTILINE)[1:]
    section_of = {section.splitlines()[0]: section for section in sections}
    missing = [(path, name) for path, name in options() if f"`{name}`" not in section_of.get(path, "")]
    assert missing == []
    assert set(section_of) >= {"millpond", "bst-artifact-server", *(f"millpond {name}" for name in millpond.commands)}


def test_every_option_that_a_page_names_exists() -> None:
    known = {name for _, name in options()} | {"--help"}
    named = {
        (page_id(page), name)
        for page in pages()
        if page_id(page).split("/")[0] in {"README.md", "SECURITY.md", "ARCHITECTURE.md", "docs", "deploy"}
        for line in page.read_text().splitlines()
        for name in re.findall(r"(?:(?:millpond serve|bst-artifact-server) [^|`]*?|`)(--[a-z][a-z-]*)", line)
    }
    assert {(page, name) for page, name in named if name not in known} == set()


def error_classes() -> list[type[BaseException]]:
    return [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == errors.__name__]


@pytest.mark.parametrize("error", error_classes(), ids=lambda error: error.__name__)
def test_every_error_is_in_the_reference_with_its_status(error: type[errors.MillpondError]) -> None:
    (row,) = [row for row in rows("errors.md") if row[0] == f"`{error.__name__}`"]
    if error in CODES:
        assert row[1] == CODES[error].name
    assert row[2]


def test_the_reference_has_no_error_that_is_gone() -> None:
    named = {row[0].strip("`") for row in rows("errors.md") if row[0].startswith("`")}
    assert named == {error.__name__ for error in error_classes()}


def limit_values() -> dict[str, int | float]:
    units = {"KIB", "MIB", "GIB"}
    values = {name: value for name, value in vars(limits).items() if name.isupper() and name not in units}
    assert all(isinstance(value, int | float) for value in values.values())
    return values


def test_every_limit_is_in_the_reference_with_its_value() -> None:
    documented = {row[0].strip("`"): row[1] for row in rows("limits.md") if row[0].startswith("`")}
    assert documented == {name: str(value) for name, value in limit_values().items()}


def served(*, index_only: bool) -> list[Rpc]:
    caller = Caller()
    try:
        return rpcs(Gate(), caller, index_only=index_only)
    finally:
        caller.close()


def test_every_rpc_is_in_the_reference_with_its_access() -> None:
    documented: dict[tuple[str, str], tuple[str, bool]] = {}
    service = ""
    for cells in rows("protocol.md"):
        service = cells[0].strip("`") or service
        if "." in service and cells[1].startswith("`"):
            documented[service, cells[1].strip("`")] = (cells[2], cells[3].startswith("yes"))
    by_an_index = {(rpc.service, rpc.method) for rpc in served(index_only=True)}
    expected = {
        (rpc.service, rpc.method): (rpc.access.value, (rpc.service, rpc.method) in by_an_index)
        for rpc in served(index_only=False)
    }
    assert {key: value for key, value in documented.items() if not key[0].startswith("grpc.")} == expected


def test_every_module_that_keeps_an_invariant_exists() -> None:
    table = [line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if re.match(r"\| I\d+ \|", line)]
    modules = {path for line in table for path in re.findall(r"`([a-z]+/\w+\.py)`", line)}
    assert modules
    assert {path for path in modules if not (ROOT / "src" / "millpond" / path).exists()} == set()


def test_every_invariant_has_its_row_and_what_the_code_cites_is_one() -> None:
    declared = set(re.findall(r"^\| (I\d+) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE))
    sources = (path.read_text() for path in (ROOT / "src" / "millpond").rglob("*.py") if "_protos" not in path.parts)
    cited = {
        name for source in sources for name in re.findall(r"\((I\d+)\)|# (I\d+)\b", source) for name in name if name
    }
    assert declared == {f"I{number}" for number in range(1, 12)}
    assert cited <= declared


def test_every_dependency_was_weighed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=~!\[ ]", requirement)[0] for requirement in project["dependencies"]}
    record = (ROOT / "docs" / "adr" / "0002-dependencies.md").read_text()
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", record, re.MULTILINE)) == names


def test_fragments_of_the_changelog_are_named_as_its_readme_says() -> None:
    files = {path.name for path in (ROOT / "changelog.d").iterdir()} - {"README.md"}
    bad = {name for name in files if not re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(sorted(FRAGMENT_KINDS))})\.md", name)}
    assert bad == set()
    assert all((ROOT / "changelog.d" / name).read_text().strip() for name in files)


# -- and these tests notice ------------------------------------------------------------------------------------------------


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    assert _leads_somewhere(page, "docs/README.md")
    assert _leads_somewhere(page, "#two-commands")
    assert not _leads_somewhere(page, "docs/README.md#nothing-of-the-kind")
    assert not _leads_somewhere(page, "docs/nothing-of-the-kind.md")
    assert not _leads_somewhere(page, str(tmp_path))


def test_a_make_target_is_seen_where_commands_stand() -> None:
    text = (
        "    make serve\n$ make PYTHON=python3.12 setup\n`make bench-check` holds; git pull && sudo make install && x\n"
    )
    assert [target for _, target in _MAKE.findall(text)] == ["serve", "setup", "bench-check", "install"]
    assert [target for _, target in _MAKE.findall("who can make sense of it")] == []
