"""A store with no room: the client's build ends as it should, and no name promises what is not there."""

from __future__ import annotations

import random

from system.bst_client import Remote
from system.build_site import BuildSite
from system.project_maker import Project

BULKY = "bulky.bst"
TINY_QUOTA = "300K"


def test_nothing_is_bound_in_a_store_that_had_no_room_for_it(site: BuildSite) -> None:
    server = site.server("--enable-push", "--quota", TINY_QUOTA)
    project = Project(site.place("project"))
    project.add_import(BULKY, {"bulk": random.Random(3).randbytes(3_000_000)})
    client = site.client(artifacts=[Remote(url=server.url, push=True)])
    outcome = client.attempt("build", BULKY, project=project)
    assert "BUG" not in outcome.output
    assert "Traceback" not in outcome.output
    assert "FAILED_PRECONDITION" in outcome.output  # the name is refused, as its blobs were
    assert outcome.pushed_to == []
    assert site.client(artifacts=[Remote(url=server.url)]).misses(outcome.artifact(BULKY))


def test_no_source_is_bound_in_a_store_that_had_no_room_for_it(site: BuildSite) -> None:
    server = site.server("--enable-push", "--quota", TINY_QUOTA)
    project, origin = Project(site.place("project")), site.place("origin")
    origin.write_bytes(random.Random(4).randbytes(3_000_000))
    project.add_download(BULKY, origin)
    client = site.client(sources=[Remote(url=server.url, push=True)])
    client.attempt("source", "push", BULKY, project=project)  # bst 2.8.1 ends with a TypeError of its own here
    origin.unlink()
    late = site.client(sources=[Remote(url=server.url)])
    assert late.attempt("source", "fetch", BULKY, project=project).exit_code != 0
