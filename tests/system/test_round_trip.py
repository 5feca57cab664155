"""The main job: what one client builds and pushes, another pulls, and every byte of it is the same."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from system import file_tree
from system.bst_client import Remote
from system.build_site import BuildSite
from system.project_maker import Project

DEMANDING = "demanding.bst"


@dataclass(frozen=True)
class Trip:
    """Where the files were before they were built, and where they are after they came back from the cache."""

    original: Path
    returned: Path


@pytest.fixture(scope="module")
def trip(shared_site: BuildSite) -> Trip:
    server = shared_site.server("--enable-push")
    client = shared_site.client(artifacts=[Remote(url=server.url, push=True)])
    project = Project(shared_site.place("project"))
    project.add_import(DEMANDING, {})
    file_tree.write_demanding_tree(project.files(DEMANDING))
    artifact = client.build(project, DEMANDING)
    client.wipe()
    assert client.pull(artifact).pulled_from == [server.url]
    return Trip(project.files(DEMANDING), client.check_out(artifact))


def test_a_tree_of_20_000_files_comes_back_as_it_was(trip: Trip) -> None:
    before, after = file_tree.manifest(trip.original), file_tree.manifest(trip.returned)
    assert len(before) > 20_000
    assert {path: (kind, after.get(path)) for path, kind in before.items() if after.get(path) != kind} == {}
    assert after.keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        (file_tree.EMPTY_FILE, 0),
        (file_tree.LIMIT_FILE, file_tree.BATCH_LIMIT_BYTES),
        (file_tree.ABOVE_LIMIT_FILE, file_tree.BATCH_LIMIT_BYTES + 1),
        (file_tree.LARGE_FILE, file_tree.LARGE_BYTES),
        (file_tree.ODD_NAME, 3),
    ],
)
def test_a_file_of_any_size_and_name_comes_back(trip: Trip, name: str, size_bytes: int) -> None:
    assert (trip.returned / name).stat().st_size == size_bytes
    assert (trip.returned / name).read_bytes() == (trip.original / name).read_bytes()


def test_an_empty_directory_comes_back(trip: Trip) -> None:
    assert list((trip.returned / file_tree.EMPTY_DIRECTORY).iterdir()) == []


@pytest.mark.parametrize("name", [file_tree.LINK, file_tree.DANGLING_LINK, file_tree.DIRECTORY_LINK])
def test_a_symbolic_link_comes_back_as_a_link(trip: Trip, name: str) -> None:
    assert (trip.returned / name).is_symlink()
    assert (trip.returned / name).readlink() == (trip.original / name).readlink()


def test_a_program_stays_executable_and_nothing_else_becomes_so(trip: Trip) -> None:
    executable = {
        path.relative_to(trip.returned).as_posix()
        for path in trip.returned.glob("[!m]*/*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o111
    }
    assert executable == {file_tree.PROGRAM}


def test_clients_that_push_the_same_at_once_leave_one_whole_artifact(site: BuildSite) -> None:
    server, project = site.server("--enable-push"), Project(site.place("project"))
    rng = random.Random(5)
    project.add_import(DEMANDING, {f"{number}": rng.randbytes(20_000) for number in range(500)})
    remote = Remote(url=server.url, push=True)
    pushes = [site.client(artifacts=[remote]).start("build", DEMANDING, project=project) for _ in range(4)]
    outcomes = [push.wait() for push in pushes]
    assert [outcome.exit_code for outcome in outcomes] == [0] * 4
    artifact = outcomes[0].artifact(DEMANDING)
    returned = site.client(artifacts=[remote]).fetch(artifact)
    assert file_tree.manifest(returned) == file_tree.manifest(project.files(DEMANDING))
