"""Artifacts that are made by commands in the real sandbox: strong and weak keys, rebuilds, build trees, failures."""

from __future__ import annotations

import shutil

import pytest
from system.bst_client import BstClient, Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.parts import require
from system.project_maker import Project
from system.server_process import Millpond

SYSROOT, PART, WORK, CHANCE, FAILURE = "sysroot.bst", "part.bst", "work.bst", "chance.bst", "failure.bst"


@pytest.fixture(scope="module", autouse=True)
def _a_real_sandbox() -> None:
    require("sandbox")


@pytest.fixture(scope="module")
def project(shared_site: BuildSite) -> Project:
    project = Project(shared_site.place("project"))
    project.add_sysroot(SYSROOT)
    project.add_import(PART, {"part": b"first edition\n"})
    project.add_manual(
        WORK,
        "mkdir -p %{install-root}/bin left-in-the-build-tree",
        "cp /part %{install-root}/copy-of-part",
        "cp /bin/busybox %{install-root}/bin/busybox",
        "ln -s busybox %{install-root}/bin/sh",
        build_depends=(SYSROOT, PART),
    )
    project.add_manual(CHANCE, "head -c 32 /dev/urandom > %{install-root}/chance", build_depends=(SYSROOT,))
    project.add_manual(FAILURE, "echo before it failed > trace", "false", build_depends=(SYSROOT,))
    return project


@pytest.fixture(scope="module")
def server(shared_site: BuildSite) -> Millpond:
    return shared_site.server("--enable-push")


@pytest.fixture(scope="module")
def builder(shared_site: BuildSite, server: Millpond) -> BstClient:
    return shared_site.client(artifacts=[Remote(url=server.url, push=True)])


@pytest.fixture(scope="module")
def work(builder: BstClient, project: Project) -> str:
    """The name of the artifact of ``WORK``, built and pushed with all that it depends on."""
    return builder.build(project, WORK)


@pytest.fixture
def reader(site: BuildSite, server: Millpond) -> BstClient:
    return site.client(artifacts=[Remote(url=server.url)])


def test_what_a_sandbox_built_comes_back(work: str, reader: BstClient) -> None:
    returned = reader.fetch(work)
    assert (returned / "copy-of-part").read_text() == "first edition\n"
    assert (returned / "bin/busybox").stat().st_mode & 0o111
    assert (returned / "bin/sh").readlink().name == "busybox"


def test_an_artifact_is_found_under_its_strong_and_under_its_weak_key(
    work: str, builder: BstClient, server: Millpond, site: BuildSite
) -> None:
    names = builder.names_of(work)
    assert len(names) == 2
    assert work in names
    first, second = (manifest(site.client(artifacts=[Remote(url=server.url)]).fetch(name)) for name in names)
    assert first == second


def test_a_build_that_is_not_strict_takes_an_artifact_by_its_weak_key(
    work: str, project: Project, server: Millpond, reader: BstClient, site: BuildSite
) -> None:
    later = Project(site.place("later"))
    shutil.copytree(project.path, later.path, dirs_exist_ok=True, symlinks=True)
    (later.files(PART) / "part").write_text("second edition\n")
    built = reader.run("--no-strict", "build", WORK, project=later)
    assert built.pulled_from == [server.url]
    returned = reader.check_out(work)
    assert (returned / "copy-of-part").read_text() == "first edition\n"


def test_a_rebuilt_artifact_takes_the_place_of_the_old_one(
    builder: BstClient, reader: BstClient, project: Project, server: Millpond, site: BuildSite
) -> None:
    artifact = builder.build(project, CHANCE)
    first = manifest(builder.check_out(artifact))
    builder.run("artifact", "delete", CHANCE, project=project)
    builder.configure()
    builder.run("build", CHANCE, project=project)
    builder.configure(artifacts=[Remote(url=server.url, push=True)])
    pushed = builder.run("artifact", "push", CHANCE, project=project)
    second = manifest(builder.check_out(artifact))
    assert pushed.pushed_to == [server.url]
    assert manifest(reader.fetch(artifact)) == second != first


def test_an_artifact_that_is_already_there_is_not_pushed_again(
    work: str, builder: BstClient, project: Project, server: Millpond
) -> None:
    assert builder.run("artifact", "push", "--deps", "all", WORK, project=project).pushed_to == []


def test_a_build_tree_is_pushed_and_pulled_when_both_sides_ask_for_it(
    site: BuildSite, project: Project, server: Millpond
) -> None:
    fresh = site.server("--enable-push")
    maker = site.client(artifacts=[Remote(url=fresh.url, push=True)])
    maker.run("--cache-buildtrees", "always", "build", WORK, project=project)
    taker = site.client(artifacts=[Remote(url=fresh.url)])
    taker.run("--pull-buildtrees", "artifact", "pull", "--deps", "all", WORK, project=project)
    shell = ("shell", "--build", "--use-buildtree", WORK, "--", "sh", "-c", "cd left-in-the-build-tree && echo there")
    assert "there" in taker.run(*shell, project=project).output.split()


def test_a_failed_build_is_shared_so_that_nobody_waits_for_it_twice(
    builder: BstClient, reader: BstClient, project: Project, server: Millpond
) -> None:
    failed = builder.attempt("build", FAILURE, project=project)
    assert failed.pushed_to[-1:] == [server.url]
    assert reader.pull(failed.artifact(FAILURE)).pulled_from == [server.url]
