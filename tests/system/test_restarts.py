"""Servers that stop, are killed and come back: nothing that was acknowledged is lost, and what broke can be retried."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.project_maker import GREETING, Project

HEAVY = "heavy.bst"
HEAVY_FILES, HEAVY_BYTES = 48, 5_000_000
KILL_AFTER_BYTES = 30_000_000
DEADLINE_SECONDS = 60


def test_an_artifact_outlives_a_restart(site: BuildSite) -> None:
    repo, project = site.place("repo"), site.project()
    server = site.server("--enable-push", repo=repo)
    artifact = site.client(artifacts=[Remote(url=server.url, push=True)]).build(project, GREETING)
    server.stop()
    again = site.server(repo=repo)
    reader = site.client(artifacts=[Remote(url=again.url)])
    assert manifest(reader.fetch(artifact)) == manifest(project.files(GREETING))


@dataclass(frozen=True)
class Aftermath:
    """What is left when a server was killed in the middle of a push, restarted, and the push tried again."""

    url: str
    project: Project
    pushed_before: str
    pushed_again: str


@pytest.fixture(scope="module")
def aftermath(shared_site: BuildSite) -> Aftermath:
    site = shared_site
    repo, project = site.place("repo"), site.project()
    rng = random.Random(9)
    project.add_import(HEAVY, {f"{number}": rng.randbytes(HEAVY_BYTES) for number in range(HEAVY_FILES)})
    server = site.server("--enable-push", repo=repo)
    client = site.client(artifacts=[Remote(url=server.url, push=True)])
    before = client.build(project, GREETING)

    idle_bytes = _bytes_under(repo)
    push = client.start("build", HEAVY, project=project)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (pushed := _bytes_under(repo) - idle_bytes) < KILL_AFTER_BYTES and time.monotonic() < deadline:
        time.sleep(0.005)
    server.kill()
    assert push.running
    assert pushed >= KILL_AFTER_BYTES  # once it is killed it may be less: blocks that files had ahead of their ends go
    assert _bytes_under(repo) - idle_bytes < HEAVY_FILES * HEAVY_BYTES
    site.server("--enable-push", repo=repo, port=server.port)
    broken = push.wait()  # casd tries again by itself, so this may have ended well
    client.run("artifact", "push", HEAVY, project=project)
    return Aftermath(server.url, project, before, broken.artifact(HEAVY))


def test_a_push_that_a_killed_server_broke_succeeds_when_it_is_tried_again(
    site: BuildSite, aftermath: Aftermath
) -> None:
    reader = site.client(artifacts=[Remote(url=aftermath.url)])
    assert manifest(reader.fetch(aftermath.pushed_again)) == manifest(aftermath.project.files(HEAVY))


def test_what_was_pushed_before_a_server_was_killed_is_still_whole(site: BuildSite, aftermath: Aftermath) -> None:
    reader = site.client(artifacts=[Remote(url=aftermath.url)])
    assert manifest(reader.fetch(aftermath.pushed_before)) == manifest(aftermath.project.files(GREETING))


def _bytes_under(directory: Path) -> int:
    """Bytes on disk; files may come and go while we count."""
    total = 0
    for folder, _directories, files in os.walk(directory):
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
