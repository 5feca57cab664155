"""Whose index is believed, and that no other loses a blob."""

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from unit.store.repositories import MIB, OtherProcess, Repository, blob, flip, noise, read

from millpond.core.digest import Digest
from millpond.core.errors import RefusedToStart
from millpond.store.index import SegmentState
from millpond.store.interface import KnownClosure
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository import filesystem, opening
from millpond.store.repository.layout import Layout, recognise, write_marker
from millpond.store.repository.opening import open_repository
from millpond.store.room.costs import segment_cost
from millpond.store.room.space import Space
from millpond.store.segments.files import SegmentFile, segment_name
from millpond.store.segments.format import SegmentHeader
from millpond.store.segments.rebuild import read_records

ROW, STAMP = b"r" * 32, b"s" * 16
BLOBS = [noise(size, "opening") for size in (1, 5000, 100_000, 200_000, 300_000, 2 * MIB)] + [
    noise(90_000, f"filling {i}") for i in range(20)
]


@pytest.fixture
def rebuilt(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One item for every rebuild from here on."""
    rebuilds: list[str] = []
    real = opening.rebuild

    def watched(index: Any, segments: str, **more: Any) -> None:
        rebuilds.append(segments)
        real(index, segments, **more)

    monkeypatch.setattr(opening, "rebuild", watched)
    return rebuilds


def fill(store: Any) -> None:
    """Blobs in open and in sealed segments, one streamed; all of them settled, as a push does."""
    assert store.put_many([blob(data) for data in BLOBS]) == [None] * len(BLOBS)
    streamed = noise(700_000, "streamed")
    stream = store.begin_upload(Digest.of(streamed), "session", offset=0)
    stream.write(streamed)
    stream.finish()
    digests = [Digest.of(data) for data in [*BLOBS, streamed]]
    store.remember([KnownClosure(ROW, STAMP, store.settle(digests))])


def all_there(store: Any) -> bool:
    stored = [*BLOBS, noise(700_000, "streamed")]
    digests = [Digest.of(data) for data in stored]
    return bool(
        store.find_missing(digests) == [] and [data and bytes(data) for data in store.read_many(digests)] == stored
    )


@pytest.fixture
def closed(tmp_path: Path) -> Repository:
    """Filled and closed in good order."""
    repository = Repository(tmp_path / "repo")
    fill(repository.open())
    repository.close()
    return repository


@pytest.fixture
def killed(tmp_path: Path) -> Repository:
    """Filled by a process that was killed."""
    path = tmp_path / "repo"
    other = OtherProcess(path)
    other.put_many([blob(data) for data in BLOBS])
    streamed = noise(700_000, "streamed")
    stream = other.begin_upload(Digest.of(streamed), "session", offset=0)
    stream.write(streamed)
    stream.finish()
    digests = [Digest.of(data) for data in [*BLOBS, streamed]]
    other.remember([KnownClosure(ROW, STAMP, other.settle(digests))])
    other.kill()
    return Repository(path)


def later_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "boot_id", lambda: "a later boot")


def reopened(repository: Repository) -> Any:
    store = repository.open()
    assert all_there(store)
    (why,) = store.put_many([blob("it can be written to")])
    assert why is None
    return store


def test_a_new_repository_has_nothing_to_believe(tmp_path: Path, rebuilt: list[str]) -> None:
    repository = Repository(tmp_path / "not" / "yet" / "there")
    repository.open()
    repository.close()
    assert len(rebuilt) == 1


def test_after_a_clean_end_the_index_is_believed(closed: Repository, rebuilt: list[str]) -> None:
    assert reopened(closed).intact(ROW, STAMP)
    assert rebuilt == []
    closed.close()


def test_after_a_kill_the_index_is_believed(killed: Repository, rebuilt: list[str]) -> None:
    reopened(killed)
    assert rebuilt == []
    killed.close()


def test_a_clean_end_counts_in_every_boot_and_place(
    closed: Repository, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    later_boot(monkeypatch)
    reopened(closed.copy(tmp_path / "copy")).close()
    assert rebuilt == []


def test_after_a_kill_and_another_boot_the_index_is_made_anew(
    killed: Repository, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later_boot(monkeypatch)
    store = reopened(killed)
    assert len(rebuilt) == 1
    assert not store.intact(ROW, STAMP)  # it must be walked
    killed.close()


def test_being_opened_again_ends_the_trust_in_a_clean_end(
    closed: Repository, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = OtherProcess(closed.path)
    process.find_missing([])
    process.kill()
    later_boot(monkeypatch)
    reopened(closed)
    assert len(rebuilt) == 1
    closed.close()


def test_a_copy_taken_while_running_is_made_anew(tmp_path: Path, rebuilt: list[str]) -> None:
    repository = Repository(tmp_path / "repo")
    fill(repository.open())
    rebuilt.clear()
    copy = repository.copy(tmp_path / "copy")
    reopened(copy)
    assert len(rebuilt) == 1
    copy.close()
    assert all_there(repository.store)
    repository.close()


def harmed_index(path: Path, harm: str) -> None:
    data = path / "index" / "data.mdb"
    if harm == "truncated":
        os.truncate(data, data.stat().st_size // 2)
    elif harm == "empty":
        os.truncate(data, 0)
    elif harm == "not one":
        data.write_bytes(b"this is no index" * 1000)
    elif harm == "gone":
        data.unlink()
    elif harm == "no directory":
        shutil.rmtree(path / "index")
    elif harm == "metas":
        for offset in range(16, 4096 * 2, 8):
            flip(data, offset)


@pytest.mark.parametrize("harm", ["truncated", "empty", "not one", "gone", "no directory", "metas"])
def test_a_damaged_index_is_made_anew(closed: Repository, rebuilt: list[str], harm: str) -> None:
    harmed_index(closed.path, harm)
    reopened(closed)
    assert len(rebuilt) == 1
    closed.close()
    reopened(closed)
    assert len(rebuilt) == 1
    closed.close()


STATES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"7",
    b"\xff\xfe",
    b'{"format": 0, "clean": true}',
    b'{"format": 2, "clean": true}',
    b'{"format": 1}',
    b'{"format": 1, "clean": false}',
    b'{"format": 1, "clean": false, "boot": null, "device": 0, "inode": 0}',
]


@pytest.mark.parametrize("state", STATES)
def test_an_index_that_says_anything_else_is_made_anew(closed: Repository, rebuilt: list[str], state: bytes) -> None:
    opened = open_repository(closed.path)
    with opened.index.env.begin(write=True) as txn:
        txn.put(b"trust", state, db=opened.index.state)
    opened.index.close()
    os.close(opened._open_lock)
    reopened(closed)
    assert len(rebuilt) == 1
    closed.close()


def test_a_rebuild_cuts_off_what_does_not_verify_and_keeps_what_does(
    killed: Repository, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in killed.segments():
        with path.open("ab") as segment:
            segment.write(b"blob" + bytes(500))
    later_boot(monkeypatch)
    reopened(killed)
    killed.close()


def test_a_segment_that_cannot_be_read_now_is_left_for_later(
    closed: Repository, rebuilt: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = closed.segments()[0]
    before = victim.read_bytes()
    real = os.open

    def bad_disk(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == str(victim):
            raise OSError(errno.EIO, "bad disk")
        return real(path, *rest, **more)

    harmed_index(closed.path, "gone")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", bad_disk)
        closed.open()
        assert not all_there(closed.store)
        closed.store.put_many([blob("it can be written to")])
        closed.close()
    assert victim.read_bytes() == before
    harmed_index(closed.path, "gone")
    reopened(closed)
    closed.close()


@pytest.mark.parametrize("offset", [0, 8, 12, 16, 30, 60])
def test_a_segment_whose_header_is_damaged_takes_no_other_with_it(
    closed: Repository, rebuilt: list[str], offset: int
) -> None:
    victim = closed.segments()[0]
    flip(victim, offset)
    harmed_index(closed.path, "gone")
    store = closed.open()
    found = [data is not None for data in store.read_many([Digest.of(data) for data in BLOBS])]
    assert True in found
    assert False in found
    assert store.put_many([blob(data) for data in BLOBS]) == [None] * len(BLOBS)
    assert all_there(store)
    closed.close()


def test_files_that_the_index_does_not_know_go_and_the_ledger_counts_what_stays(closed: Repository) -> None:
    stray = closed.path / "segments" / "7fffffff.seg"
    stray.write_bytes(bytes(5_000_000))
    (closed.path / "segments" / "notes.txt").write_text("not ours to judge")
    private = closed.path / "uploads" / ("ab" * 32 + "-0123abcd")
    old, new = closed.path / "uploads" / ("cd" * 32), closed.path / "uploads" / ("ef" * 32)
    for path in (private, old, new):
        path.write_bytes(bytes(100_000))
    os.utime(old, (time.time() - 100_000, time.time() - 100_000))
    closed.open()
    assert not stray.exists()
    assert (closed.path / "segments" / "notes.txt").exists()
    assert [path.exists() for path in (private, old, new)] == [False, False, True]
    assert closed.claimed_bytes() == os.stat(new).st_blocks * 512
    assert closed.opened
    with closed.opened.index.reading() as txn:
        used = int.from_bytes(txn.get(b"used", db=closed.opened.index.space), "little")
    assert used == sum(path.stat().st_blocks * 512 for path in closed.segments() if path.suffix == ".seg")
    closed.close()


def test_touch_logs_that_nobody_merged_are_kept_up_to_a_bound(closed: Repository) -> None:
    for i in range(1100):
        (closed.path / "touch" / f"{i:04x}-1-1.log").touch()
    closed.open()
    left = {path.name for path in (closed.path / "touch").iterdir()}
    assert 1000 < len(left) <= 1026
    assert f"{1099:04x}-1-1.log" in left
    closed.close()


def test_the_quota_belongs_to_the_repository(tmp_path: Path) -> None:
    path = tmp_path / "repo"

    def opened_with(quota: Callable[[int], int | None]) -> int:
        opened = open_repository(path, quota_bytes=quota)
        opened.close()
        return opened.quota_bytes

    disk = os.statvfs(tmp_path)
    assert 0 < opened_with(lambda _: None) < disk.f_blocks * disk.f_frsize
    assert opened_with(lambda size_bytes: size_bytes // 2) == disk.f_blocks * disk.f_frsize // 2
    assert opened_with(lambda _: 50 * MIB) == 50 * MIB
    assert opened_with(lambda _: None) == 50 * MIB


def test_a_marker_keeps_what_a_later_version_wrote_into_it(closed: Repository) -> None:
    marker = recognise(closed.path)
    assert marker is not None
    write_marker(Layout(str(closed.path)), {**marker, "later": [1]})
    open_repository(closed.path, quota_bytes=lambda _: 77 * MIB).close()
    assert recognise(closed.path) == {**marker, "later": [1], "quota_bytes": 77 * MIB}


def test_the_last_one_out_says_that_all_is_well(tmp_path: Path, rebuilt: list[str]) -> None:
    repository = Repository(tmp_path / "repo")
    fill(repository.open())
    other = OtherProcess(repository.path)
    assert other.find_missing([Digest.of(BLOBS[0])]) == []
    repository.close()  # not the last
    other.put_many([blob("late")])
    copy = repository.copy(tmp_path / "copy")
    other.end()
    rebuilt.clear()
    reopened(repository)
    repository.close()
    assert rebuilt == []
    reopened(copy)
    copy.close()
    assert len(rebuilt) == 1


@pytest.mark.parametrize("fact", ["boot", "pid_namespace", "user"])
def test_a_repository_in_use_by_somebody_else_is_refused(tmp_path: Path, fact: str) -> None:
    repository = Repository(tmp_path / "repo")
    other = OtherProcess(repository.path)
    other.find_missing([])
    inhabitants = json.loads((repository.path / "open.lock").read_bytes())
    (repository.path / "open.lock").write_text(json.dumps({**inhabitants, fact: "another"}))
    with pytest.raises(RefusedToStart, match="in use"):
        open_repository(repository.path)
    other.end()
    repository.open()  # nobody is in it any more
    repository.close()


def test_a_repository_that_may_only_be_read_is_served_and_untouched(
    closed: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in closed.path.rglob("*")}
    monkeypatch.setattr(filesystem, "writable", lambda _: False)
    opened = open_repository(closed.path, quota_bytes=lambda _: 1)
    assert opened.read_only
    store = ReadOnlyStore(opened.layout, opened.index)
    assert all_there(store)
    assert read(store, Digest.of(b"")) == b""
    assert not store.intact(ROW, STAMP)
    store.settle([Digest.of(data) for data in BLOBS])
    assert [str(why) for why in store.put_many([blob("new")])] != ["None"]
    store.close()
    opened.close()
    assert {path: path.stat().st_mtime_ns for path in closed.path.rglob("*")} == before


def test_refusals_of_a_disk_that_was_full_from_the_start_are_made_good(closed: Repository) -> None:
    (closed.path / "refusals").write_bytes(b"")
    store = closed.open()
    assert not store.was_refused([Digest.of(b"never")])
    closed.close()


def test_a_rebuild_says_how_much_it_found(closed: Repository, caplog: pytest.LogCaptureFixture) -> None:
    harmed_index(closed.path, "gone")
    with caplog.at_level(logging.WARNING):
        closed.open()
    assert f"{len(BLOBS) + 1} blobs" in caplog.text
    closed.close()


def test_a_flipped_bit_in_a_segments_version_is_damage_and_keeps_nobody_from_starting(repository: Repository) -> None:
    fill(repository.store)
    repository.close()
    segment = sorted((repository.path / "segments").iterdir())[0]
    content = bytearray(segment.read_bytes())
    content[8] ^= 2
    segment.write_bytes(content)
    shutil.rmtree(repository.path / "index")
    store = repository.open()
    assert not segment.exists()
    assert store.put_many([blob(data) for data in BLOBS]) == [None] * len(BLOBS)
    assert all_there(store)


@pytest.mark.parametrize("index", ["believed", "made anew"])
def test_a_segment_that_was_left_open_is_charged_the_footer_that_it_will_get(tmp_path: Path, index: str) -> None:
    other = OtherProcess(tmp_path / "repo")
    other.put_many([blob(f"{i}") for i in range(1000)])
    other.kill()
    killed = Repository(tmp_path / "repo")
    if index == "made anew":
        shutil.rmtree(killed.path / "index")
    killed.open()
    assert killed.opened is not None
    space = Space(killed.opened.index, killed.opened.layout, reserve_bytes=0)
    with killed.opened.index.reading() as txn:
        charges = space.charges(txn)
        left = {n: row for n, row in killed.opened.index.all_segments(txn) if row.state is SegmentState.OPEN}
    assert left
    for number, row in left.items():
        file = SegmentFile(str(killed.path / "segments" / segment_name(number)), number)
        assert charges[number] >= segment_cost(row.end, len(read_records(file)[0]))


def test_a_segment_of_a_newer_millpond_is_refused_and_left_alone(repository: Repository, rebuilt: list[str]) -> None:
    fill(repository.store)
    repository.close()
    segment = sorted((repository.path / "segments").iterdir())[0]
    content = bytearray(segment.read_bytes())
    seed = SegmentHeader.decode(content).seed
    content[8] += 1  # the format version follows eight bytes of magic
    content[56:64] = xxhash.xxh3_64_intdigest(bytes(content[:56]), seed).to_bytes(8, "little")
    segment.write_bytes(content)
    shutil.rmtree(repository.path / "index")
    with pytest.raises(RefusedToStart, match="newer Millpond"):
        repository.open()
    assert rebuilt
    assert segment.read_bytes() == content
