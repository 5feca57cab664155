"""Arguments become settings; what contradicts itself is one sentence and a status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from millpond.cli import bst_artifact_server, main, serve
from millpond.config.settings import Listener, LogLevel, Settings, TlsFiles
from millpond.config.sizes import Quota
from millpond.core.errors import RefusedToStart
from millpond.supervisor import CannotStart


class Started:
    """Takes the place of ``start``: remembers the settings, or fails as it is told."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.with_configuration: bool | None = None
        self.failure: Exception | None = None

    def __call__(self, settings: Settings, *, with_configuration: bool) -> int:
        self.settings, self.with_configuration = settings, with_configuration
        if self.failure is not None:
            raise self.failure
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    started = Started()
    for module in (serve, bst_artifact_server):
        monkeypatch.setattr(module, "start", started)
        monkeypatch.setattr(module, "usable_cores", lambda: 3)
    return started


def millpond(*arguments: str) -> int:
    return _status(main.main, arguments)


def old_server(*arguments: str) -> int:
    return _status(bst_artifact_server.main, arguments)


def _status(program: object, arguments: Sequence[str]) -> int:
    assert callable(program)
    with pytest.raises(SystemExit) as ended:
        program(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


# -- millpond serve -------------------------------------------------------------------------------------------------


def test_without_arguments_it_is_read_only_and_for_this_machine(started: Started) -> None:
    assert millpond("serve") == 0
    assert started.settings == Settings(
        repo=Path("millpond-data").absolute(),
        listeners=(Listener("127.0.0.1", 11001),),
        enable_push=False,
        workers=3,
        log_level=LogLevel.INFO,
    )
    assert started.with_configuration


def test_every_option_becomes_a_setting(started: Started, tmp_path: Path) -> None:
    options = "--listen 0.0.0.0:1 --listen [::1]:2 --enable-push --index-only --no-foreign --quota 80% --workers 5"
    tls = "--server-key /k --server-cert /c --client-certs /a --instance main --instance a/b --instance main"
    upkeep = "--reserve 3% --pin-share 25% --warn-age 36h --scrub-days 7 --scrub-rate 5Mi"
    arguments = [*options.split(), *tls.split(), *upkeep.split(), "--log-level", "trace", str(tmp_path)]
    assert millpond("serve", *arguments) == 0
    files = TlsFiles(Path("/k"), Path("/c"), Path("/a"))
    assert started.settings == Settings(
        repo=tmp_path,
        listeners=(Listener("::", 1, files), Listener("::1", 2, files)),
        instances=("main", "a/b"),
        enable_push=True,
        index_only=True,
        foreign=False,
        quota=Quota(80, is_percent=True),
        reserve=Quota(3, is_percent=True),
        pin_share=0.25,
        warn_age_ms=36 * 3_600_000,
        scrub_days=7,
        scrub_rate_bytes=5 << 20,
        workers=5,
        log_level=LogLevel.TRACE,
    )


def test_the_empty_instance_can_be_served_beside_others(started: Started) -> None:
    millpond("serve", "--instance", "", "--instance", "main")
    assert started.settings is not None
    assert started.settings.instances == ("", "main")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("serve --quotas 5", "No such option"),
        ("serve --quota 5x", "'5x' is not a size"),
        ("serve --quota 100", "too little to hold anything"),
        ("serve --reserve 100%", "leaves nothing to the repository"),
        ("serve --reserve much", "'much' is not a size"),
        ("serve --pin-share 120%", "'120%' is not a share"),
        ("serve --warn-age 7", "'7' is not an age"),
        ("serve --scrub-days -1", "--scrub-days"),
        ("serve --scrub-rate 0", "out of range"),
        ("serve --listen 11001", "HOST:PORT"),
        ("serve --listen a:1 --listen a:1", "given twice"),
        ("serve --server-key k", "--server-key and --server-cert are both required for TLS"),
        ("serve --server-cert c", "--server-key and --server-cert are both required for TLS"),
        ("serve --client-certs a", "--client-certs can only be used with --server-key"),
        ("serve --instance a//b", "has an empty segment"),
        ("serve --instance uploads", "which resource names reserve"),
        ("serve --workers 0", "--workers"),
        ("serve --log-level loud", "--log-level"),
        ("serve a b", "unexpected extra argument"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_status_2(
    arguments: str, words: str, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert millpond(*arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert words in output.err
    assert "--help" in output.err
    assert started.settings is None


@pytest.mark.parametrize(
    ("failure", "status"),
    [(RefusedToStart("it is a file: name a directory"), 2), (CannotStart("worker 0 failed: see the log"), 1)],
    ids=["refused", "failed"],
)
def test_a_refusal_is_told_in_its_own_words(
    failure: Exception, status: int, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.failure = failure
    assert millpond("serve") == status
    assert capsys.readouterr().err == f"millpond: {failure}\n"


@pytest.mark.parametrize("group", ["names", "import"])
def test_a_group_without_a_command_says_what_there_is(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond(group) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Usage: millpond {group} ")
    assert "\nCommands:\n" in said


@pytest.mark.parametrize("arguments", [[], ["--help"], ["serve", "--help"], ["version"]], ids=" ".join)
def test_whoever_asks_is_answered_on_standard_output(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert millpond(*arguments) == 0
    output = capsys.readouterr()
    assert "millpond" in output.out
    assert output.err == ""


# -- bst-artifact-server --------------------------------------------------------------------------------------------


def test_the_old_command_line_is_understood(started: Started, tmp_path: Path) -> None:
    assert old_server("-p", "11001", str(tmp_path)) == 0
    assert started.settings == Settings(
        repo=tmp_path, listeners=(Listener("::", 11001),), workers=3, log_level=LogLevel.WARNING
    )
    assert not started.with_configuration


def test_every_option_that_any_version_had_is_understood(started: Started, tmp_path: Path) -> None:
    options = (
        "--port 11002 --server-key /k --server-cert /c --client-certs /a --enable-push --quota 10000000000 "
        "--index-only --log-level info --head-room-min 2000000000 --head-room-max 10000000000"
    )
    assert old_server(*options.split(), str(tmp_path)) == 0
    assert started.settings == Settings(
        repo=tmp_path,
        listeners=(Listener("::", 11002, TlsFiles(Path("/k"), Path("/c"), Path("/a"))),),
        enable_push=True,
        index_only=True,
        quota=Quota(10**10),
        head_room_min_bytes=2 * 10**9,
        head_room_max_bytes=10**10,
        workers=3,
        log_level=LogLevel.INFO,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--server-key k", "ERROR: --server-key and --server-cert are both required for TLS\n"),
        ("--server-cert c", "ERROR: --server-key and --server-cert are both required for TLS\n"),
        ("--server-cert c --client-certs a", "ERROR: --server-key and --server-cert are both required for TLS\n"),
        ("--client-certs a", "ERROR: --client-certs can only be used with --server-key\n"),
    ],
)
def test_the_old_refusals_have_the_old_words_and_status(
    arguments: str, words: str, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old_server("-p", "1", *arguments.split(), "repo") == 255
    assert capsys.readouterr().err == words
    assert started.settings is None


def test_an_empty_variable_in_a_unit_file_is_an_option_that_was_not_given(started: Started) -> None:
    assert old_server("-p", "1", "--server-key=", "--server-cert=", "--client-certs=", "repo") == 0
    assert started.settings is not None
    assert started.settings.listeners == (Listener("::", 1),)


def test_head_room_goes_from_less_to_more(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert old_server("-p", "1", "--head-room-min", "2G", "--head-room-max", "1G", "repo") == 2
    assert "--head-room-max is less than --head-room-min" in capsys.readouterr().err
    assert started.settings is None
    assert old_server("-p", "1", "--head-room-max", "1G", "repo") == 0


@pytest.mark.parametrize("command", ["millpond serve", "bst-artifact-server -p 1"])
def test_a_path_that_is_not_utf_8_is_one_sentence_and_status_2(
    command: str, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = command.split()
    run = {"millpond": millpond, "bst-artifact-server": old_server}[program]
    assert run(*arguments, os.fsdecode(b"/tmp/latin-\xe9")) == 2
    assert "the path /tmp/latin-\\xe9 is not UTF-8" in capsys.readouterr().err
    assert started.settings is None


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_path_that_cannot_be_printed_is_no_reason_not_to_serve(encoding: str, tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from millpond.cli import start; from millpond.config.settings import *\n"
        "start.supervise = lambda settings, *, announce: announce([Listener('::1', 1)], '1 GB') or 0\n"
        "start.start(Settings(repo=Path(os.fsdecode(b'/latin-\\xe9')), listeners=()), with_configuration=True)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "repository /latin-\\udce9; quota: 1 GB" in ended.stdout


@pytest.mark.parametrize("arguments", [["repo"], ["-p", "1"], ["-p", "x", "repo"], ["-p", "1", ""]], ids=str)
def test_a_missing_argument_is_status_2(arguments: list[str], started: Started) -> None:
    assert old_server(*arguments) == 2
    assert started.settings is None


# -- as programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["millpond", "version"], 0),
        (["millpond", "serve", "--quota", "much"], 2),
        (["millpond.cli.bst_artifact_server", "--help"], 0),
        (["millpond.cli.bst_artifact_server", "-p", "1", "--server-key", "k", "repo"], 255),
        (["millpond", "serve", "--listen", "127.0.0.1:0", __file__], 2),
        (["millpond", "serve", "--listen", "127.0.0.1:0", f"{__file__}/repo"], 2),
        (["millpond", "serve", "--listen", "127.0.0.1:0", "--server-key", __file__, "--server-cert", __file__], 2),
    ],
    ids=lambda value: " ".join(value[1:-1]) if isinstance(value, list) else str(value),
)
def test_the_status_of_the_process_says_how_it_ended(arguments: list[str], status: int, tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr
    assert (ended.stderr.count("\n") == 1) == (status != 0)
    assert list(tmp_path.iterdir()) == []


def test_the_first_process_loads_neither_grpc_nor_lmdb() -> None:
    code = "import sys, millpond.cli.main; print(sorted({'grpc', 'lmdb', 'google', 'uvloop'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stdout == "[]\n"
