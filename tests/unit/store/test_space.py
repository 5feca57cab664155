"""One ledger: what is claimed cannot be claimed again, and comes back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from unit.store.repositories import MIB

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.store import filesystem, space
from millpond.store.index import Index
from millpond.store.space import Space, holder

QUOTA_BYTES = 100 * MIB


class Ledger:
    def __init__(self, path: Path) -> None:
        for part in ("index", "names", "touch", "uploads"):
            (path / part).mkdir()
        self.path = path
        self.index = Index(str(path / "index"))
        self.space = self.opened()

    def opened(self, *, quota_bytes: int = QUOTA_BYTES, reserve_bytes: int = 0) -> Space:
        return Space(self.index, str(self.path), quota_bytes=quota_bytes, reserve_bytes=reserve_bytes)

    def do(self, what: str, *values: Any) -> Any:
        with self.index.env.begin(write=True) as txn:
            return getattr(self.space, what)(txn, *values)

    @property
    def room_bytes(self) -> int:
        """What can be claimed, to the MiB."""
        for mib in range(1, 200):
            with self.index.env.begin(write=True) as txn:
                try:
                    self.space.claim(txn, mib * MIB)
                except NoSpace:
                    return (mib - 1) * MIB
                finally:
                    txn.abort()
        raise AssertionError("no end of room")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.index.close()


def disk_of(free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        space.os, "statvfs", lambda _: SimpleNamespace(f_bavail=free_bytes // 4096, f_frsize=4096, f_blocks=0)
    )


def test_a_segment_of_the_quota_is_left_for_moving(ledger: Ledger) -> None:
    assert QUOTA_BYTES * 0.95 < ledger.room_bytes < QUOTA_BYTES - limits.segment_bytes(QUOTA_BYTES)


def test_what_is_claimed_spent_and_suspended_cannot_be_claimed_again(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("claim", 30 * MIB)
    assert ledger.room_bytes == room - 30 * MIB
    ledger.do("spend", 20 * MIB)
    assert ledger.room_bytes == room - 30 * MIB
    ledger.do("give_back", 10 * MIB)
    assert ledger.room_bytes == room - 20 * MIB
    ledger.do("set_suspended", "upload", 5 * MIB)
    ledger.do("set_suspended", "upload", 7 * MIB)
    assert ledger.room_bytes == room - 27 * MIB
    ledger.do("set_suspended", "upload", 0)
    ledger.do("set_suspended", "never heard of", 0)
    ledger.do("free", 15 * MIB)
    assert ledger.room_bytes == room - 5 * MIB
    ledger.do("free", 500 * MIB)  # a ledger that drifted does not run below zero
    assert ledger.room_bytes == room


def test_counting_anew_forgets_claims(ledger: Ledger) -> None:
    room = ledger.room_bytes
    ledger.do("claim", 60 * MIB)
    ledger.do("count_anew", 10 * MIB, {"upload": 3 * MIB})
    assert ledger.room_bytes == room - 13 * MIB


def test_what_other_parts_take_counts(ledger: Ledger) -> None:
    room = ledger.room_bytes
    (ledger.path / "names" / "data.mdb").write_bytes(bytes(10 * MIB))
    ledger.space = ledger.opened()
    assert ledger.room_bytes == room - 10 * MIB


def test_claims_of_the_dead_return_when_they_are_needed(ledger: Ledger) -> None:
    room = ledger.room_bytes
    dead = subprocess.run(
        [sys.executable, "-c", "from millpond.store.space import holder; print(holder().decode())"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout.strip()
    namesake = f"{os.getpid()}:1"  # our pid, another process
    alive = f"1:{space._start_time(1)}"
    with ledger.index.env.begin(write=True) as txn:
        for who in (dead, namesake, alive):
            txn.put(b"claim:" + who.encode(), (20 * MIB).to_bytes(8, "little"), db=ledger.index.space)
    assert ledger.room_bytes == room - 20 * MIB
    assert holder() == holder()


def test_the_disk_is_a_limit_too_and_others_keep_their_reserve(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_of(50 * MIB, monkeypatch)
    assert ledger.room_bytes == 50 * MIB
    ledger.space = ledger.opened(reserve_bytes=10 * MIB)
    assert ledger.room_bytes == 40 * MIB
    ledger.space = ledger.opened(reserve_bytes=60 * MIB)
    assert ledger.room_bytes == 0


def test_what_is_claimed_and_not_written_yet_is_not_free(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_of(50 * MIB, monkeypatch)
    ledger.do("claim", 30 * MIB)
    assert ledger.room_bytes == 20 * MIB
    (ledger.path / "uploads" / "one").write_bytes(bytes(10 * MIB))
    disk_of(40 * MIB, monkeypatch)  # ten of these thirty were written
    assert ledger.room_bytes == 20 * MIB
    disk_of(20 * MIB, monkeypatch)
    ledger.do("spend", 30 * MIB)
    (ledger.path / "uploads" / "one").unlink()
    assert ledger.room_bytes == 20 * MIB


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

    monkeypatch.setattr(os, "scandir", Listing)


@pytest.mark.parametrize("part", ["touch", "uploads"])
def test_a_file_that_vanishes_while_it_is_measured_is_no_failure(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    (ledger.path / part / "vanishing").touch()
    vanishing(monkeypatch)
    ledger.do("claim", MIB)


def test_a_file_that_vanishes_is_no_failure_of_the_default_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vanishing").touch()
    real = os.walk

    def walk(top: Any) -> Iterator[Any]:
        for found in list(real(top)):
            (tmp_path / "vanishing").unlink()
            yield found

    monkeypatch.setattr(filesystem.os, "walk", walk)
    assert filesystem.default_quota_bytes(str(tmp_path)) > 0


def test_a_blob_that_leaves_no_segment_can_never_fit(ledger: Ledger) -> None:
    assert ledger.space.largest_blob_bytes == QUOTA_BYTES - limits.segment_bytes(QUOTA_BYTES)
    assert ledger.space.step_bytes == QUOTA_BYTES // 1024
