"""Clients of different generations on one server and one port: they see each other's work where their keys agree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.holding_proxy import HoldingProxy
from system.old_clients import APP, ARTIFACTS, EVERYBODY, Made, OldClient, Release, despite_hangs, expected
from system.parts import excused_parts
from system.server_process import Millpond

DOWNLOAD = "download.bst"
AT_ONCE = ("1.4.3", "1.6.9", "1.93.4", "1.93.6", "2.8.1")
_REFUSED = re.compile(r"^.*Failed to initialize remote .*(?:allow|accept) push.*$", re.MULTILINE)
_CALLS_OF_A_REFUSED_BUILD = 10


@pytest.fixture(scope="module")
def server(shared_site: BuildSite) -> Millpond:
    return shared_site.server("--enable-push")


@contextmanager
def watched(server: Millpond) -> Iterator[HoldingProxy]:
    """A way to the server on which it is seen which calls were made."""
    proxy = HoldingProxy(f"127.0.0.1:{server.port}", held="", after="")
    try:
        yield proxy
    finally:
        proxy.close()


def _client(site: BuildSite, number: str, url: str, *, push: bool = True) -> OldClient:
    return site.old_client(Release(number), artifacts=[Remote(url=url, push=push)])


@pytest.mark.parametrize(
    ("first", "push", "second", "pull"),
    [
        ("1.4.3", "UpdateReference", "1.6.9", "FetchDirectory"),
        ("1.6.9", "PushDirectory", "1.4.3", "GetReference"),
        ("1.6.8", "PushDirectory", "1.4.3", "GetReference"),
        ("1.1.7", "UpdateReference", "1.2.8", "GetReference"),
        ("1.2.8", "UpdateReference", "1.1.7", "GetReference"),
        ("1.93.4", "UpdateArtifact", "1.93.5", "FetchBlob"),
        ("1.93.5", "PushBlob", "1.93.4", "GetArtifact"),
        ("2.6.0", "PushBlob", "2.8.1", "FetchBlob"),
        ("2.8.1", "PushBlob", "2.6.0", "FetchBlob"),
    ],
)
@despite_hangs
def test_what_one_release_pushes_in_its_protocol_another_pulls_in_its_own(
    site: BuildSite, server: Millpond, first: str, push: str, second: str, pull: str
) -> None:
    project = Release(first).project(site.place("project"))
    with watched(server) as way:
        made = _client(site, first, way.url).make(project)
        assert made.outcome.pushes == ARTIFACTS
        assert push in way.seen
    with watched(server) as way:
        other = _client(site, second, way.url)
        built = other.make(project).outcome
        assert (built.pulls, built.pushes) == (ARTIFACTS, 0)
        assert pull in way.seen
        assert other.tree(made) == expected(project)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("1.91.3", "1.93.4"),
        ("1.93.4", "1.91.3"),
        ("2.6.0", "2.8.1"),
        ("2.8.1", "2.6.0"),
        ("1.93.4", "1.93.5"),
        ("1.93.5", "1.93.4"),
        ("1.93.6", "2.8.1"),
        ("2.8.1", "1.93.6"),
    ],
)
def test_sources_that_one_release_pushes_another_gets_when_their_origin_is_gone(
    site: BuildSite, server: Millpond, first: str, second: str
) -> None:
    origin, remote = site.place("origin"), Remote(url=server.url, push=True)
    origin.write_bytes(f"{first} {second}\n".encode())
    pushing, fetching = (site.old_client(Release(number), sources=[remote]) for number in (first, second))
    projects = [client.release.empty_project(site.place("project"), "sources") for client in (pushing, fetching)]
    for project in projects:
        project.add_download(DOWNLOAD, origin)
    assert "Pushed source" in pushing.run("build", DOWNLOAD, project=projects[0]).output
    origin.unlink()
    assert "Pulled source" in fetching.run("source", "fetch", DOWNLOAD, project=projects[1]).output


def test_five_releases_build_and_push_at_the_same_time(site: BuildSite, server: Millpond) -> None:
    releases = [Release(number) for number in AT_ONCE]
    projects = [release.project(site.place("project"), "at-once", demanding=True) for release in releases]
    clients = [_client(site, number, server.url) for number in AT_ONCE]
    running = [client.start("build", APP, project=project) for client, project in zip(clients, projects, strict=True)]
    assert [build.wait().exit_code for build in running] == [0] * len(AT_ONCE)
    for client, project in zip(clients, projects, strict=True):
        client.wipe()
        made = client.make(project)
        assert made.outcome.pulls == ARTIFACTS
        assert client.tree(made) == expected(project)


class Restarted(NamedTuple):
    """A server that was restarted without push, after everybody had pushed something."""

    server: Millpond
    made: dict[str, Made]


@pytest.fixture(scope="module")
def restarted(shared_site: BuildSite) -> Restarted:
    repo = shared_site.place("repo")
    server = shared_site.server("--enable-push", repo=repo)

    @despite_hangs
    def make(release: Release) -> Made:
        project = release.project(shared_site.place("project"))
        return _client(shared_site, release.number, server.url).make(project)

    releases = [Release(number) for number in EVERYBODY]
    made = {release.number: make(release) for release in releases if release.part not in excused_parts()}
    server.stop()
    return Restarted(shared_site.server(repo=repo, port=server.port), made)


@pytest.mark.parametrize("number", EVERYBODY)
@despite_hangs
def test_after_a_restart_without_push_everybody_pulls_and_who_wants_to_push_builds_with_one_warning(
    site: BuildSite, restarted: Restarted, number: str
) -> None:
    pulling = _client(site, number, restarted.server.url, push=False)
    made = restarted.made[number]
    assert pulling.bring(made).pulls == ARTIFACTS
    assert pulling.tree(made) == expected(made.project)
    with watched(restarted.server) as way:
        refused = _client(site, number, way.url).make(made.project).outcome
        assert (refused.pulls, refused.pushes) == (0, 0)
        assert len(_REFUSED.findall(refused.output)) == 1, refused.output
        assert len(way.seen) <= _CALLS_OF_A_REFUSED_BUILD, way.seen


@pytest.mark.parametrize("number", ["1.2.8", "1.4.3", "1.6.9"])
@despite_hangs
def test_what_does_not_fit_is_not_pushed_and_the_build_goes_on(site: BuildSite, number: str) -> None:
    server = site.server("--enable-push", "--quota", "2M")
    client = _client(site, number, server.url)
    made = client.make(client.release.project(site.place("project"), demanding=True))
    assert made.outcome.pushes == 1
    client.wipe()
    assert client.make(made.project).outcome.pulls == 1
