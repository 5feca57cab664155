"""A store with no room: the client's build ends as it should, and no name promises what is not there.

And a store that makes room: of its disk it never takes more than it was given, at any moment, whoever reads meanwhile.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.rpc_client import Client
from system.bst_client import Remote
from system.build_site import BuildSite
from system.project_maker import Project
from system.server_process import Millpond
from system.small_cache import KB, MB, Artifacts, taken_bytes
from system.small_disk import SmallDisk

from millpond._protos.google.bytestream import bytestream_pb2

BULKY = "bulky.bst"
TINY_QUOTA = "300K"
QUOTA_BYTES = 30 * MB
SIZES = [3 * KB] * 20 + [40 * KB] * 10 + [300 * KB] * 2 + [4 * MB]
"""An artifact of 5 MB: small files, larger ones, and one that is streamed."""
MANY_SIZES = [3 * KB] * 4 + [40 * KB] * 4 + [910 * KB] * 2
SOON_SECONDS = 30


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


# -- room on a disk of its own --------------------------------------------------------------------------------------


class Watched:
    """What ``df`` says of a disk, asked all the time.

    What is more than ``doubted_bytes`` is asked again, for up to 50 ms, and the least counts. It is for ext4, which counts
    what it hands out twice for an instant (``df_of_ext4.py`` shows it).
    """

    def __init__(self, path: Path, doubted_bytes: float = math.inf) -> None:
        self.path = path
        self._doubted_bytes = doubted_bytes
        self._before = self._used()
        self.most_bytes = 0
        self.least_free_bytes = self.most_free_since_bytes = self.free_bytes()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def _used(self) -> int:
        disk = os.statvfs(self.path)
        return (disk.f_blocks - disk.f_bfree) * disk.f_frsize

    def used_bytes(self) -> int:
        """Since it was empty."""
        return self._used() - self._before

    def free_bytes(self) -> int:
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def _watch(self) -> None:
        while not self._ended.wait(0.002):
            self.most_bytes = max(self.most_bytes, self._believed_bytes())
            free_bytes = self.free_bytes()
            if free_bytes <= self.least_free_bytes:
                self.least_free_bytes = self.most_free_since_bytes = free_bytes
            self.most_free_since_bytes = max(self.most_free_since_bytes, free_bytes)

    def _believed_bytes(self) -> int:
        used_bytes, again = self.used_bytes(), 0
        while used_bytes > self._doubted_bytes and again < 50:
            time.sleep(0.001)
            used_bytes, again = min(used_bytes, self.used_bytes()), again + 1
        return used_bytes

    def close(self) -> None:
        self._ended.set()
        self._watcher.join()


@contextmanager
def watching(path: Path, doubted_bytes: float = math.inf) -> Iterator[Watched]:
    watched = Watched(path, doubted_bytes)
    try:
        yield watched
    finally:
        watched.close()


def push_many(server: Millpond, prefix: str, count: int, sizes: Sequence[int] = SIZES) -> Artifacts:
    artifacts = Artifacts(server.port)
    for number in range(count):
        artifacts.push(f"{prefix} {number}", sizes)
    return artifacts


@contextmanager
def reading(server: Millpond, artifacts: Artifacts) -> Iterator[None]:
    """Somebody who reads what comes, and holds one slow stream open on each large blob."""
    ended = threading.Event()

    def read() -> None:
        with Client(f"127.0.0.1:{server.port}") as client:
            slow: list[Any] = []
            while not ended.wait(0.01):
                for digests in list(artifacts.made.values())[-3:]:
                    with suppress(grpc.RpcError):
                        client.read(client.read_name(digests[0]))
                        name = client.read_name(digests[-1])
                        slow.append(client.rpc("Read")(bytestream_pb2.ReadRequest(resource_name=name)))
                        next(slow[-1])
                        if len(slow) > 2:
                            slow.pop(0).cancel()
            for one in slow:
                one.cancel()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "xfs"])
def test_df_never_passes_the_quota_however_much_is_written_and_read(
    site: BuildSite, make_disk: Callable[..., SmallDisk], kind: str
) -> None:
    disk = make_disk(kind=kind, size_mib=400)  # XFS wants no less than 300
    with watching(disk.path, QUOTA_BYTES if kind == "ext4" else math.inf) as watched:
        server = site.server("--enable-push", "--quota", f"{QUOTA_BYTES}", "--reserve", "0", repo=disk.path / "repo")
        first = Artifacts(server.port)
        with reading(server, first), ThreadPoolExecutor(2) as pushing:
            second = pushing.submit(push_many, server, "second", 10)
            for number in range(10):
                first.push(f"first {number}", SIZES)
            second.result().close()
            first.push("last", SIZES)  # nobody pushes after it, however far the other one was behind
        assert watched.most_bytes <= QUOTA_BYTES
        assert watched.most_bytes >= 0.9 * QUOTA_BYTES
        assert first.is_whole("last")
        first.close()


def test_df_never_passes_a_quota_of_which_a_hundred_times_was_written(
    site: BuildSite, make_disk: Callable[..., SmallDisk]
) -> None:
    disk, quota_bytes, count = make_disk(kind="tmpfs", size_mib=100), 12 * MB, 310
    with watching(disk.path) as watched:
        server = site.server("--enable-push", "--quota", f"{quota_bytes}", "--reserve", "0", repo=disk.path / "repo")
        with ThreadPoolExecutor(2) as pushing:
            both = [pushing.submit(push_many, server, prefix, count, MANY_SIZES) for prefix in ("first", "second")]
            assert 2 * count * sum(MANY_SIZES) > 100 * quota_bytes
            for one in both:
                one.result().close()
        assert 0.9 * quota_bytes <= watched.most_bytes <= quota_bytes


def test_a_quota_that_is_made_smaller_holds_for_those_who_run(site: BuildSite) -> None:
    repo = site.place("repo")
    server = site.server("--enable-push", "--quota", "40M", repo=repo)
    push_many(server, "artifact", 6).close()
    assert taken_bytes(repo) > 28 * MB
    other = site.server("--quota", "20M", repo=repo)
    assert "20 MB (set here)" in other.stdout
    deadline = time.monotonic() + SOON_SECONDS
    while taken_bytes(repo) > 20 * MB and time.monotonic() < deadline:
        time.sleep(0.05)
    artifacts = push_many(server, "later", 6)
    assert taken_bytes(repo) <= 20 * MB
    assert artifacts.is_whole("later 5")
    artifacts.close()
    third = site.server(repo=repo)
    assert "20 MB (kept from before)" in third.stdout


def test_the_reserve_stays_free(site: BuildSite, make_disk: Callable[..., SmallDisk]) -> None:
    disk = make_disk(kind="tmpfs", size_mib=64)
    server = site.server("--enable-push", "--quota", "80%", "--reserve", "30M", repo=disk.path / "repo")
    with watching(disk.path) as watched:
        artifacts = push_many(server, "artifact", 12)
        assert 30 * MB <= watched.least_free_bytes <= 40 * MB
    assert artifacts.is_whole("artifact 11")
    artifacts.close()


def test_head_room_is_made_from_the_least_to_the_most(site: BuildSite, make_disk: Callable[..., SmallDisk]) -> None:
    disk = make_disk(kind="tmpfs", size_mib=80)
    head_room = ("--head-room-min", "30M", "--head-room-max", "60M")
    server = site.classic_server("--enable-push", *head_room, "--quota", "100%", repo=disk.path / "repo")
    with watching(disk.path) as watched:
        artifacts = push_many(server, "early", 6)
        assert all(artifacts.fetch(f"early {number}") for number in range(6))  # more than the least is still free
        for late in range(10):
            before = watched.free_bytes()
            artifacts.push(f"late {late}", SIZES)
            if watched.free_bytes() > before:
                break  # something went
        deadline = time.monotonic() + SOON_SECONDS
        while watched.most_free_since_bytes < 60 * MB * 0.95 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert watched.most_free_since_bytes >= 60 * MB * 0.95  # and then the rest was pushed
        assert watched.least_free_bytes >= 30 * MB * 0.95
    whole = artifacts.whole()
    assert f"late {late}" in whole
    assert "early 0" not in whole
    artifacts.close()
