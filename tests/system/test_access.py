"""Who may push, and under which instance name a cache is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING, Project

DROPPED = "Failed to initialize remote"


@dataclass(frozen=True)
class Filled:
    """A REPO that holds one artifact and is not served by anybody."""

    repo: Path
    project: Project
    artifact: str


@pytest.fixture(scope="module")
def filled(shared_site: BuildSite) -> Filled:
    repo, project = shared_site.place("repo"), shared_site.project()
    server = shared_site.server("--enable-push", repo=repo)
    artifact = shared_site.client(artifacts=[Remote(url=server.url, push=True)]).build(project, GREETING)
    server.stop()
    return Filled(repo, project, artifact)


def test_a_client_that_is_not_told_to_push_leaves_nothing_on_the_server(site: BuildSite) -> None:
    server, project = site.server("--enable-push"), site.project()
    client = site.client(artifacts=[Remote(url=server.url, push=False)])
    artifact = client.build(project, GREETING)
    assert site.client(artifacts=[Remote(url=server.url)]).misses(artifact)


def test_everybody_may_pull_from_a_server_without_push(site: BuildSite, filled: Filled) -> None:
    server = site.server(repo=filled.repo)
    reader = site.client(artifacts=[Remote(url=server.url)])
    assert manifest(reader.fetch(filled.artifact)) == manifest(filled.project.files(GREETING))


def test_a_client_that_wants_to_push_where_nobody_may_drops_the_cache_and_builds(
    site: BuildSite, filled: Filled
) -> None:
    server, other = site.server(repo=filled.repo), site.project()
    (other.files(GREETING) / "hello.txt").write_text("never seen by the server\n")
    client = site.client(artifacts=[Remote(url=server.url, push=True)], sources=[Remote(url=server.url, push=True)])
    outcome = client.run("build", GREETING, project=other)
    assert DROPPED in outcome.output
    assert "PERMISSION_DENIED" in outcome.output
    assert outcome.pushed_to == []


def test_a_cache_is_found_under_its_instance_name(site: BuildSite) -> None:
    server, project = site.server("--enable-push", "--instance", "foo/bar"), site.project()
    remote = Remote(url=server.url, push=True, instance_name="foo/bar")
    artifact = site.client(artifacts=[remote], sources=[remote]).build(project, GREETING)
    assert manifest(site.client(artifacts=[remote]).fetch(artifact)) == manifest(project.files(GREETING))


@pytest.mark.parametrize("instance_name", ["foo", "foo/bar/baz", None])
def test_a_client_drops_an_instance_that_is_not_served_and_builds(site: BuildSite, instance_name: str | None) -> None:
    server, project = site.server("--enable-push", "--instance", "foo/bar"), site.project()
    remote = Remote(url=server.url, push=True, instance_name=instance_name)
    outcome = site.client(artifacts=[remote], sources=[remote]).run("build", GREETING, project=project)
    assert DROPPED in outcome.output
    assert outcome.pushed_to == []


def test_names_of_one_instance_are_unknown_in_another(site: BuildSite) -> None:
    server, project = site.server("--enable-push", "--instance", "red", "--instance", "blue"), site.project()
    red, blue = (Remote(url=server.url, push=True, instance_name=name) for name in ("red", "blue"))
    artifact = site.client(artifacts=[red]).build(project, GREETING)
    assert site.client(artifacts=[blue]).misses(artifact)
    assert site.client(artifacts=[red]).fetch(artifact)
