"""``millpond evict``: what goes, what stays, and what is said of it."""

import pty
import subprocess
import sys
from pathlib import Path

import pytest
from unit.cli.test_check import millpond
from unit.store.repositories import MIB, OtherProcess, Repository, noise

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.names import Namespace
from millpond.names.notes import Pin
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.services.upkeep import turn
from millpond.store.repository.layout import Layout


@pytest.fixture
def filled(tmp_path: Path) -> Repository:
    """A repository with four sealed sources of a MiB each, a, b, c and d."""
    repository = Repository(tmp_path / "repo")
    repository.open()
    for key in "abcd":
        push(repository, key)
    repository.close()
    return repository


def push(repository: Repository, key: str) -> None:
    store = repository.store
    digest = Digest.of(noise(MIB, key))
    assert store.put_many([(digest, noise(MIB, key))]) == [None]
    cache = Cache(store, store, repository.names, wall_clock)
    assets.push(cache, "", Namespace.ASSET_BLOB, assets.AssetPush([f"urn:{key}"], digest), pushed_by="")


def held(repository: Repository) -> str:
    """Which of the four are there; asking counts as use."""
    repository.open()
    digests = {Digest.of(noise(MIB, key)): key for key in "abcd"}
    missing = repository.store.find_missing(list(digests))
    repository.close()
    return "".join(key for digest, key in digests.items() if digest not in missing)


def test_the_least_recently_used_goes_until_little_enough_is_left(
    filled: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert millpond("evict", "--to", "3500K", filled.path) == 0
    out = capsys.readouterr().out
    assert out.startswith("evicted 2.1 MB: 2 blobs, last used ")
    assert "2 names became incomplete\n" in out
    assert "of its 67.1 MB are taken now" in out
    assert held(filled) == "cd"


def test_what_is_old_goes_and_what_is_young_stays(filled: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond("evict", "--older-than", "1h", filled.path) == 0
    assert capsys.readouterr().out.startswith("nothing had to go\n")
    assert held(filled) == "abcd"


def test_a_lease_protects_from_age_and_not_from_everything(filled: Repository) -> None:
    filled.open()
    leased = Digest.of(noise(MIB, "b"))
    assert filled.store.find_missing([leased]) == []
    filled.close()
    assert millpond("evict", "--older-than", "0", filled.path) == 0
    assert held(filled) == "b"
    assert millpond("evict", "--everything", filled.path) == 0
    assert held(filled) == ""


@pytest.mark.parametrize("how", [["--everything"], ["--older-than", "0"], ["--to", "1K"]], ids=" ".join)
def test_pins_stay_even_those_that_no_server_has_seen(
    filled: Repository, how: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    filled.open()
    filled.names.pins.add(Pin("urn:c", wall_clock()))
    filled.close()
    assert millpond("evict", *how, filled.path) == (1 if "--to" in how else 0)
    assert ("more than asked for" in capsys.readouterr().out) == ("--to" in how)
    assert held(filled) == "c"


def test_a_server_beside_it_has_misses_and_goes_on(filled: Repository) -> None:
    server = OtherProcess(filled.path)
    digests = [Digest.of(noise(MIB, key)) for key in "abcd"]
    assert server.read_many(digests)[0] == noise(MIB, "a")
    assert millpond("evict", "--everything", filled.path) == 0
    assert server.find_missing(digests) == digests
    assert server.put_many([(digests[0], noise(MIB, "a"))]) == [None]
    assert server.read_many(digests[:2]) == [noise(MIB, "a"), None]
    server.end()
    assert millpond("check", "--deep", filled.path) == 0


def test_it_waits_for_its_turn_and_not_for_ever(
    filled: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from millpond.cli import evicting

    monkeypatch.setattr(evicting, "_TURN_SECONDS", 0.05)
    filled.open()
    filled.close()
    code = (
        "import sys; from millpond.store.repository.layout import Layout; from millpond.services.upkeep import turn\n"
        f"with turn(Layout({str(filled.path)!r}), wait_seconds=5) as mine: print(mine, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    assert other.stdout.readline() == "True\n"
    assert millpond("evict", "--everything", filled.path) == 2
    assert "is busy" in capsys.readouterr().err
    other.communicate()
    with turn(Layout(str(filled.path)), wait_seconds=1) as mine:
        assert mine
    assert held(filled) == "abcd"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of --older-than, --to, --everything"),
        (["--to", "1G", "--everything"], "one of --older-than, --to, --everything"),
        (["--older-than", "30"], "is not an age"),
        (["--to", "x"], "is not a size"),
        (["--everything"], "holds no repository"),
    ],
    ids=str,
)
def test_what_is_unclear_is_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert millpond("evict", *arguments, tmp_path) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("answer", "left"), [("n\n", "abcd"), ("y\n", "")], ids=["no", "yes"])
def test_everything_is_asked_about_on_a_terminal(filled: Repository, answer: str, left: str) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "millpond", "evict", "--everything", str(filled.path)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(ours, "w", closefd=False) as terminal:
        terminal.write(answer)
        terminal.flush()
        _, error = process.communicate(timeout=60)
    assert "Evict everything from" in error
    assert process.returncode == (0 if not left else 130)
    assert held(filled) == left


def test_yes_asks_nothing(filled: Repository) -> None:
    _ours, theirs = pty.openpty()
    ended = subprocess.run(
        [sys.executable, "-m", "millpond", "evict", "--everything", "--yes", str(filled.path)],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert held(filled) == ""
