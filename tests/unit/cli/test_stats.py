"""``millpond stats``: the numbers are true, in both forms."""

import json
from pathlib import Path
from typing import Any

import pytest
from unit.cli.test_check import millpond
from unit.store.repositories import OtherProcess, Repository, blob, noise

from millpond.cli.numbers import lines
from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.services.reading import Reader
from millpond.store.care.scrub import Progress

HOUR_MS = 3_600_000
CONTENT = [noise(3000 + i, "content") for i in range(5)]


@pytest.fixture
def used(tmp_path: Path) -> Repository:
    """A repository with a name, after some requests."""
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    store.put_many([blob(data) for data in CONTENT])
    first, *others = [Digest.of(data) for data in CONTENT]
    cache = Cache(store, store, repository.names, wall_clock, counts=store.counts)
    uri = "urn:fdc:buildstream.build:2020:source:project/element/key"
    assets.push(cache, "", Namespace.ASSET_BLOB, assets.AssetPush([uri], first, blobs=others), pushed_by="")
    reader = Reader(cache, "")
    reader.fetch(Namespace.ASSET_BLOB, [uri], ())
    for nobody in ("urn:1", "urn:2"):
        with pytest.raises(assets.NameNotFound):
            reader.fetch(Namespace.ASSET_BLOB, [nobody], ())
    reader.read_blobs([first, Digest.of(b"absent")])
    repository.close()
    return repository


def numbers(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert millpond("stats", "--json", path) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_numbers_are_true(used: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    document = numbers(used.path, capsys)
    assert document["repository"] == str(used.path)
    assert document["content"]["blobs"] == 5
    assert document["content"]["live_bytes"] == sum(64 + len(data) + 8 for data in CONTENT)
    assert document["content"]["dead_bytes"] == 0
    assert document["content"]["segments"] == {"open": 1, "sealed": 0, "sweeping": 0, "given_up": 0}
    assert document["room"]["quota_bytes"] == used.quota_bytes
    du = sum(path.lstat().st_blocks * 512 for path in [used.path, *used.path.rglob("*")])
    assert document["room"]["used_bytes"] == pytest.approx(du, abs=70_000)
    assert document["names"]["by_kind"]["source"]["total"] == document["names"]["total"] == 1
    assert document["requests"]["ever"] == document["requests"]["last_24h"]
    ever = document["requests"]["ever"]
    assert ever["names"] == {"found": 1, "missed": 2, "hit_rate": 0.3333}
    assert ever["blobs"] == {"found": 1, "missed": 1, "hit_rate": 0.5}
    assert ever["bytes_read"] == len(CONTENT[0])
    assert document["eviction"] is None
    assert document["pins"]["patterns"] == 0
    assert numbers(used.path, capsys)["requests"] == document["requests"]  # nothing is counted twice


def test_people_read_the_same(used: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    Progress(begun_ms=1, finished_ms=wall_clock() - 50 * HOUR_MS, damaged_ever=2).write(str(used.path / "scrub"))
    assert millpond("stats", used.path) == 0
    text = capsys.readouterr().out
    assert "5 blobs, 15.4 kB and 0 bytes dead, in 1 segment (1 open)" in text
    assert "of its quota of 67.1 MB taken" in text
    assert "1 name (1 source)" in text
    assert "names 33.3 % of 3, blobs 50.0 % of 2; 3 kB read" in text
    assert "everything was verified 2.1 d ago; 2 damaged blobs found so far" in text
    assert "nothing had to go yet" in text


def test_it_works_beside_a_server_and_where_nothing_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = OtherProcess(tmp_path / "repo")
    assert server.put_many([blob("one")]) == [None]
    assert numbers(tmp_path / "repo", capsys)["content"]["blobs"] == 1
    assert millpond("stats", tmp_path / "repo") == 0
    assert "nothing was asked for yet" in capsys.readouterr().out
    server.end()


def test_what_was_evicted_pinned_and_damaged_is_told(used: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    document = numbers(used.path, capsys)
    now = wall_clock()
    document["eviction"] = {"at_ms": now - 3 * HOUR_MS, "age_ms": 12 * 24 * HOUR_MS, "freed_bytes": 2_000_000}
    document["pins"] = {"patterns": 1, "bytes": 1_500_000, "share": 0.5}
    document["requests"]["ever"]["damaged_blobs"] = 1
    document["scrub"]["running"] = True
    text = "\n".join(lines(document, now))
    assert "lives 12 d at the present rate (last eviction 3 h ago: 2 MB)" in text
    assert "1 pattern: 1.5 MB of at most 33.6 MB kept" in text
    assert "1 damaged blob found by clients' reads" in text
    assert "a pass runs" in text


def test_what_is_no_repository_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("stats", tmp_path) == 2
    assert "holds no repository" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
