"""Checking the store's structure: what is wrong is named, what is repaired loses nothing, what runs is not in the way."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.store.repositories import MIB, OtherProcess, Repository, blob, flip, noise, read, soon

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.store.care.check import Problem, StoreCheck
from millpond.store.index import Entry, SegmentState
from millpond.store.room.space import Space

Harm = Callable[["Checked"], None]


class Checked:
    """A repository with an open segment, sealed ones of one blob, and a sealed one of many."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.many = [noise(40_000 + i, "many") for i in range(40)]
        self.digests = self.put(*self.many, noise(MIB, "own"))
        repository.open()  # what was begun to be sealed is sealed
        self.sealed = repository.entry(self.digests[0]).segment
        self.open = repository.entry(self.digests[39]).segment
        self.own = repository.entry(self.digests[-1]).segment
        assert repository.row(self.sealed).state is SegmentState.SEALED
        assert repository.row(self.open).state is SegmentState.OPEN

    def put(self, *data: bytes) -> list[Digest]:
        assert self.repository.store.put_many([blob(one) for one in data]) == [None] * len(data)
        return [Digest.of(one) for one in data]

    def check(self, *, repair: bool = False) -> list[Problem]:
        assert self.repository.opened
        found: list[Problem] = []
        check = StoreCheck(
            self.repository.opened.index,
            self.repository.opened.layout,
            found.append,
            repair=repair,
            clock=wall_clock,
        )
        assert sum(check.segments()) >= 3
        blobs = check.blobs()
        assert sum(check.entries()) >= blobs
        check.orphans()
        check.ledger()
        return found

    def problem(self, **how: bool) -> Problem:
        (problem,) = self.check(**how)
        return problem

    def change(self, number: int, **fields: object) -> None:
        assert self.repository.opened
        index = self.repository.opened.index
        row = self.repository.row(number)
        with index.env.begin(write=True) as txn:
            index.put_segment(txn, number, row._replace(**fields))

    def file(self, number: int) -> Path:
        return self.repository.segment(number)

    def missing(self) -> list[Digest]:
        return self.repository.store.find_missing(self.digests)


@pytest.fixture
def checked(repository: Repository) -> Checked:
    return Checked(repository)


def old(path: Path) -> None:
    """Let it be two days old."""
    then = time.time() - 2 * 86_400
    os.utime(path, (then, then))


def test_a_sound_store_has_no_problems(checked: Checked) -> None:
    assert checked.check() == []
    assert checked.check(repair=True) == []


def footer_of(checked: Checked) -> int:
    return checked.repository.row(checked.sealed).end


HARM: dict[str, tuple[Harm, str, str]] = {
    "header of a sealed one": (lambda one: flip(one.file(one.sealed), 20), "sealed", "does not verify"),
    "header of an open one": (lambda one: flip(one.file(one.open), 20), "open", "does not verify"),
    "file gone": (lambda one: one.file(one.own).unlink(), "own", "it is gone: its 1 blobs are lost"),
    "empty file": (lambda one: os.truncate(one.file(one.own), 0), "own", "the segment header is cut short"),
    "footer": (lambda one: flip(one.file(one.sealed), footer_of(one) + 7), "sealed", "its footer"),
    "footer's end": (lambda one: flip(one.file(one.sealed), os.path.getsize(one.file(one.sealed)) - 1), "sealed", "no use"),
    "no footer": (lambda one: os.truncate(one.file(one.sealed), footer_of(one)), "sealed", "its footer"),
    "wrong number": (lambda one: one.file(one.own).write_bytes(one.file(one.sealed).read_bytes()), "own", "it says that it is"),
    "live count": (lambda one: one.change(one.sealed, live_count=3), "sealed", "the index counts 3 blobs"),
    "live bytes": (lambda one: one.change(one.open, live_bytes=3), "open", "blobs of 3 bytes there"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_is_wrong_with_a_segment_is_named_and_repaired(checked: Checked, harm: str) -> None:
    do, which, words = HARM[harm]
    number = getattr(checked, which)
    do(checked)
    problem = checked.problem()
    assert problem.thing == f"segments/{number:08x}.seg"
    assert words in problem.trouble
    assert "check --repair" in problem.next_step
    assert checked.problem() == problem  # looking alone changes nothing
    repaired = checked.problem(repair=True)
    assert (repaired.thing, repaired.next_step) == (problem.thing, "")
    assert repaired.trouble.startswith(problem.trouble[:40])
    lost = checked.missing()
    assert bool(lost) == ("lost" in problem.trouble)
    checked.put(*checked.many, noise(MIB, "own"))
    checked.repository.open()
    assert checked.missing() == []
    assert read(checked.repository.store, checked.digests[0]) == checked.many[0]
    again = checked.check()
    assert all("it was given up" in one.trouble for one in again)
    assert bool(again) == bool(lost)


def test_a_footer_that_was_written_anew_serves_the_next_index(checked: Checked) -> None:
    os.truncate(checked.file(checked.sealed), footer_of(checked))
    checked.check(repair=True)
    checked.repository.close()
    (checked.repository.path / "index" / "data.mdb").unlink()
    checked.repository.open()
    assert checked.repository.row(checked.sealed).state is SegmentState.SEALED
    assert checked.missing() == []
    assert checked.check() == []


def test_a_footer_that_was_written_anew_lists_nothing_that_was_given_up(checked: Checked) -> None:
    rotten = checked.digests[3]
    flip(checked.file(checked.sealed), checked.repository.entry(rotten).offset + 70)
    assert read(checked.repository.store, rotten) is None
    assert soon(lambda: checked.missing() == [rotten])
    os.truncate(checked.file(checked.sealed), footer_of(checked))
    checked.check(repair=True)
    checked.repository.close()
    (checked.repository.path / "index" / "data.mdb").unlink()
    checked.repository.open()
    assert checked.missing() == [rotten]


def test_a_footer_over_damaged_records_is_not_written(checked: Checked) -> None:
    second = checked.repository.entry(checked.digests[1])
    flip(checked.file(checked.sealed), second.offset + 3)
    os.truncate(checked.file(checked.sealed), footer_of(checked))
    problem = checked.problem(repair=True)
    assert "cannot be written anew" in problem.trouble
    assert "--deep --repair" in problem.next_step
    assert os.path.getsize(checked.file(checked.sealed)) == footer_of(checked)


@pytest.mark.parametrize("harm", ["cut off", "record"])
def test_records_that_are_no_more_are_a_matter_for_a_deep_look(checked: Checked, harm: str) -> None:
    entry = checked.repository.entry(checked.digests[39])
    if harm == "cut off":
        os.truncate(checked.file(checked.open), entry.offset + 100)
    else:
        flip(checked.file(checked.open), entry.offset + 40)
    problem = checked.problem(repair=True)
    assert problem.thing == f"segments/{checked.open:08x}.seg"
    assert "--deep --repair" in problem.next_step


@pytest.mark.parametrize("place", ["beyond the end", "in the header", "nowhere"])
def test_an_entry_that_points_nowhere_is_named_and_taken_off(checked: Checked, place: str) -> None:
    assert checked.repository.opened
    index, digest = checked.repository.opened.index, checked.digests[0]
    entry = checked.repository.entry(digest)
    wrong = {
        "beyond the end": entry._replace(offset=checked.repository.row(entry.segment).end - 100),
        "in the header": entry._replace(offset=10),
        "nowhere": entry._replace(segment=0xFFFFFF),
    }[place]
    with index.env.begin(write=True) as txn:
        txn.put(digest.key, Entry.encode(wrong), db=index.blobs)
    problems = checked.check(repair=True)
    assert problems[0].thing == f"blob {digest}"
    assert checked.missing() == [digest]
    checked.put(checked.many[0])
    assert checked.missing() == []
    assert checked.check() == []


@pytest.mark.parametrize("harm", ["too much", "too little", "stale", "sum"])
def test_a_ledger_that_does_not_fit_the_files_is_counted_anew(checked: Checked, harm: str) -> None:
    assert checked.repository.opened
    index = checked.repository.opened.index
    space = Space(index, checked.repository.opened.layout, reserve_bytes=0)
    with index.reading() as txn:
        before = space.charges(txn)
        used = space.used_bytes(txn)
    with index.env.begin(write=True) as txn:
        if harm == "stale":
            space.takes(txn, 0xFFFF, 500_000)
        elif harm == "sum":
            space.takes(txn, 0xFFFF, 500_000)
            txn.delete(b"seg:" + (0xFFFF).to_bytes(4, "big"), db=index.space)
        else:
            space.takes(txn, checked.sealed, 5_000_000 if harm == "too much" else 4096)
    problem = checked.problem()
    assert problem.thing == "the ledger of room"
    checked.check(repair=True)
    with index.reading() as txn:
        assert (space.charges(txn), space.used_bytes(txn)) == (before, used)
    assert checked.check() == []


def test_files_that_nobody_lists_are_named_and_removed(checked: Checked) -> None:
    strays = [
        checked.repository.path / place
        for place in ("segments/0000ffff.seg", "segments/notes.txt", "uploads/" + "a" * 64)
    ]
    for stray in strays:
        stray.write_bytes(b"x" * 5000)
        old(stray)
    problems = checked.check()
    assert {problem.thing for problem in problems} == {
        str(stray.relative_to(checked.repository.path)) for stray in strays
    }
    assert all("takes 8192 bytes" in problem.trouble for problem in problems)
    assert all(problem.next_step == "" for problem in checked.check(repair=True))
    assert not any(stray.exists() for stray in strays)
    assert checked.check() == []


def test_what_somebody_is_about_to_list_or_goes_on_with_stays(checked: Checked) -> None:
    young = checked.repository.path / "segments" / "0000ffff.seg"
    young.write_bytes(b"x")
    assert checked.check(repair=True) == []
    data = noise(3 * MIB, "upload")
    upload = checked.repository.store.begin_upload(Digest.of(data), "session", offset=0)
    upload.write(data[:MIB])
    for spool in (checked.repository.path / "uploads").iterdir():
        old(spool)
    assert checked.check(repair=True) == []
    upload.write(data[MIB:])
    upload.finish()
    assert young.exists()
    assert checked.missing() == []


def test_a_server_that_works_meanwhile_is_no_problem_and_has_none(checked: Checked) -> None:
    """Segments are begun, sealed and written by another process while this one looks and repairs."""
    server = OtherProcess(checked.repository.path)
    for i in range(12):
        data = [noise(30_000, f"{i}/{j}") for j in range(8)]
        server.say("put", *((str(Digest.of(one)), one.hex()) for one in data))
        assert checked.check(repair=True) == []
        assert server.process.stdout
        server.process.stdout.readline()
    server.end()
    assert checked.check() == []


def test_a_segment_that_eviction_takes_is_no_problem(checked: Checked) -> None:
    checked.change(checked.own, state=SegmentState.SWEEPING)
    checked.file(checked.own).unlink()
    assert [problem.thing for problem in checked.check()] == []
