"""How an OSTree repository comes to be served: alone, or beside a cache; what contradicts itself is one sentence."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from millpond.cli import ostree_serving, serve
from millpond.cli.ostree_serving import ostree_serve
from millpond.config.settings import Listener, LogLevel, OstreeSettings, Settings, TlsFiles

FILES = TlsFiles(Path("/k"), Path("/c"), Path("/a"))
KEYS = ("--server-key", "/k", "--server-cert", "/c", "--client-certs", "/a")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    settings: list[Settings] = []

    def start(one: Settings, *, with_configuration: bool) -> int:
        assert with_configuration
        settings.append(one)
        return 0

    for module in (ostree_serving, serve):
        monkeypatch.setattr(module, "start", start)
    return settings


def run(command: click.Command, *arguments: str) -> None:
    CliRunner().invoke(command, arguments, standalone_mode=False, catch_exceptions=False)


def refusal(command: click.Command, *arguments: str) -> str:
    with pytest.raises(click.UsageError) as refused:
        command.main(list(arguments), standalone_mode=False)
    return refused.value.format_message()


def test_alone_there_is_no_cache_beside_it(started: list[Settings]) -> None:
    run(
        ostree_serve,
        "--listen",
        "0.0.0.0:443",
        "--listen",
        "[::1]:80",
        "--prefix",
        "/artifacts/",
        *KEYS,
        "/srv/artifacts",
    )
    listeners = (Listener("::", 443, FILES), Listener("::1", 80, FILES))
    repo = Path("/srv/artifacts")
    assert started == [
        Settings(
            repo=repo,
            listeners=(),
            workers=0,
            log_level=LogLevel.INFO,
            ostree=OstreeSettings(repo, listeners, "/artifacts"),
        )
    ]


def test_beside_a_cache_it_has_the_same_keys(started: list[Settings]) -> None:
    run(serve.serve, "--ostree", "/o", "--ostree-listen", "a:1", "--ostree-prefix", "/artifacts", *KEYS, "/srv/cache")
    assert started[0].repo == Path("/srv/cache")
    assert started[0].ostree == OstreeSettings(Path("/o"), (Listener("a", 1, FILES),), "/artifacts")


def test_without_its_options_there_is_none(started: list[Settings]) -> None:
    run(serve.serve)
    assert started[0].ostree is None


@pytest.mark.parametrize(
    "half", [("--ostree", "/o"), ("--ostree-listen", "a:1"), ("--ostree-prefix", "/x", "--ostree", "/o")]
)
def test_half_of_its_options_is_refused(started: list[Settings], half: tuple[str, ...]) -> None:
    assert "--ostree and --ostree-listen go together" in refusal(serve.serve, *half)
    assert started == []


def test_one_address_is_not_given_to_both(started: list[Settings]) -> None:
    both = ("--listen", "a:1", "--ostree-listen", "a:1", "--ostree", "/o")
    assert "given twice" in refusal(serve.serve, *both)
    assert started == []


@pytest.mark.parametrize("prefix", ["artifacts", "", "/a b", "/../x", "/a//b", "/ä", "/a?b", "/%41", "/" + "a" * 2000])
def test_a_prefix_that_no_url_could_have_is_refused(started: list[Settings], prefix: str) -> None:
    assert "is not a path to serve below" in refusal(ostree_serve, "--listen", "a:1", "--prefix", prefix, "/r")


@pytest.mark.parametrize(("given", "kept"), [("/", "/"), ("/a", "/a"), ("/a/", "/a"), ("/a/b.c/", "/a/b.c")])
def test_a_slash_at_the_end_of_a_prefix_does_not_count(started: list[Settings], given: str, kept: str) -> None:
    run(ostree_serve, "--listen", "a:1", "--prefix", given, "/r")
    assert started[0].ostree is not None
    assert started[0].ostree.prefix == kept


def test_an_address_and_a_repository_have_to_be_named(started: list[Settings]) -> None:
    assert "--listen" in refusal(ostree_serve, "/r")
    assert "REPO" in refusal(ostree_serve, "--listen", "a:1")


def test_keys_that_lack_their_other_half_are_refused(started: list[Settings]) -> None:
    refused = refusal(ostree_serve, "--listen", "a:1", "--server-key", "/k", "/r")
    assert refused == "--server-key and --server-cert are both required for TLS"
