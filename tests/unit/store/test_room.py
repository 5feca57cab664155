"""Who finds no room waits for it, says so, and is told at once when there will be none."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import MIB, soon

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.failures import told
from millpond.store.index import Index
from millpond.store.repository.layout import REPOSITORY_FORMAT, Layout, write_marker
from millpond.store.room import waiting as room_module
from millpond.store.room.pressure import Held
from millpond.store.room.space import Space
from millpond.store.room.waiting import NEVER, Room

QUOTA_BYTES = 100 * MIB


class Scene:
    """A full repository, its upkeep's lock, and threads that want room."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout(str(path / "repo"))
        os.mkdir(self.layout.root)
        for directory in self.layout.directories:
            os.mkdir(directory)
        write_marker(self.layout, {"format": REPOSITORY_FORMAT, "quota_bytes": QUOTA_BYTES})
        self.index = Index(str(path / "index"))
        self.writer = GroupWriter(self.index.writing, "index-writer")
        self.space = Space(self.index, self.layout, reserve_bytes=0)
        self.closing = threading.Event()
        self.room = Room(self.space, self.index, self.writer, self.closing)
        self.threads = ThreadPoolExecutor(4)
        self.keeper = -1
        self.do(lambda txn: self.space.takes(txn, 1, 95 * MIB))

    def do(self, work: Callable[[Transaction], Any]) -> Any:
        return self.writer.run(work)

    def keep(self) -> None:
        """Upkeep begins."""
        self.keeper = os.open(self.layout.upkeeper_lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.keeper, fcntl.LOCK_EX)

    def end_upkeep(self) -> None:
        if self.keeper >= 0:
            os.close(self.keeper)
            self.keeper = -1

    def claim(self, size_bytes: int) -> None:
        self.room.claim(size_bytes, lambda txn: self.space.claim(txn, size_bytes))

    def begin(self, size_bytes: int) -> "Future[None]":
        """A thread that claims, once upkeep can see that it waits."""
        waiting = self.wanted
        claiming = self.threads.submit(self.claim, size_bytes)
        assert soon(lambda: self.wanted > waiting or claiming.done())
        return claiming

    @property
    def wanted(self) -> int:
        """What somebody waits for, as the ledger has it."""
        with self.index.reading() as txn:
            return sum(
                int.from_bytes(value, "little")
                for key, value in txn.cursor(self.index.space)
                if key.startswith(b"want:")
            )

    def close(self) -> None:
        self.end_upkeep()
        self.closing.set()
        self.threads.shutdown()
        self.writer.close()
        self.index.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_where_there_is_room_nobody_waits(scene: Scene) -> None:
    scene.claim(MIB)
    assert scene.wanted == 0


def test_without_upkeep_there_is_nothing_to_wait_for(scene: Scene) -> None:
    with pytest.raises(NoSpace):
        scene.claim(20 * MIB)
    assert scene.wanted == 0


def test_who_waits_is_seen_and_gets_the_room_that_is_made(scene: Scene) -> None:
    scene.keep()
    claiming = scene.begin(20 * MIB)
    assert scene.space.pressure().to_free_bytes > 15 * MIB
    scene.do(lambda txn: scene.space.takes(txn, 2, 1 * MIB))  # the index is written meanwhile
    assert not claiming.done()
    scene.do(lambda txn: scene.space.free(txn, 1))
    claiming.result(10)
    assert scene.wanted == 0
    assert scene.space.pressure().claimed_bytes == 20 * MIB


def test_names_wait_for_room_that_is_made_also_where_that_cannot_be_said(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.keep()
    refused = threading.Event()

    def no_room(*_: object) -> None:
        refused.set()
        raise NoSpace

    monkeypatch.setattr(scene.space, "want", no_room)
    coming = scene.threads.submit(scene.room.comes, 8 * MIB)
    assert refused.wait(10)
    assert not coming.done()
    scene.do(lambda txn: scene.space.takes(txn, 1, 50 * MIB))
    assert coming.result(10)


def test_names_are_told_at_once_when_nothing_can_go(scene: Scene) -> None:
    scene.keep()
    coming = scene.threads.submit(scene.room.comes, 8 * MIB)
    assert soon(lambda: scene.wanted == 8 * MIB)
    scene.do(lambda txn: scene.space.cannot_free(txn, Held(1, 2, 3)))
    assert coming.result(2) is False
    assert soon(lambda: scene.wanted == 0)


def test_two_who_wait_are_both_seen_and_the_second_waits_on_where_only_one_fits(scene: Scene) -> None:
    scene.keep()
    first, second = scene.begin(60 * MIB), scene.begin(60 * MIB)
    assert scene.wanted == 120 * MIB
    scene.do(lambda txn: scene.space.free(txn, 1))
    assert soon(lambda: first.done() != second.done())
    assert soon(lambda: scene.wanted == 60 * MIB)
    scene.do(lambda txn: scene.space.give_back(txn, 60 * MIB))
    first.result(10)
    second.result(10)


def test_when_nothing_can_go_the_refusal_says_what_holds_the_space(scene: Scene) -> None:
    scene.keep()
    claiming = scene.begin(20 * MIB)
    scene.do(lambda txn: scene.space.cannot_free(txn, Held(40 * MIB, 50 * MIB, 0)))
    with pytest.raises(NoSpace) as refusal:
        claiming.result(10)
    words = str(refusal.value)
    assert "can free nothing" in words
    assert "41.9 MB are pinned" in words
    assert "52.4 MB are promised to clients" in words
    assert "104.9 MB" in words  # the quota
    assert scene.wanted == 0


def test_what_upkeep_said_before_somebody_asked_is_not_believed(scene: Scene) -> None:
    scene.keep()
    scene.do(lambda txn: scene.space.cannot_free(txn, Held(1, 2, 3)))
    claiming = scene.begin(20 * MIB)
    scene.do(lambda txn: scene.space.free(txn, 1))
    claiming.result(10)


def test_room_that_is_there_counts_even_when_no_more_can_be_freed(scene: Scene) -> None:
    scene.keep()
    claiming = scene.begin(20 * MIB)

    def enough_and_no_more(txn: Transaction) -> None:
        scene.space.takes(txn, 1, 60 * MIB)
        scene.space.cannot_free(txn, Held(1, 2, 3))

    scene.do(enough_and_no_more)
    claiming.result(10)


def test_who_waits_is_told_when_upkeep_dies(scene: Scene) -> None:
    scene.keep()
    claiming = scene.begin(20 * MIB)
    scene.end_upkeep()
    with pytest.raises(NoSpace):
        claiming.result(10)


def test_nobody_waits_for_a_disk_that_another_program_keeps_full(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_module, "_FULL_SECONDS", 0.05)
    scene.keep()
    full = [True, False]  # for a moment only: that is what eviction is there for
    monkeypatch.setattr(scene.space, "disk_is_brimful", lambda: bool(full) and full.pop(0))
    claiming = scene.begin(20 * MIB)
    assert soon(lambda: not full)
    assert not claiming.done()
    monkeypatch.setattr(scene.space, "disk_is_brimful", lambda: True)
    with pytest.raises(NoSpace, match="disk is full"):
        claiming.result(10)


def test_nobody_waits_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROOM_SECONDS", 0.05)
    scene.keep()
    with pytest.raises(NoSpace, match=r"no room within 0\.05 s"):
        scene.claim(20 * MIB)
    assert scene.wanted == 0


def test_nobody_waits_in_a_store_that_closes(scene: Scene) -> None:
    scene.keep()
    claiming = scene.begin(20 * MIB)
    scene.closing.set()
    with pytest.raises(NoSpace):
        claiming.result(10)


def announce(scene: Scene, upload: str, size_bytes: int) -> int:
    return scene.room.admit(lambda txn: scene.space.announce(txn, upload, size_bytes))


def test_an_upload_waits_for_others_and_evicts_nothing_for_that(scene: Scene) -> None:
    scene.keep()
    announce(scene, "first", 60 * MIB)
    second = scene.threads.submit(announce, scene, "second", 60 * MIB)
    third = scene.threads.submit(announce, scene, "third", 30 * MIB)
    assert third.result(10) == 0
    assert scene.wanted == 0
    assert scene.space.pressure().to_free_bytes == 0
    assert not second.done()
    scene.do(lambda txn: scene.space.end_upload(txn, "first", announced_bytes=60 * MIB))
    assert second.result(10) == 0


def test_an_upload_that_can_never_fit_and_one_too_many_wait_for_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.keep()
    with pytest.raises(NoSpace):
        announce(scene, "huge", 100 * MIB)
    announce(scene, "first", 60 * MIB)
    monkeypatch.setattr(scene.room, "_places", threading.Semaphore(0))
    with pytest.raises(NoSpace):
        announce(scene, "second", 60 * MIB)
    scene.end_upkeep()
    monkeypatch.setattr(scene.room, "_places", threading.Semaphore(1))
    with pytest.raises(NoSpace):
        announce(scene, "second", 60 * MIB)


def test_a_server_waits_a_moment_for_upkeep_that_is_started_again(scene: Scene) -> None:
    scene.room.upkeep_seconds = 60
    claiming = scene.begin(20 * MIB)
    admitting = scene.threads.submit(announce, scene, "upload", 60 * MIB)
    assert not claiming.done()
    scene.keep()
    assert admitting.result(10) == 0
    scene.do(lambda txn: scene.space.free(txn, 1))
    claiming.result(10)
    scene.end_upkeep()
    scene.do(lambda txn: scene.space.takes(txn, 1, 95 * MIB))
    scene.room.upkeep_seconds = 0.05
    for hopeless in (lambda: scene.claim(20 * MIB), lambda: announce(scene, "other", 10 * MIB)):
        with pytest.raises(NoSpace):
            hopeless()


def test_who_never_waits_presses_on_nobody(scene: Scene) -> None:
    """What moves in from another store must not have anything evicted."""
    scene.keep()
    scene.room.upkeep_seconds = NEVER
    with pytest.raises(NoSpace):
        scene.claim(20 * MIB)
    assert not scene.room.may_come()
    assert scene.wanted == 0
    scene.claim(MIB)  # what fits is had


def test_however_many_wait_one_looks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.keep()
    looks = []
    real = scene.space.left_bytes
    monkeypatch.setattr(scene.space, "left_bytes", lambda txn: looks.append(1) or real(txn))
    monkeypatch.setattr(room_module, "_LOOK_SECONDS", 3600.0)
    for _ in range(100):
        scene.room.outlook()
    assert len(looks) == 1
    monkeypatch.setattr(room_module, "_LOOK_SECONDS", 0.0)
    scene.room.outlook()
    assert len(looks) == 2


@pytest.mark.parametrize("asking", ["claim", "admit"])
def test_a_disk_that_refuses_what_the_ledger_allows_is_asked_a_few_times_only(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, asking: str
) -> None:
    """A user's quota on it, say: there is room by all that can be seen, and eviction would not help."""
    scene.keep()
    asked = 0

    def refused(_: Transaction) -> None:
        nonlocal asked
        asked += 1
        raise told(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))

    monkeypatch.setattr(room_module, "_LOOK_SECONDS", 0.0001)
    ask = {"claim": lambda: scene.room.claim(MIB, refused), "admit": lambda: scene.room.admit(refused)}[asking]
    with pytest.raises(NoSpace, match="disk is full"):
        ask()
    assert asked <= 10
    assert scene.wanted == 0
