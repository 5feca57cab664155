"""A disk that somebody else fills, or that fails: writes are told so, reads go on, nothing acknowledged is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
from system.build_site import BuildSite
from system.server_process import Millpond
from system.small_cache import KB, Artifacts, Refused
from system.small_disk import SmallDisk
from system.test_eviction_promises import pin

MakeDisk = Callable[..., SmallDisk]
CLEAR = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION}
"""What a push may be told. FAILED_PRECONDITION: its blobs had no room, and its name is asked for nevertheless."""


class Pusher:
    """Pushes artifacts of 2 MB as long as it may, and remembers what it was told."""

    def __init__(self, port: int, prefix: str) -> None:
        self.artifacts = Artifacts(port)
        self.prefix = prefix
        self.acknowledged: list[str] = []
        self.refusals: list[str] = []
        self.unclear: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._push_on)

    def push_one(self) -> bool:
        uri = f"{self.prefix} {len(self.acknowledged) + len(self.refusals)}"
        try:
            self.artifacts.push(uri, [100 * KB] * 18 + [10 * KB] * 20)
        except Refused as why:
            self.refusals.append(str(why))
            return False
        except grpc.RpcError as why:
            (self.refusals if why.code() in CLEAR else self.unclear).append(f"{why.code().name}: {why.details()}")
            self.refusals += [] if why.code() in CLEAR else [str(why.code())]
            return False
        self.acknowledged.append(uri)
        return True

    def start(self) -> None:
        self._thread.start()

    def _push_on(self) -> None:
        while not self._ended.is_set():
            if not self.push_one():
                time.sleep(0.05)  # as a client that comes again

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def await_more(self, count: int, seconds: float = 60) -> None:
        """Until so many more pushes were acknowledged."""
        wanted, deadline = len(self.acknowledged) + count, time.monotonic() + seconds
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, f"no push went through any more: {self.refusals[-3:]}"
            time.sleep(0.02)

    def await_refusals(self, count: int, seconds: float = 60) -> None:
        wanted, deadline = len(self.refusals) + count, time.monotonic() + seconds
        while len(self.refusals) < wanted:
            assert time.monotonic() < deadline, "nothing was refused"
            time.sleep(0.02)


def check(server: Millpond, pusher: Pusher) -> None:
    """Nothing but clear words was said."""
    assert not pusher.unclear
    assert "Traceback" not in server.stderr
    assert "incident" not in server.stderr


def test_a_disk_filled_to_the_brim_during_a_push_makes_way_for_the_next(site: BuildSite, make_disk: MakeDisk) -> None:
    """The other program takes all once; what is old goes, and pushes and reads go on."""
    disk = make_disk(kind="tmpfs")
    server = site.server("--enable-push", "--reserve", "0", repo=disk.path / "repo")
    pusher = Pusher(server.port, "during")
    pusher.start()
    pusher.await_more(5)
    disk.fill()
    pusher.await_more(5)
    kept = pusher.acknowledged[-1]
    assert pusher.artifacts.is_whole(kept)
    disk.free()
    pusher.await_more(3)
    pusher.stop()
    check(server, pusher)
    whole = pusher.artifacts.whole()
    assert whole[-2:] == pusher.acknowledged[-2:]
    server.stop()
    again = Artifacts(site.server(repo=disk.path / "repo").port)
    again.made = {uri: pusher.artifacts.made[uri] for uri in whole}
    assert again.whole() == whole


def test_a_disk_that_stays_full_is_told_and_what_is_pinned_is_read_all_the_while(
    site: BuildSite, make_disk: MakeDisk
) -> None:
    """The other program takes whatever eviction frees."""
    disk = make_disk(kind="tmpfs")
    server = site.server("--enable-push", "--reserve", "0", repo=disk.path / "repo")
    pusher = Pusher(server.port, "pinned")
    assert all(pusher.push_one() for _ in range(3))
    pin(disk.path / "repo", "pinned*")
    pinned = list(pusher.acknowledged)
    pusher.prefix = "during"
    pusher.start()
    pusher.await_more(2)
    disk.fill_for_ever()
    pusher.await_refusals(1)
    for _ in range(3):
        assert all(pusher.artifacts.is_whole(uri) for uri in pinned)
    disk.free()
    pusher.await_more(3)
    pusher.stop()
    check(server, pusher)
    assert any("RESOURCE_EXHAUSTED" in why or why.startswith("8:") for why in pusher.refusals), pusher.refusals
    whole = pusher.artifacts.whole()
    assert [uri for uri in whole if uri in pinned] == pinned
    assert whole[-2:] == pusher.acknowledged[-2:]


def test_a_disk_without_inodes_is_told_and_reads_go_on(site: BuildSite, make_disk: MakeDisk) -> None:
    disk = make_disk(kind="tmpfs", options="nr_inodes=400")
    server = site.server("--enable-push", "--reserve", "0", "--quota", "16M", repo=disk.path / "repo")
    pusher = Pusher(server.port, "early")
    assert pusher.push_one()
    pin(disk.path / "repo", "early*")
    files = disk.take_inodes()
    pusher.prefix = "during"
    for _ in range(3):
        pusher.push_one()  # what it evicts may be enough
    assert pusher.artifacts.is_whole("early 0")
    for file in files:
        file.unlink()
    pusher.prefix = "late"
    pusher.start()
    pusher.await_more(2)
    pusher.stop()
    check(server, pusher)
    assert pusher.artifacts.whole()[-1] == pusher.acknowledged[-1]


def test_a_disk_that_fails_is_read_only_and_says_so(site: BuildSite, make_disk: MakeDisk) -> None:
    """The kernel remounts a disk that it does not trust. After a repair and a restart all that was acknowledged is there."""
    disk = make_disk(kind="ext4", options="errors=remount-ro")
    server = site.server("--enable-push", "--reserve", "0", repo=disk.path / "repo")
    pusher = Pusher(server.port, "early")
    pusher.start()
    pusher.await_more(3)
    disk.fail()
    pusher.await_refusals(3)
    pusher.stop()
    acknowledged = list(pusher.acknowledged)
    assert acknowledged
    for uri in acknowledged:
        assert pusher.artifacts.is_whole(uri)
    check(server, pusher)
    assert all(
        "UNAVAILABLE" in why or "RESOURCE_EXHAUSTED" in why or why[:2] in ("8:", "14") for why in pusher.refusals
    )
