"""What a small cache keeps and what it lets go, by the sizes that a user would try it with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from contract.rpc_client import Client, refused
from system.build_site import BuildSite
from system.server_process import Millpond
from system.small_cache import KB, MB, Artifacts, Refused, taken_bytes
from unit.store.repositories import noise

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import Digest

QUOTA_BYTES = 22 * MB
SHAPES = {"files of 100 KB": 100 * KB, "files of 40 KB": 40 * KB, "files of 1 MB": MB, "one file": 0}
"""How an artifact of some size is cut into blobs."""


def cut(size_bytes: int, shape: str) -> list[int]:
    piece = SHAPES[shape] or size_bytes
    return [piece] * (size_bytes // piece)


class SmallCache(Artifacts):
    """A server with a quota of 22 MB, and what is pushed to it."""

    def __init__(self, server: Millpond, repo: Path) -> None:
        super().__init__(server.port)
        self.server = server
        self.repo = repo

    def whole(self) -> list[str]:
        """As ever, once eviction rests: to ask for one is to use it, and then another goes."""
        before, since = None, time.monotonic()
        while time.monotonic() - since < 0.5:
            lies_there = sorted(entry.name for entry in os.scandir(self.repo / "segments"))
            if lies_there != before:
                before, since = lies_there, time.monotonic()
            time.sleep(0.02)
        return super().whole()

    def refusal_of(self, sizes: list[int], seed: str) -> tuple[float, str] | None:
        """After how many seconds these are refused, and what is said; None if they are taken."""
        begun = time.monotonic()
        try:
            self.put(sizes, seed)
        except Refused as why:
            return time.monotonic() - begun, str(why)
        return None


@pytest.fixture
def cache(site: BuildSite) -> Iterator[SmallCache]:
    repo = site.place("repo")
    cache = SmallCache(site.server("--enable-push", "--quota", "22M", repo=repo), repo)
    yield cache
    cache.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_fits_stays_and_more_takes_only_the_oldest(cache: SmallCache, shape: str) -> None:
    cache.push("first", cut(15 * MB, shape))
    cache.push("second", cut(5 * MB, shape))
    time.sleep(0.3)  # for an eviction that ought not to come
    assert cache.fetch("first")
    time.sleep(0.002)  # uses within one millisecond are of one age
    assert cache.fetch("second")
    cache.push("third", cut(5 * MB, shape))
    assert cache.whole() == ["second", "third"]


def test_both_of_20_mb_are_whole_to_the_byte(cache: SmallCache) -> None:
    cache.push("first", cut(15 * MB, "files of 100 KB"))
    cache.push("second", cut(5 * MB, "files of 100 KB"))
    assert cache.whole() == ["first", "second"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pulled_artifact_outlives_an_older_one(cache: SmallCache, shape: str) -> None:
    for uri in ("first", "second", "third"):
        cache.push(uri, cut(5 * MB, shape))
    time.sleep(0.002)  # uses within one millisecond are of one age
    assert cache.fetch("first")
    for uri in ("fourth", "fifth"):
        cache.push(uri, cut(5 * MB, shape))
    whole = cache.whole()
    assert "first" in whole
    assert "second" not in whole
    assert whole[-2:] == ["fourth", "fifth"]


def test_a_pull_through_a_second_server_counts(site: BuildSite, cache: SmallCache) -> None:
    other = Artifacts(site.server(repo=cache.repo).port)
    for uri in ("first", "second", "third"):
        cache.push(uri, cut(5 * MB, "files of 100 KB"))
    time.sleep(0.002)  # uses within one millisecond are of one age
    assert other.fetch("first")
    for uri in ("fourth", "fifth"):
        cache.push(uri, cut(5 * MB, "files of 100 KB"))
    other.close()
    assert "first" in cache.whole()
    assert "second" not in cache.whole()


def test_who_reads_slowly_holds_up_nobody_who_pushes(cache: SmallCache) -> None:
    cache.push("first", [8 * MB])
    cache.push("second", [8 * MB])
    # Its window stays small, so that the server cannot finish.
    with Client(f"127.0.0.1:{cache.server.port}", options=[("grpc.http2.bdp_probe", 0)]) as reader:
        name = reader.read_name(cache.made["first"][0])
        slow = reader.rpc("Read")(bytestream_pb2.ReadRequest(resource_name=name))
        read_bytes = len(next(slow).data)
        time.sleep(1.2)  # what is read is noted within a second
        assert cache.fetch("second")
        begun = time.monotonic()
        cache.push("third", [8 * MB])  # the first goes, but its bytes stay
        assert time.monotonic() - begun < 15
        assert cache.whole() == ["third"]
        assert read_bytes + sum(len(part.data) for part in slow) == 8 * MB  # what was begun ends well
    cache.push("fourth", [8 * MB])
    assert cache.whole() == ["third", "fourth"]


@contextmanager
def watched(directory: Path) -> Iterator[list[int]]:
    """What the directory takes, measured all the time."""
    sizes = [taken_bytes(directory)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            sizes.append(taken_bytes(directory))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sizes
    finally:
        ended.set()
        watcher.join()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_quota_is_reached_and_never_passed(cache: SmallCache, shape: str) -> None:
    with watched(cache.repo) as sizes:
        for number in range(16):
            cache.push(f"artifact {number}", cut(4 * MB, shape))
    assert max(sizes) <= QUOTA_BYTES
    assert max(sizes) + max(cut(4 * MB, shape)) >= 0.95 * QUOTA_BYTES  # one more would have fitted otherwise
    assert cache.whole()[-3:] == ["artifact 13", "artifact 14", "artifact 15"]


def test_a_blob_that_can_never_fit_is_refused_at_its_first_message(cache: SmallCache) -> None:
    cache.push("first", cut(15 * MB, "files of 100 KB"))
    sent = 0

    def messages() -> Iterator[bytestream_pb2.WriteRequest]:
        nonlocal sent
        name = cache.client.write_name(Digest(Digest.of(b"huge").key, 30 * MB))
        for number in range(30):
            sent += 1
            yield bytestream_pb2.WriteRequest(resource_name=name, write_offset=number * MB, data=noise(MB))
            answered.wait(5 if number else 0)  # what is on its way when the answer comes is no fault

    answered = threading.Event()
    with refused("RESOURCE_EXHAUSTED", "larger"):
        try:
            cache.client.write(messages())
        finally:
            answered.set()
    assert sent <= 3
    assert cache.whole() == ["first"]


def test_a_lie_about_a_size_evicts_nothing(cache: SmallCache) -> None:
    cache.push("first", cut(15 * MB, "files of 100 KB"))
    ends = threading.Event()

    def lie(number: int) -> Iterator[bytestream_pb2.WriteRequest]:
        name = cache.client.write_name(Digest(Digest.of(f"{number}".encode()).key, 15 * MB))
        yield bytestream_pb2.WriteRequest(resource_name=name, data=b"only this")
        ends.wait(3)

    def tell(number: int) -> None:
        with suppress(grpc.RpcError):
            cache.client.rpc("Write")(lie(number), timeout=5)

    liars = [threading.Thread(target=tell, args=(number,)) for number in range(4)]
    for liar in liars:
        liar.start()
    time.sleep(2)  # an upkeep process that believed them would long have begun
    ends.set()
    for liar in liars:
        liar.join()
    assert cache.whole() == ["first"]


def test_what_was_found_present_stays_while_twice_the_quota_is_written(cache: SmallCache) -> None:
    digests = cache.put([100 * KB] * 40, "found")
    assert cache.client.find_missing(digests) == []
    for number in range(11):
        cache.push(f"artifact {number}", cut(4 * MB, "files of 100 KB"))
    assert cache.client.find_missing(digests) == []
    cache.bind("found", digests)
    assert cache.is_whole("found")


def test_leases_hold_no_more_than_half(cache: SmallCache) -> None:
    """Uploads that nobody ever names do not lock the cache."""
    for number in range(15):
        cache.put([100 * KB] * 40, f"nameless {number}")
    cache.push("named", cut(4 * MB, "files of 100 KB"))
    assert cache.is_whole("named")


EVICTED = re.compile(r"evicted (\d+) bytes .* (\d+) bytes were moved")


def test_what_is_kept_is_not_copied_round_and_round(cache: SmallCache) -> None:
    """Hot and cold blobs alternate in every segment; the hot ones are used all the time."""
    hot: list[str] = []
    for number in range(12):
        # Both names' blobs are uploaded together, every other one for each.
        digests = cache.put([10 * KB] * 200, f"mixed {number}")
        cache.bind(f"hot {number}", digests[::2])
        cache.bind(f"cold {number}", digests[1::2])
        hot = [*hot, f"hot {number}"][-8:]
        for uri in hot:
            cache.fetch(uri)
    for number in range(20):
        cache.push(f"filler {number}", cut(2 * MB, "files of 40 KB"))
        for uri in hot:
            assert cache.fetch(uri), f"{uri} is used all the time and was evicted at {number}"
    cache.server.stop()  # the last line is written at the end
    freed, moved = (sum(map(int, counts)) for counts in zip(*EVICTED.findall(cache.server.stderr), strict=True))
    assert freed > 2 * QUOTA_BYTES / 3
    assert moved <= 3 * freed


def test_when_all_is_pinned_or_leased_the_refusal_says_so_within_a_second(cache: SmallCache) -> None:
    cache.push("pinned", cut(10 * MB, "files of 100 KB"))
    pin(cache.repo, "pinned")
    refusals = [why for i in range(40) if (why := cache.refusal_of([100 * KB] * 10, f"leased {i}"))]
    assert len(refusals) > 3, "pins hold nearly half of the quota, leases the other half, and there was room"
    assert all("pinned" in why and "promised" in why for _, why in refusals[3:]), refusals
    assert min(seconds for seconds, _ in refusals) < 1
    assert cache.is_whole("pinned")


def pin(repo: Path, pattern: str) -> None:
    subprocess.run([sys.executable, "-m", "millpond", "pin", repo, pattern], check=True)  # counts when it has ended
