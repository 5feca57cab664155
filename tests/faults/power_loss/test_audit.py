"""The audit finds what is wrong, and finds nothing where nothing is."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from faults.power_loss import audit
from faults.power_loss.audit import Question, Version, in_a_process, judge, keep_up
from faults.power_loss.cuts import Auditor, Expectations, held
from faults.power_loss.recording import Mark, Playback, Recording
from unit.store.repositories import Repository, blob

from millpond.core.digest import Digest
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.services.cache import Cache

CONTENT = [b"first", b"second"]
DIGESTS = [f"{Digest.of(data)}" for data in CONTENT]
NAME = "test:name"
GOOD = Version(NAME, False, DIGESTS)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository that holds one name of two blobs."""
    repository = Repository(tmp_path / "repo")
    repository.open()
    repository.store.put_many([blob(data) for data in CONTENT])
    cache = Cache(repository.store, repository.store, repository.names, lambda: 1)
    push = assets.AssetPush([NAME], Digest.of(CONTENT[0]), blobs=[Digest.of(CONTENT[1])])
    assets.push(cache, "", Namespace.ASSET_BLOB, push, pushed_by="")
    repository.close()
    return repository.path


def ask(repo: Path, **changed: Any) -> str:
    question = Question(**{"repo": f"{repo}", "versions": [GOOD], "expected": {NAME: [0]}, **changed})
    auditor = Auditor()
    auditor.ask(question)
    answer = auditor.answer()
    auditor.end()
    return "\n".join(answer)


@pytest.mark.parametrize("upkeep", [False, True])
def test_nothing_is_wrong_with_a_sound_repository(repo: Path, upkeep: bool) -> None:
    assert ask(repo, upkeep=upkeep) == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"expected": {NAME: [0], "test:other": [0]}}, "'test:other' was acknowledged and is gone"),
        ({"versions": [GOOD, Version(NAME, False, ["0" * 64 + "/1"])], "expected": {NAME: [1]}}, "something older"),
        ({"versions": [], "expected": {}}, "which nobody pushed"),
        ({"versions": [Version(NAME, False, [*DIGESTS, "0" * 64 + "/1"])]}, "is there and 1 of its blobs are not"),
        ({"versions": [Version(NAME, True, DIGESTS)]}, "is not answered"),
        ({"numbers": list(range(1000))}, "was used again"),
    ],
    ids=["gone", "older", "of nobody", "a hole", "not answered", "number"],
)
def test_what_is_not_as_it_was_acknowledged_is_told(repo: Path, changed: dict[str, Any], told: str) -> None:
    assert told in ask(repo, **changed)


def test_what_was_evicted_before_need_not_be_whole(repo: Path) -> None:
    evicted = Version(NAME, False, [*DIGESTS, "0" * 64 + "/1"], gone=True)
    assert ask(repo, versions=[evicted]) == ""


def test_a_repository_that_needs_somebody_is_told(repo: Path) -> None:
    (repo / "millpond.json").write_text("{")
    assert "does not start by itself" in ask(repo)


def test_a_repository_that_ends_its_process_is_told_and_the_next_is_judged(repo: Path) -> None:
    def dies(_: Question) -> list[str]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def fails(_: Question) -> list[str]:
        raise OSError("a disk")

    question = Question(f"{repo}", [GOOD], {NAME: [0]})
    assert in_a_process(dies, question, "boot") == ["dies ended its process with -9"]
    assert "OSError: a disk" in in_a_process(fails, question, "boot")[0]
    assert in_a_process(keep_up, question, "boot") == []
    assert in_a_process(judge, question, "boot") == []


def test_listed_blobs_that_cannot_be_read_or_are_served_wrong_are_told(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (segment,) = (repo / "segments").iterdir()
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b"second", b"sEcond"))  # it was closed well, so the index is believed
    question = Question(f"{repo}", [GOOD], {NAME: [0]})
    damaged = repo.with_name("damaged")
    shutil.copytree(repo, damaged)
    told = "\n".join(in_a_process(judge, Question(f"{damaged}", [GOOD], {NAME: [0]}), "boot"))
    assert "is listed and cannot be read" in told
    segment.write_bytes(content)
    monkeypatch.setattr(audit.Digest, "matches", lambda self, data: bytes(data) != b"second")
    assert "is served wrong" in "\n".join(in_a_process(judge, question, "boot"))


def test_what_must_be_true_follows_from_what_was_acknowledged_by_then(repo: Path) -> None:
    def about(at: int, version: int) -> Mark:
        return Mark(at, {"about": NAME, "version": version, "directory": False, "digests": [f"{version}"]})

    marks = [about(10, 1), Mark(20, {"acknowledged": NAME, "version": 1}), Mark(25, {"over": "kill"}), about(30, 2)]
    marks.append(Mark(40, {"acknowledged": NAME, "version": 2}))
    expectations = Expectations(Recording("/disk", [], marks))
    for at, versions, expected in [
        (5, 0, {}),
        (10, 1, {}),
        (20, 1, {NAME: [0]}),
        (39, 2, {NAME: [0, 1]}),
        (40, 2, {NAME: [1]}),
    ]:
        question = expectations.question(at, repo, [7], {"1"}, upkeep=False)
        assert (len(question.versions), question.expected, question.numbers) == (versions, expected, [7])
        assert [version.gone for version in question.versions] == [False, True][:versions]


def test_what_eviction_had_left_is_read_out_of_the_segments(repo: Path) -> None:
    assert held(Playback(Recording("/disk", [], before=repo.parent))) == {*DIGESTS}
