"""A cache with no room for what a client of BuildStream 1 built: its build ends well, and no name is left that lies."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.old_clients import CLASSIC, Release, despite_hangs

BULKY = "bulky.bst"
TINY_QUOTA = "300K"


def batched(chance: random.Random) -> dict[str, bytes]:
    """What goes in batches where the server has them."""
    return {f"file {number}": chance.randbytes(20_000) for number in range(40)}


def streamed(chance: random.Random) -> dict[str, bytes]:
    """What goes as a stream of its own."""
    return {"bulk": chance.randbytes(3_000_000)}


@pytest.mark.parametrize("content", [batched, streamed])
@pytest.mark.parametrize("number", CLASSIC)
@despite_hangs
def test_where_there_is_no_room_a_build_ends_well_without_its_push(
    site: BuildSite, number: str, content: Callable[[random.Random], dict[str, bytes]]
) -> None:
    release, repo = Release(number), site.place("repo")
    server = site.server("--enable-push", "--quota", TINY_QUOTA, repo=repo)
    project = release.empty_project(site.place("project"), "full")
    project.add_import(BULKY, content(random.Random(number)))
    client = site.old_client(release, artifacts=[Remote(url=server.url, push=True)])
    outcome = client.attempt("build", BULKY, project=project)
    assert (outcome.exit_code, outcome.pushes) == (0, 0), outcome.output
    assert "Traceback" not in outcome.output
    assert millpond("names", "list", repo).output == ""
