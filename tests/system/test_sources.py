"""The source cache: what one client fetched from its origin, another gets when the origin is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING, Project

DOWNLOAD = "download.bst"
CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    origin = tmp_path / "origin.bin"
    origin.write_bytes(CONTENT)
    return origin


def test_a_source_outlives_its_origin(site: BuildSite, origin: Path) -> None:
    server = site.server("--enable-push")
    project = Project(site.place("project"))
    project.add_download(DOWNLOAD, origin)
    site.client(sources=[Remote(url=server.url, push=True)]).run("source", "push", DOWNLOAD, project=project)
    origin.unlink()

    late = site.client(sources=[Remote(url=server.url)])
    checkout = site.place("checkout")
    late.run("source", "fetch", DOWNLOAD, project=project)
    late.run("source", "checkout", "--directory", str(checkout), DOWNLOAD, project=project)
    assert [path.read_bytes() for path in checkout.rglob("origin.bin")] == [CONTENT]


def test_a_source_that_nobody_pushed_is_fetched_from_its_origin(site: BuildSite, origin: Path) -> None:
    server = site.server("--enable-push")
    project = Project(site.place("project"))
    project.add_download(DOWNLOAD, origin)
    client = site.client(sources=[Remote(url=server.url)])
    client.run("source", "fetch", DOWNLOAD, project=project)


def test_one_server_keeps_artifacts_and_sources_of_one_build(site: BuildSite, origin: Path) -> None:
    server = site.server("--enable-push")
    project = site.project()
    project.add_download(DOWNLOAD, origin)
    remote = Remote(url=server.url, push=True)
    maker = site.client(artifacts=[remote], sources=[remote])
    built = maker.run("build", GREETING, DOWNLOAD, project=project)
    origin.unlink()

    late = site.client(artifacts=[remote], sources=[remote])
    assert manifest(late.fetch(built.artifact(GREETING))) == manifest(project.files(GREETING))
    assert (late.fetch(built.artifact(DOWNLOAD)) / "origin.bin").read_bytes() == CONTENT
    late.wipe()
    late.run("source", "fetch", DOWNLOAD, project=project)
