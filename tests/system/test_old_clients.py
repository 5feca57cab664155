"""Clients of every generation, one after the other: what they push comes back to them, every byte of it the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from system import old_clients
from system.bst_client import Remote
from system.build_site import BuildSite
from system.old_clients import APP, ARTIFACTS, EVERYBODY, Hung, OldClient, Release, despite_hangs, expected
from system.server_process import Millpond
from system.tls_keys import KeyPair, Keys

RELEASES = [Release(number) for number in EVERYBODY]

every_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.number)


@pytest.fixture(scope="module")
def plain(shared_site: BuildSite) -> Remote:
    return Remote(url=shared_site.server("--enable-push").url, push=True)


@pytest.fixture(scope="module")
def encrypted(shared_site: BuildSite, keys: Keys) -> Callable[[Release], Remote]:
    """For 1.x a server with keys as its documentation has them made, else one that its address knows; one user each."""
    authorized = keys.authorize(keys.client.cert, into=shared_site.place("authorized"))

    @cache
    def server(pair: KeyPair) -> Millpond:
        flags = ["--server-key", pair.key, "--server-cert", pair.cert, "--client-certs", authorized]
        return shared_site.server("--enable-push", *flags)

    def remote(release: Release) -> Remote:
        # casd takes a second to find out where localhost is, for each connection.
        pair, host = (keys.server, "localhost") if release.is_classic else (keys.server_with_names, "127.0.0.1")
        own = {"client_key": keys.client.key, "client_cert": keys.client.cert}
        return Remote(url=server(pair).url_at(host), push=True, server_cert=pair.cert, **own)

    return remote


def _assert_comes_back(site: BuildSite, release: Release, remote: Remote, *, demanding: bool) -> None:
    """Pushed once, not pushed again, pulled after all was forgotten, and laid out as it was."""
    client = site.old_client(release, artifacts=[remote])
    made = client.make(release.project(site.place("project"), demanding=demanding))
    assert (made.outcome.pulls, made.outcome.pushes) == (0, ARTIFACTS)
    assert client.push_again(made).pushes == 0
    client.wipe()
    assert client.bring(made).pulls == ARTIFACTS
    assert client.tree(made) == expected(made.project)


@every_release
@despite_hangs
def test_what_a_client_pushes_comes_back_to_it(site: BuildSite, plain: Remote, release: Release) -> None:
    _assert_comes_back(site, release, plain, demanding=True)


@every_release
@despite_hangs
def test_what_a_client_pushes_with_its_certificate_comes_back_to_it(
    site: BuildSite, encrypted: Callable[[Release], Remote], release: Release
) -> None:
    _assert_comes_back(site, release, encrypted(release), demanding=False)


@pytest.mark.parametrize("number", ["1.91.3", "1.93.4", "1.93.5", "1.93.6", "2.8.1"])
def test_a_client_with_an_instance_name_is_served_where_the_unnamed_instance_is_served_too(
    site: BuildSite, number: str
) -> None:
    server = site.server("--enable-push", "--instance", "mine", "--instance", "")
    remote = Remote(url=server.url, push=True, instance_name="mine")
    _assert_comes_back(site, Release(number), remote, demanding=False)


@pytest.mark.parametrize("number", ["1.4.3", "1.6.9", "1.93.4"])
def test_who_has_no_certificate_builds_without_the_cache(
    site: BuildSite, encrypted: Callable[[Release], Remote], number: str
) -> None:
    release = Release(number)
    stranger = replace(encrypted(release), client_key=None, client_cert=None)
    outcome = site.old_client(release, artifacts=[stranger]).make(release.project(site.place("project"))).outcome
    assert (outcome.pulls, outcome.pushes) == (0, 0)
    assert outcome.output.count("Failed to initialize remote") == 1


@pytest.mark.parametrize("number", ["1.4.3", "1.6.9"])
def test_a_cache_that_is_named_on_the_command_line_is_used_where_one_may_push(
    site: BuildSite, plain: Remote, number: str
) -> None:
    release = Release(number)
    client, here = site.old_client(release), ("--deps", "all", "--remote", plain.url, APP)
    made = client.make(release.project(site.place("project")))
    assert client.run("push", *here, project=made.project).pushes == ARTIFACTS
    client.wipe()
    assert client.run("pull", *here, project=made.project).pulls == ARTIFACTS
    assert client.tree(made) == expected(made.project)


def test_a_client_that_hangs_is_ended_counted_and_tried_again_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, hangs, tries = tmp_path / "bst", Counter[str](), []
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    client = OldClient(tmp_path / "home", Release("1.2.8"))
    monkeypatch.setattr(client, "command", lambda: [program])
    monkeypatch.setattr(old_clients, "HANG_SECONDS", 0.1)
    monkeypatch.setattr(old_clients, "HANGS", hangs)

    @despite_hangs
    def promise() -> None:
        tries.append(len(tries) + 1)
        client.run("build", APP)

    with pytest.raises(Hung):
        promise()
    assert tries == [1, 2, 3]
    assert hangs == {"1.2.8": 3}
    client.close()
