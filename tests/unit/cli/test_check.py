"""``millpond check``: what it prints, and with which status it ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import OtherProcess, Repository, blob, flip, noise

from millpond.cli import main
from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.services.cache import Cache

CONTENT = [noise(3000 + i, "content") for i in range(5)]
URI = "urn:fdc:buildstream.build:2020:source:project/element/key"


@pytest.fixture
def closed(tmp_path: Path) -> Repository:
    """A repository with one name of five blobs, one of them in a segment of its own."""
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    content = [*CONTENT, noise(400_000, "large")]
    store.put_many([blob(data) for data in content])
    first, *others = [Digest.of(data) for data in content]
    cache = Cache(store, store, repository.names, wall_clock)
    push = assets.AssetPush([URI], first, blobs=others)
    assets.push(cache, "", Namespace.ASSET_BLOB, push, pushed_by="")
    repository.close()
    return repository


def millpond(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def damage(repository: Repository, which: int = 2) -> Digest:
    """Flip a bit of a blob."""
    repository.open()
    digest = Digest.of(CONTENT[which])
    entry = repository.entry(digest)
    path = repository.segment(entry.segment)
    repository.close()
    flip(path, entry.offset + 100)
    return digest


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_sound_one_is_one_line_and_status_0(closed: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("check", closed.path) == 0
    output = capsys.readouterr()
    assert output.out == f"{closed.path}: sound; 6 blobs (415.4 kB) in 2 segments, 1 name (1 whole)\n"
    assert output.err == ""
    assert millpond("check", "--deep", "--json", closed.path) == 0
    document = found(capsys)
    assert (document["sound"], document["problems"]) == (True, [])
    assert document["checked"]["verified_blobs"] == 6
    assert document["checked"]["names"] == {"total": 1, "whole": 1}


def test_a_deep_look_finds_damage_and_repairs_it(closed: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    digest = damage(closed)
    assert millpond("check", closed.path) == 0  # the structure is sound
    capsys.readouterr()
    assert millpond("check", "--deep", closed.path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"blob {digest}: segment ")
    assert lines[0].endswith("its bytes do not match their checksum")
    assert lines[1].startswith("    next: millpond check --deep --repair")
    assert lines[-1].startswith(f"{closed.path}: 1 problem; 6 blobs")
    assert millpond("check", "--deep", "--repair", closed.path) == 1
    assert capsys.readouterr().out.splitlines()[1] == "    repaired"
    assert millpond("check", "--deep", "--json", closed.path) == 0
    assert found(capsys)["checked"]["names"] == {"total": 1, "incomplete": 1}
    closed.open()
    assert closed.store.find_missing([digest]) == [digest]
    closed.store.put_many([blob(CONTENT[2])])
    closed.close()
    assert millpond("check", "--deep", closed.path) == 0


def test_it_works_beside_a_server(closed: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    digest = damage(closed)
    server = OtherProcess(closed.path)
    assert server.find_missing([digest]) == []
    assert millpond("check", "--deep", "--repair", closed.path) == 1
    assert server.find_missing([digest]) == [digest]
    assert server.put_many([blob(CONTENT[2])]) == [None]
    assert millpond("check", "--deep", closed.path) == 0
    assert millpond("check", "--rebuild", closed.path) == 2
    assert capsys.readouterr().err == f"millpond: {closed.path} is in use: stop its servers first\n"
    server.end()
    assert millpond("check", "--rebuild", closed.path) == 0
    assert "sound; 6 blobs" in capsys.readouterr().out


def test_a_copy_that_was_taken_while_it_ran_wants_its_index_made_anew(
    closed: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    server = OtherProcess(closed.path)
    server.find_missing([])
    copy = closed.copy(closed.path.parent / "copy")
    server.end()
    assert millpond("check", copy.path) == 1
    out = capsys.readouterr().out
    assert "index: the index of" in out
    assert "millpond check --rebuild" in out
    assert "1 name" in out
    assert millpond("check", "--rebuild", "--deep", copy.path) == 0
    assert "sound; 6 blobs" in capsys.readouterr().out


def test_a_name_that_would_be_answered_with_a_hole_is_found_and_made_a_miss(
    closed: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    closed.open()
    assert closed.opened
    index, digest = closed.opened.index, Digest.of(CONTENT[3])
    entry = closed.entry(digest)
    with index.env.begin(write=True) as txn:  # behind everybody's back: no incarnation is raised
        txn.delete(digest.key, db=index.blobs)
        row = index.segment(txn, entry.segment)
        assert row
        index.put_segment(
            txn,
            entry.segment,
            row._replace(live_count=row.live_count - 1, live_bytes=row.live_bytes - 64 - 8 - digest.size_bytes),
        )
    closed.close()
    assert millpond("check", closed.path) == 1
    out = capsys.readouterr().out
    assert f"name source project/element/key: it counts as whole, and blob {digest}" in out
    assert millpond("check", "--repair", closed.path) == 1
    assert "it is a miss now" in capsys.readouterr().out
    assert millpond("check", "--json", closed.path) == 0
    assert found(capsys)["checked"]["names"] == {"total": 1, "incomplete": 1}


def test_a_directory_blob_that_is_damaged_is_found_without_a_deep_look(
    closed: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    closed.open()
    content = b"\n\x02ab"  # a Directory in its own right is not needed: an artifact is read as well
    uri = "urn:fdc:buildstream.build:2020:artifact:p/e/k"
    closed.store.put_many([blob(b"")])
    (digest,) = [Digest.of(content)]
    closed.store.put_many([(digest, content)])
    closed.names.bind([(assets.Name("", Namespace.ASSET_BLOB, uri), assets.Binding(digest, 1))])
    entry = closed.entry(digest)
    path = closed.segment(entry.segment)
    closed.close()
    flip(path, entry.offset + 65)
    assert millpond("check", "--json", closed.path) == 1
    assert [problem["thing"] for problem in found(capsys)["problems"]] == [f"blob {digest}"]
    assert millpond("check", "--deep", "--json", closed.path) == 1
    assert [problem["thing"] for problem in found(capsys)["problems"]] == [f"blob {digest}"]  # told once


def test_an_index_that_is_damaged_is_a_problem_with_a_way_out(
    closed: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    data = closed.path / "index" / "data.mdb"
    data.write_bytes(b"nonsense" * 4096)
    assert millpond("check", closed.path) == 1
    assert "--rebuild" in capsys.readouterr().out
    assert millpond("check", "--rebuild", closed.path) == 0


def test_damaged_names_are_a_problem_and_the_rest_is_looked_at(
    closed: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    (closed.path / "names" / "data.mdb").write_bytes(b"nonsense" * 4096)
    assert millpond("check", "--json", closed.path) == 1
    document = found(capsys)
    assert [problem["thing"] for problem in document["problems"]] == ["names"]
    assert document["checked"]["blobs"] == 6


def test_a_name_whose_value_was_changed_is_found(closed: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    data = closed.path / "names" / "data.mdb"
    content = data.read_bytes()
    at = content.rindex(b'"pushed_at_ms":')
    data.write_bytes(content[: at + 15] + b"9" + content[at + 16 :])
    assert millpond("check", "--json", closed.path) == 1
    (problem,) = found(capsys)["problems"]
    assert problem["thing"].startswith("name in row ")
    assert "names restore" in problem["next_step"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check"], "Missing argument"),
        (["check", ""], "REPO is empty"),
        (["check", "nowhere"], "holds no repository"),
        (["check", "--rebuild", "nowhere"], "holds no repository"),
        (["check", "--rate", "fast", "nowhere"], "is not a size"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert millpond(*arguments) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert words in output.err
    assert list(tmp_path.iterdir()) == []


def test_it_says_nothing_else_as_a_program(closed: Repository) -> None:
    damage(closed)
    ended = subprocess.run(
        [sys.executable, "-m", "millpond", "check", "--deep", str(closed.path)], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (1, "")
