"""One ledger: what is claimed cannot be claimed again, and comes back; what must go is what is there."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from unit.store.repositories import MIB

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.store.index import Index
from millpond.store.repository import filesystem
from millpond.store.repository.layout import REPOSITORY_FORMAT, Layout, write_marker
from millpond.store.room import holders, quota, taken
from millpond.store.room.costs import SEGMENT_EXTRA_BYTES, segment_cost
from millpond.store.room.holders import holder
from millpond.store.room.pressure import Held, NeverFits, Pressure
from millpond.store.room.space import SMALL_BYTES, Space

QUOTA_BYTES = 100 * MIB
SEGMENT_BYTES = limits.segment_bytes(QUOTA_BYTES)
GROWTH_BYTES = limits.growth_bytes(QUOTA_BYTES)
KIB = limits.KIB


class Ledger:
    """A ledger over an empty repository, on a disk as large as one likes."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layout = Layout(str(path / "repo"))
        os.mkdir(self.layout.root)
        for directory in self.layout.directories:
            os.mkdir(directory)
        self.monkeypatch = monkeypatch
        self.disk(free_bytes=1 << 40)
        self.set_quota(QUOTA_BYTES)
        self.index = Index(str(path / "index"))  # elsewhere, so that what it grows by is not measured
        self.space = self.opened()

    def opened(self, *, reserve_bytes: int = 0, head_room_max_bytes: int | None = None) -> Space:
        return Space(self.index, self.layout, reserve_bytes=reserve_bytes, head_room_max_bytes=head_room_max_bytes)

    def set_quota(self, quota_bytes: int) -> None:
        write_marker(self.layout, {"format": REPOSITORY_FORMAT, "quota_bytes": quota_bytes})

    def disk(self, *, free_bytes: int, inodes: int = 0, free_inodes: int = 0) -> None:
        size = SimpleNamespace(
            f_bavail=free_bytes // 4096, f_frsize=4096, f_blocks=1 << 28, f_files=inodes, f_favail=free_inodes
        )
        self.monkeypatch.setattr(taken.os, "statvfs", lambda _: size)

    def measure_anew(self) -> None:
        """As after a moment."""
        self.space._taken.forget()
        self.space._quota._looked_at = float("-inf")

    def do(self, what: str, *values: Any, **more: Any) -> Any:
        with self.index.env.begin(write=True) as txn:
            return getattr(self.space, what)(txn, *values, **more)

    def allow(self, path: str, size_bytes: int) -> None:
        with self.index.env.begin(write=True) as txn:
            self.space.databases.allow(txn, path, size_bytes)

    def could(self, what: str, *values: Any, **more: Any) -> bool:
        with self.index.env.begin(write=True) as txn:
            try:
                getattr(self.space, what)(txn, *values, **more)
            except NoSpace:
                return False
            finally:
                txn.abort()
        return True

    @property
    def room_bytes(self) -> int:
        """What can be claimed, to the byte."""
        return most(lambda size: self.could("claim", size))

    @property
    def room_for_copies(self) -> int:
        return most(lambda size: self.could("claim", size, for_moving=True))

    @property
    def pressure(self) -> Pressure:
        return self.space.pressure()

    def keep(self) -> int:
        """Hold what an upkeep process holds."""
        descriptor = os.open(self.layout.upkeeper_lock, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor


def most(could: Callable[[int], bool]) -> int:
    """The largest size that could be had."""
    least, most = 0, 1 << 40
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if could(middle) else (least, middle - 1)
    return least


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path, monkeypatch)
    yield ledger
    ledger.index.close()


@pytest.fixture
def kept(ledger: Ledger) -> Iterator[Ledger]:
    """A ledger while upkeep is alive."""
    descriptor = ledger.keep()
    yield ledger
    os.close(descriptor)


def dead() -> bytes:
    """The holder of a process that has ended."""
    command = "from millpond.store.room.holders import holder; print(holder().decode())"
    return subprocess.run([sys.executable, "-c", command], stdout=subprocess.PIPE, check=True).stdout.strip()


# -- what may be written ------------------------------------------------------------------------------------------


def test_everything_under_the_repository_and_a_segment_for_moving_is_left_free(ledger: Ledger) -> None:
    du = subprocess.run(["du", "-s", "--block-size=1", ledger.layout.root], stdout=subprocess.PIPE, check=True).stdout
    assert ledger.room_bytes == QUOTA_BYTES - int(du.split()[0]) - SEGMENT_BYTES - GROWTH_BYTES


def test_what_is_claimed_taken_or_kept_for_uploads_cannot_be_claimed_again(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("claim", 30 * MIB)
    assert ledger.room_bytes == room - 30 * MIB
    ledger.do("takes", 7, 20 * MIB)
    ledger.do("give_back", 20 * MIB)
    assert ledger.room_bytes == room - 30 * MIB
    ledger.do("give_back", 10 * MIB)
    assert ledger.room_bytes == room - 20 * MIB
    ledger.do("announce", "upload", 5 * MIB)
    assert ledger.room_bytes == room - 25 * MIB
    ledger.do("claim_upload", "upload", 2 * MIB)
    assert ledger.room_bytes == room - 25 * MIB
    ledger.do("end_upload", "upload", announced_bytes=3 * MIB, kept_bytes=1 * MIB)
    assert ledger.room_bytes == room - 21 * MIB
    ledger.do("end_upload", "upload", announced_bytes=0)
    assert ledger.room_bytes == room - 20 * MIB
    assert ledger.do("free", 7) == 20 * MIB
    assert ledger.room_bytes == room


def test_a_segment_is_charged_what_it_takes_and_no_more_is_given_back(ledger: Ledger) -> None:
    room = ledger.room_bytes
    assert ledger.do("takes", 1, 5 * MIB) == 5 * MIB
    assert ledger.do("takes", 1, 8 * MIB) == 3 * MIB
    assert ledger.do("takes", 1, 6 * MIB) == -2 * MIB  # sealed: measured
    ledger.do("takes", 2, 1 * MIB)
    assert ledger.room_bytes == room - 7 * MIB
    assert ledger.do("free", 1) == 6 * MIB
    assert ledger.do("free", 1) == 0
    assert ledger.do("free", 99) == 0
    assert ledger.room_bytes == room - 1 * MIB


def test_a_segment_never_takes_more_than_it_is_charged_before_it_is_measured() -> None:
    assert segment_cost(64, 0) == 4096
    assert segment_cost(4096 - 40 - 52, 1) == 4096
    assert segment_cost(4096 - 40 - 51, 1) == 8192
    assert segment_cost(64 + 1000, 1) <= SEGMENT_EXTRA_BYTES + 1000 + 52


def test_counting_anew_forgets_claims(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("claim", 60 * MIB)
    ledger.do("count_anew", {1: 4 * MIB, 2: 6 * MIB}, {"upload": 3 * MIB})
    assert ledger.room_bytes == room - 13 * MIB
    assert ledger.do("free", 2) == 6 * MIB


@pytest.mark.parametrize(
    "part", ["names/data.mdb", "uses/data.mdb", "backup/names.1", "touch/1.log", "ballast", "new/a"]
)
def test_what_other_parts_take_counts_whatever_they_are(ledger: Ledger, part: str) -> None:
    room = ledger.room_bytes
    file = Path(ledger.layout.root, part)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(bytes(10 * MIB))
    ledger.measure_anew()
    may_grow = 10 * MIB // limits.GROWTH_SHARE
    assert room - 10 * MIB - may_grow - 8 * KIB <= ledger.room_bytes <= room - 10 * MIB


def test_what_a_database_may_take_counts_as_taken(ledger: Ledger) -> None:
    room, names = ledger.room_bytes, ledger.layout.names
    os.makedirs(names, exist_ok=True)
    ledger.allow(names, 10 * MIB)
    ledger.measure_anew()
    assert room - 10 * MIB - GROWTH_BYTES // 2 - 8 * KIB <= ledger.room_bytes <= room - 10 * MIB + GROWTH_BYTES
    Path(names, "data.mdb").write_bytes(bytes(8 * MIB))
    ledger.measure_anew()
    assert room - 10 * MIB - GROWTH_BYTES // 2 - 8 * KIB <= ledger.room_bytes <= room - 10 * MIB + GROWTH_BYTES
    ledger.allow(names, MIB)
    assert room - 10 * MIB - GROWTH_BYTES // 2 - 8 * KIB <= ledger.room_bytes <= room - 8 * MIB


def test_a_changed_quota_is_seen_by_those_who_run(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.set_quota(2 * QUOTA_BYTES)
    ledger.measure_anew()
    assert ledger.room_bytes > 1.9 * room
    Path(ledger.layout.marker).write_text("damaged while we run")
    ledger.measure_anew()
    assert ledger.space.quota_bytes == 2 * QUOTA_BYTES
    assert quota._LOOK_SECONDS <= 1


def test_the_disk_is_a_limit_too_and_others_keep_their_reserve(ledger: Ledger) -> None:
    ledger.disk(free_bytes=50 * MIB)
    assert ledger.room_bytes == 50 * MIB - SEGMENT_BYTES
    ledger.space = ledger.opened(reserve_bytes=10 * MIB)
    assert ledger.room_bytes == 40 * MIB - SEGMENT_BYTES
    ledger.space = ledger.opened(reserve_bytes=60 * MIB)
    assert ledger.room_bytes == 0


def test_segments_are_cut_from_the_disk_where_that_is_smaller_than_the_quota(ledger: Ledger) -> None:
    assert ledger.space.segment_bytes == SEGMENT_BYTES
    ledger.monkeypatch.setattr(filesystem, "size_bytes", lambda _: 50 * MIB)
    ledger.measure_anew()
    assert ledger.space.segment_bytes == limits.segment_bytes(50 * MIB)


def test_what_is_claimed_and_not_written_yet_is_not_free(ledger: Ledger) -> None:
    ledger.disk(free_bytes=50 * MIB)
    room = ledger.room_bytes
    ledger.do("announce", "one", 30 * MIB)
    ledger.do("claim_upload", "one", 30 * MIB)
    assert ledger.room_bytes == room - 30 * MIB
    spool = Path(ledger.layout.uploads, "one")
    spool.write_bytes(bytes(10 * MIB))
    ledger.disk(free_bytes=40 * MIB)  # ten of these thirty were written
    assert ledger.room_bytes == room - 30 * MIB
    spool.unlink()
    ledger.disk(free_bytes=20 * MIB)
    ledger.do("takes", 1, 30 * MIB)
    ledger.do("end_upload", "one", announced_bytes=0)
    assert ledger.room_bytes == room - 30 * MIB


def test_a_blob_that_leaves_no_room_for_anything_else_can_never_fit(ledger: Ledger) -> None:
    ledger.do("takes", 1, 50 * MIB)
    assert 0.9 * QUOTA_BYTES < ledger.space.largest_blob_bytes < QUOTA_BYTES - SEGMENT_BYTES
    assert ledger.space.step_bytes == QUOTA_BYTES // 1024


# -- processes that died ------------------------------------------------------------------------------------------


def test_claims_of_the_dead_return_when_they_are_needed(ledger: Ledger) -> None:
    room = ledger.room_bytes
    namesake = f"{os.getpid()}:1".encode()  # our pid, another process
    alive = f"1:{holders._start_time(1)}".encode()
    with ledger.index.env.begin(write=True) as txn:
        for kind in (b"claim:", b"announced:"):
            for who in (dead(), namesake, alive):
                txn.put(kind + who, (10 * MIB).to_bytes(8, "little"), db=ledger.index.space)
    assert ledger.room_bytes == room - 20 * MIB
    assert holder() == holder()


def test_what_the_dead_had_written_and_not_listed_is_charged_to_its_file(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("takes", 1, 1 * MIB)
    for number, size_bytes in ((1, 3 * MIB), (2, 4 * MIB)):
        Path(ledger.layout.segments, f"{number:08x}.seg").write_bytes(bytes(size_bytes))
    Path(ledger.layout.segments, "notes.txt").write_bytes(bytes(5 * MIB))
    with ledger.index.env.begin(write=True) as txn:
        txn.put(b"claim:" + dead(), (90 * MIB).to_bytes(8, "little"), db=ledger.index.space)
    assert ledger.room_bytes == room - 7 * MIB


def test_an_upload_keeps_its_room_when_its_process_dies_because_its_file_stays(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.space._me = dead()
    ledger.do("announce", "upload", 30 * MIB)
    ledger.do("claim_upload", "upload", 10 * MIB)
    ledger.space = ledger.opened()
    assert ledger.room_bytes == room - 10 * MIB
    assert ledger.do("announce", "upload", 30 * MIB) == 10 * MIB  # and whoever goes on with it has that
    assert ledger.room_bytes == room - 30 * MIB


# -- uploads that are announced -----------------------------------------------------------------------------------


def test_what_is_announced_is_kept_while_nothing_can_be_evicted(ledger: Ledger) -> None:
    assert ledger.could("announce", "one", 60 * MIB)
    ledger.do("announce", "one", 60 * MIB)
    assert not ledger.could("announce", "other", 60 * MIB)
    assert not ledger.could("claim", 60 * MIB)
    assert ledger.could("claim_upload", "one", 60 * MIB)


def test_what_is_announced_takes_nothing_from_others_where_room_is_made_for_bytes_that_come(kept: Ledger) -> None:
    kept.do("announce", "one", 60 * MIB)
    assert kept.could("claim", 60 * MIB)
    kept.do("takes", 1, 80 * MIB)
    assert kept.could("announce", "other", 20 * MIB)  # will be made room for
    assert not kept.could("announce", "third", 60 * MIB)  # not beside them
    with pytest.raises(NeverFits):
        kept.do("announce", "fourth", QUOTA_BYTES)
    assert not kept.could("claim_upload", "one", 60 * MIB)


def test_a_lie_about_a_size_makes_no_pressure(kept: Ledger) -> None:
    kept.do("takes", 1, 90 * MIB)
    kept.do("announce", "lie", 95 * MIB)
    assert kept.pressure.to_free_bytes == 0
    kept.do("claim_upload", "lie", 1 * MIB)
    assert kept.pressure.to_free_bytes == 0


# -- what must go -------------------------------------------------------------------------------------------------


def test_eviction_begins_before_writers_must_wait_and_ends_there(ledger: Ledger) -> None:
    ledger.set_quota(1000 * MIB)
    ledger.measure_anew()
    room = ledger.room_bytes
    ledger.do("takes", 1, room - 20 * MIB)
    assert ledger.pressure.to_free_bytes == 0
    ledger.do("takes", 2, 12345)
    assert ledger.pressure.to_free_bytes == 12345
    assert ledger.pressure.limit_bytes == room
    segment_bytes, growth_bytes = limits.segment_bytes(1000 * MIB), limits.growth_bytes(1000 * MIB)
    assert ledger.pressure.used_bytes == (980 * MIB) - segment_bytes - growth_bytes + 12345


def test_a_small_cache_is_used_to_the_end(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("takes", 1, room)
    assert ledger.pressure.to_free_bytes == 0
    assert ledger.pressure.used_bytes == QUOTA_BYTES - SEGMENT_BYTES - GROWTH_BYTES
    ledger.do("want", 12345)
    assert ledger.pressure.to_free_bytes == 12345


def test_eviction_begins_sooner_where_much_is_written_while_it_works(ledger: Ledger) -> None:
    for quota_bytes, head_room_bytes in ((22_000_000, 0), (1 << 30, (1 << 30) // 50), (1 << 40, 1 << 30)):
        ledger.set_quota(quota_bytes)
        ledger.measure_anew()
        assert abs(ledger.space.head_room_bytes() - head_room_bytes) <= 1


def test_what_is_only_claimed_does_not_press(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("takes", 1, room - 2 * MIB)
    ledger.do("claim", 2 * MIB)
    assert ledger.pressure.to_free_bytes == 0
    assert ledger.pressure.claimed_bytes == 2 * MIB


def test_what_a_writer_waits_for_must_go_as_long_as_it_waits_and_lives(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("takes", 1, room - 5 * MIB)
    ledger.do("want", 12 * MIB)
    assert ledger.pressure.to_free_bytes == 7 * MIB
    ledger.do("claim", 1 * MIB)
    assert ledger.pressure.to_free_bytes == 8 * MIB
    ledger.do("want", -12 * MIB)
    assert ledger.pressure.to_free_bytes == 0
    ledger.space._me = dead()
    ledger.do("want", 12 * MIB)
    assert ledger.pressure.to_free_bytes == 0


def test_written_uploads_press(ledger: Ledger) -> None:
    ledger.do("takes", 1, ledger.room_bytes - 2 * MIB)
    Path(ledger.layout.uploads, "one").write_bytes(bytes(5 * MIB))
    assert ledger.pressure.to_free_bytes == 3 * MIB


def test_a_segment_that_is_still_open_somewhere_is_not_evicted_for_again_and_not_free_either(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("takes", 1, 20 * MIB)
    ledger.do("takes", 2, room - 5 * MIB)
    assert ledger.pressure.to_free_bytes == 15 * MIB
    ledger.do("going", 1)
    ledger.do("going", 1)
    ledger.do("going", 99)
    assert ledger.pressure.to_free_bytes == 0
    assert ledger.room_bytes == 0
    assert ledger.do("going_segments") == [1]
    assert ledger.do("free", 1) == 20 * MIB
    assert ledger.do("going_segments") == []
    assert ledger.room_bytes == 5 * MIB
    assert ledger.pressure.to_free_bytes == 0
    ledger.do("takes", 3, 6 * MIB)
    assert ledger.pressure.to_free_bytes == 1 * MIB


def test_what_a_slow_reader_keeps_is_evicted_for_because_others_wait(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("takes", 1, 20 * MIB)
    ledger.do("takes", 2, room - 20 * MIB)
    ledger.do("going", 1)
    ledger.do("want", 5 * MIB)
    assert ledger.pressure.to_free_bytes == 0
    assert ledger.space.pressure(lingering_bytes=18 * MIB).to_free_bytes == 3 * MIB
    assert ledger.space.pressure(lingering_bytes=30 * MIB).to_free_bytes == 5 * MIB


def test_copies_find_the_room_that_writers_do_not_get_and_no_more(ledger: Ledger) -> None:
    ledger.do("takes", 1, ledger.room_bytes)
    left = ledger.room_for_copies
    assert left == SEGMENT_BYTES + GROWTH_BYTES - GROWTH_BYTES // 2 - SMALL_BYTES
    ledger.do("takes", 2, 100_000)
    ledger.do("going", 1)  # it is not back yet
    assert ledger.room_for_copies == left - 100_000
    ledger.do("free", 1)
    assert ledger.room_for_copies > 90 * MIB


def test_a_disk_that_others_fill_presses_until_the_reserve_is_free_again(ledger: Ledger) -> None:
    ledger.space = ledger.opened(reserve_bytes=10 * MIB)
    ledger.do("takes", 1, 30 * MIB)
    enough = 10 * MIB + SEGMENT_BYTES
    ledger.disk(free_bytes=-(-enough // 4096) * 4096)
    assert ledger.pressure.to_free_bytes == 0
    ledger.disk(free_bytes=4 * MIB)
    assert ledger.pressure.to_free_bytes == enough - 4 * MIB


def test_a_disk_without_places_for_files_presses_and_takes_nothing(ledger: Ledger) -> None:
    ledger.do("takes", 1, 50 * MIB)
    ledger.disk(free_bytes=1 << 40, inodes=1000, free_inodes=16)
    assert ledger.pressure.to_free_bytes == 0
    assert ledger.room_bytes > 0
    ledger.disk(free_bytes=1 << 40, inodes=1000, free_inodes=15)
    assert 2 * SEGMENT_BYTES <= ledger.pressure.to_free_bytes <= 3 * SEGMENT_BYTES
    assert ledger.room_bytes == 0


def test_a_disk_is_brimful_when_the_ballast_is_gone_too(ledger: Ledger) -> None:
    Path(ledger.layout.ballast).write_bytes(bytes(4096))
    ledger.disk(free_bytes=4096)
    assert not ledger.space.disk_is_brimful()
    os.truncate(ledger.layout.ballast, 0)
    assert ledger.space.disk_is_brimful()
    ledger.disk(free_bytes=10 * MIB)
    assert not ledger.space.disk_is_brimful()


def test_head_room_is_made_when_it_falls_below_the_least_and_until_it_is_the_most(ledger: Ledger) -> None:
    ledger.space = ledger.opened(reserve_bytes=10 * MIB, head_room_max_bytes=20 * MIB)
    ledger.do("takes", 1, 50 * MIB)
    for free, to_free in ((15, 0), (10, 0), (9, 11), (15, 5), (19, 1), (20, 0), (15, 0)):
        ledger.disk(free_bytes=free * MIB)
        assert ledger.pressure.to_free_bytes == to_free * MIB, free


def test_head_room_is_made_when_a_writer_would_take_of_it(ledger: Ledger) -> None:
    ledger.space = ledger.opened(reserve_bytes=10 * MIB, head_room_max_bytes=20 * MIB)
    ledger.do("takes", 1, 50 * MIB)
    ledger.disk(free_bytes=12 * MIB)
    ledger.do("want", 1 * MIB)
    assert ledger.pressure.to_free_bytes == 8 * MIB


def test_what_stands_in_the_way_is_said_with_its_time(ledger: Ledger) -> None:
    assert ledger.do("held") == (None, 0)
    before = time.monotonic_ns()
    ledger.do("cannot_free", Held(1, 2, 3))
    held, said_ns = ledger.do("held")
    assert held == Held(1, 2, 3)
    assert before <= said_ns <= time.monotonic_ns()


def test_upkeep_lives_as_long_as_it_holds_its_lock(ledger: Ledger) -> None:
    assert not ledger.space.keeper_lives()
    descriptor = ledger.keep()
    assert ledger.space.keeper_lives()
    os.close(descriptor)
    assert not ledger.space.keeper_lives()


# -- measuring ----------------------------------------------------------------------------------------------------


def vanishing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is listed is gone when it is looked at."""
    real = os.scandir

    class Listing:
        def __init__(self, path: Any) -> None:
            self.entries = list(real(path))
            for entry in self.entries:
                if entry.name == "vanishing":
                    os.unlink(entry.path)

        def __enter__(self) -> Iterator[Any]:
            return iter(self.entries)

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Iterator[Any]:
            return iter(self.entries)

    monkeypatch.setattr(os, "scandir", Listing)


@pytest.mark.parametrize("part", ["touch", "uploads"])
def test_a_file_that_vanishes_while_it_is_measured_is_no_failure(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    Path(ledger.layout.root, part, "vanishing").touch()
    vanishing(monkeypatch)
    ledger.do("claim", MIB)


def test_a_repository_that_is_not_there_takes_nothing(tmp_path: Path) -> None:
    assert taken.tree_bytes(str(tmp_path / "nothing")) == 0
    assert list(taken.files_in(str(tmp_path / "nothing"))) == []
