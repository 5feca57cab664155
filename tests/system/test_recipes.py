"""The recipes say what works: their configurations are used as they stand, with the addresses and keys of the day."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

import pytest
from system.build_site import BuildSite
from system.old_clients import ARTIFACTS, OldClient, Release, expected
from system.parts import ROOT
from system.server_process import Millpond
from system.tls_keys import Keys

PAGE = ROOT / "docs" / "how-to" / "serve-1x-and-2x-together.md"
FORM_1, FORM_2 = "# ~/.config/buildstream1.conf", "# ~/.config/buildstream2.conf"
FORM_1_WITH_SOURCES, IN_A_PROJECT = "# ~/.config/buildstream2.conf of 1.93.5 and before", "# project.conf"
_FORM_IDS = {FORM_1: "form-1", FORM_2: "form-2", FORM_1_WITH_SOURCES: "form-1-with-sources"}
_INDENTED = re.compile(r"(?:^ {4}.*\n|^\n(?= {4}))+", re.MULTILINE)


class Pair(NamedTuple):
    """The two servers of the recipe, on one repository."""

    pull: Millpond
    push: Millpond
    keys: Keys


@pytest.fixture(scope="module")
def pair(shared_site: BuildSite, keys: Keys) -> Pair:
    repo, pair = shared_site.place("repo"), keys.server_with_names
    authorized = keys.authorize(keys.client.cert, into=shared_site.place("authorized"))
    tls = ["--server-key", pair.key, "--server-cert", pair.cert]
    pull = shared_site.classic_server(*tls, repo=repo)
    push = shared_site.classic_server("--enable-push", *tls, "--client-certs", authorized, repo=repo)
    return Pair(pull, push, keys)


def _recipe(title: str, pair: Pair) -> str:
    """The block of the page that begins with this comment, for our servers and keys."""
    blocks = [dedent(block).lstrip() for block in _INDENTED.findall(PAGE.read_text())]
    (text,) = [block for block in blocks if block.startswith(f"{title}\n")]
    ours = {
        "https://cache.example.org:11001": pair.pull.url_at("127.0.0.1"),
        "https://cache.example.org:11002": pair.push.url_at("127.0.0.1"),
        "/home/ada/keys/server.crt": str(pair.keys.server_with_names.cert),
        "/home/ada/keys/client.key": str(pair.keys.client.key),
        "/home/ada/keys/client.crt": str(pair.keys.client.cert),
    }
    for example, real in ours.items():
        text = text.replace(example, real)
    return text


def _client(site: BuildSite, number: str, configuration: str) -> OldClient:
    client = site.old_client(Release(number))
    client.configure_with(configuration)
    return client


@pytest.mark.parametrize(
    ("number", "title"),
    [
        ("1.4.3", FORM_1),
        ("1.6.9", FORM_1),
        ("1.93.4", FORM_1),
        ("1.93.4", FORM_1_WITH_SOURCES),
        ("1.93.6", FORM_2),
        ("2.8.1", FORM_2),
    ],
    ids=_FORM_IDS.get,
)
def test_the_configurations_of_the_recipes_work_as_they_stand(
    site: BuildSite, pair: Pair, number: str, title: str
) -> None:
    client = _client(site, number, _recipe(title, pair))
    project = client.release.project(site.place("project"))
    made = client.make(project)
    assert made.outcome.pushes == ARTIFACTS
    client.wipe()
    pulled = client.bring(made)
    assert pulled.pulled_from == [pair.pull.url_at("127.0.0.1")] * ARTIFACTS
    assert client.tree(made) == expected(project)


def test_a_project_of_buildstream_1_can_bring_its_cache_along(site: BuildSite, pair: Pair, tmp_path: Path) -> None:
    pushing = _client(site, "1.6.9", _recipe(FORM_1, pair))
    project = pushing.release.project(site.place("project"))
    made = pushing.make(project)
    (project.path / "keys").mkdir()
    shutil.copy(pair.keys.server_with_names.cert, project.path / "keys" / "server.crt")
    with (project.path / "project.conf").open("a") as conf:
        conf.write(_recipe(IN_A_PROJECT, pair))
    pulling = site.old_client(Release("1.4.3"))
    assert pulling.bring(made).pulls == ARTIFACTS
    assert pulling.tree(made) == expected(project)


@pytest.mark.parametrize(
    ("number", "title"),
    [("1.4.3", FORM_2), ("1.6.9", FORM_2), ("1.93.4", FORM_2), ("1.93.6", FORM_1), ("2.8.1", FORM_1)],
    ids=_FORM_IDS.get,
)
def test_each_form_is_an_error_for_the_others(site: BuildSite, pair: Pair, number: str, title: str) -> None:
    client = _client(site, number, _recipe(title, pair))
    project = client.release.empty_project(site.place("project"), "wrong-form")
    project.add_import("nothing.bst", {})
    assert client.attempt("build", "nothing.bst", project=project).exit_code != 0
