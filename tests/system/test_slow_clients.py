"""Clients that take their time between a question and what follows from its answer: it stays true for them.

These tests do next to nothing for minutes, so they have a process of their own (``conftest.py``); what they write meanwhile
is spread over all that time, lest it disturb the others.
"""

from __future__ import annotations

import time

import pytest
from system.bst_client import Remote
from system.build_site import BuildSite
from system.file_tree import manifest
from system.holding_proxy import HoldingProxy
from system.small_cache import KB, MB, Artifacts
from unit.store.repositories import noise

HELD_SECONDS = 300
QUOTA_BYTES = 22 * MB
BLOBS = [100 * KB] * 40
ARTIFACTS = 11
"""Each of :data:`BLOBS`: twice the quota."""


@pytest.mark.timeout(HELD_SECONDS + 300)
def test_a_client_held_for_five_minutes_between_its_question_and_its_push_loses_nothing(site: BuildSite) -> None:
    """Twice the quota is written meanwhile; what it was told is here is still here when it binds its name."""
    server = site.server("--enable-push", "--quota", f"{QUOTA_BYTES}")
    others = Artifacts(server.port)
    project = site.project()
    files = {f"{number}": noise(size, f"file {number}") for number, size in enumerate(BLOBS)}
    project.add_import("early.bst", files)
    site.client(artifacts=[Remote(url=server.url, push=True)]).build(project, "early.bst")
    project.add_import("late.bst", {**files, "one more": b"so that its key differs"})
    proxy = HoldingProxy(f"127.0.0.1:{server.port}", held="PushBlob", after="FindMissingBlobs")
    try:
        push = site.client(artifacts=[Remote(url=proxy.url, push=True)]).start("build", "late.bst", project=project)
        assert proxy.holding.wait(60), "the client never came to its push"
        assert proxy.seen.count("Write") + proxy.seen.count("BatchUpdateBlobs") < 4  # nearly all was found present
        held_since = time.monotonic()
        for number in range(ARTIFACTS):
            others.push(f"artifact {number}", BLOBS)
            time.sleep(max(0.0, held_since + HELD_SECONDS * (number + 1) / ARTIFACTS - time.monotonic()))
        assert push.running
        assert not others.fetch("artifact 0"), "nothing had to go, so nothing was at stake"
        proxy.release()
        outcome = push.wait()
    finally:
        proxy.close()
        others.close()
    assert outcome.pushed_to, outcome.output
    reader = site.client(artifacts=[Remote(url=server.url)])
    assert manifest(reader.fetch(outcome.artifact("late.bst"))) == manifest(project.files("late.bst"))
