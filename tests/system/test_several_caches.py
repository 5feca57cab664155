"""Caches in a row, and caches whose names and blobs live on different servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING


class Split(NamedTuple):
    """Which server keeps the names, and which the blobs."""

    index: str
    storage: str

    def remotes(self, *, push: bool = False) -> list[Remote]:
        return [
            Remote(url=self.index, type="index", push=push),
            Remote(url=self.storage, type="storage", push=push),
        ]


def _index_only_with_foreign_storage(site: BuildSite) -> Split:
    return Split(site.server("--enable-push", "--index-only").url, site.casd().url)


def _index_only_with_storage_of_ours(site: BuildSite) -> Split:
    return Split(site.server("--enable-push", "--index-only").url, site.server("--enable-push").url)


def _whole_server_as_index_with_foreign_storage(site: BuildSite) -> Split:
    return Split(site.server("--enable-push").url, site.casd().url)


def _two_whole_servers(site: BuildSite) -> Split:
    return Split(site.server("--enable-push").url, site.server("--enable-push").url)


@pytest.mark.parametrize(
    "split_of",
    [
        _index_only_with_foreign_storage,
        _index_only_with_storage_of_ours,
        _whole_server_as_index_with_foreign_storage,
        _two_whole_servers,
    ],
    ids=lambda function: function.__name__.strip("_"),
)
def test_names_and_blobs_may_live_on_different_servers(
    site: BuildSite, tmp_path: Path, split_of: Callable[[BuildSite], Split]
) -> None:
    split, project, origin = split_of(site), site.project(), tmp_path / "origin.bin"
    origin.write_bytes(b"from far away" * 1000)
    project.add_download("download.bst", origin)
    maker = site.client(artifacts=split.remotes(push=True), sources=split.remotes(push=True))
    artifact = maker.run("build", GREETING, "download.bst", project=project).artifact(GREETING)
    origin.unlink()

    reader = site.client(artifacts=split.remotes(), sources=split.remotes())
    assert manifest(reader.fetch(artifact)) == manifest(project.files(GREETING))
    reader.run("source", "fetch", "download.bst", project=project)


def test_blobs_that_are_gone_from_the_storage_are_a_miss_and_no_error(site: BuildSite) -> None:
    index, project = site.server("--enable-push", "--index-only"), site.project()
    full, emptied = Split(index.url, site.casd().url), Split(index.url, site.casd().url)
    site.client(artifacts=full.remotes(push=True)).build(project, GREETING)
    outcome = site.client(artifacts=emptied.remotes()).run("build", GREETING, project=project)
    assert outcome.pulled_from == []


def test_what_the_first_cache_misses_comes_from_the_second(site: BuildSite) -> None:
    first, second, project = site.server("--enable-push"), site.server("--enable-push"), site.project()
    artifact = site.client(artifacts=[Remote(url=second.url, push=True)]).build(project, GREETING)
    reader = site.client(artifacts=[Remote(url=first.url), Remote(url=second.url)])
    assert reader.pull(artifact).pulled_from == [second.url]


def test_what_came_from_the_second_cache_is_pushed_to_the_first(site: BuildSite) -> None:
    first, second, project = site.server("--enable-push"), site.server("--enable-push"), site.project()
    artifact = site.client(artifacts=[Remote(url=second.url, push=True)]).build(project, GREETING)
    carrier = site.client(artifacts=[Remote(url=first.url, push=True), Remote(url=second.url)])
    carried = carrier.run("build", GREETING, project=project)
    assert (carried.pulled_from, carried.pushed_to) == ([second.url], [first.url])
    reader = site.client(artifacts=[Remote(url=first.url)])
    assert manifest(reader.fetch(artifact)) == manifest(project.files(GREETING))


def test_a_build_goes_on_when_its_only_cache_cannot_be_reached(site: BuildSite) -> None:
    gone, project = site.server("--enable-push"), site.project()
    gone.stop()
    site.client(artifacts=[Remote(url=gone.url, push=True, retries=0)]).run("build", GREETING, project=project)
