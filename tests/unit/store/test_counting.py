"""Segments and uploads never take more than the ledger says, whatever fails on the way; nor is anything counted for ever."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import MIB, Repository, noise, soon
from unit.store.upkept import Upkept

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NoSpace
from millpond.store.eviction.chores import Abandoned
from millpond.store.eviction.forwarding import Forwarder
from millpond.store.index import Index
from millpond.store.repository.layout import write_marker
from millpond.store.room.quota import GIVEN
from millpond.store.segments.files import SegmentFiles
from millpond.store.segments.put_job import PutJob
from millpond.store.segments.writer import SegmentWriter


@contextmanager
def no_transaction(monkeypatch: pytest.MonkeyPatch, *, above_rows: int = 4) -> Iterator[None]:
    """Write transactions of the index that change more rows find no room."""
    see_to = Index.see_to

    def refuse(self: Index, txn: Any, *, rows: int = 4) -> None:
        if rows > above_rows:
            raise NoSpace("the quota has no room")
        see_to(self, txn, rows=rows)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "see_to", refuse)
        yield


def never(*_: object) -> Any:
    raise NoSpace("the quota has no room")


def batch(seed: object, count: int, size_bytes: int) -> list[tuple[Digest, bytes]]:
    contents = [noise(size_bytes, f"{seed}/{number}") for number in range(count)]
    return [(Digest.of(content), content) for content in contents]


def in_rows(repository: Repository, kind: bytes) -> int:
    assert repository.opened
    with repository.opened.index.reading() as txn:
        rows = dict(txn.cursor(repository.opened.index.space))
    return sum(int.from_bytes(value, "little") for key, value in rows.items() if key.startswith(kind + b":"))


def without_file(repository: Repository) -> dict[int, int]:
    """Segments that are charged, and what."""
    assert repository.opened
    space = repository.store._room.space
    with repository.opened.index.reading() as txn:
        charges = space.charges(txn).items()
    return {number: size for number, size in charges if not os.path.exists(space.segment_path(number))}


def abandoned(repository: Repository) -> Abandoned:
    assert repository.opened
    store = repository.store
    return Abandoned(str(repository.path / "segments"), repository.opened.index, store._room.space, store._sealer)


def give_quota(repository: Repository, quota_bytes: int) -> None:
    assert repository.opened
    write_marker(repository.opened.layout, {**repository.opened.marker, GIVEN: quota_bytes})
    assert soon(lambda: repository.store._room.space.quota_bytes == quota_bytes)


@contextmanager
def some_upkeep(repository: Repository) -> Iterator[None]:
    """Somebody says that upkeep is done, so it is worth waiting."""
    descriptor = os.open(repository.path / "upkeeper.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


# -- what cannot be listed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size_bytes"), [(1, 200_000), (20, 200_000), (100, 1000)])
def test_batches_that_cannot_be_listed_leave_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, count: int, size_bytes: int
) -> None:
    repository.store.put_many(batch("before", 1, 50_000))
    with no_transaction(monkeypatch):
        for number in range(6):
            repository.store.put_many(batch(number, count, size_bytes))
            assert repository.uncounted_bytes() <= 0
    for size in (100, 300_000):
        assert repository.store.put_many(batch("after", 1, size)) == [None]
        assert repository.uncounted_bytes() <= 0
    assert in_rows(repository, b"claim") == repository.store._writer._claimed_bytes
    kept = batch("before", 1, 50_000)[0]
    assert repository.store.read_many([kept[0]]) == [kept[1]]


def test_one_that_fails_beside_one_that_does_not_is_cut_off_when_both_are_over(repository: Repository) -> None:
    writer = repository.store._writer
    fine, failing = PutJob(writer, batch("fine", 3, 1000)), PutJob(writer, batch("failing", 3, 1000))
    assert repository.opened
    fine.prepare()
    failing.prepare()
    failing.failed()
    with repository.opened.index.writing() as txn:
        fine.apply(txn)
    fine.committed()
    assert repository.uncounted_bytes() <= 0
    assert repository.store.find_missing([digest for digest, _ in batch("fine", 3, 1000)]) == []
    assert len(repository.store.find_missing([digest for digest, _ in batch("failing", 3, 1000)])) == 3
    assert repository.store.put_many(batch("failing", 3, 1000)) == [None] * 3


def test_streamed_blobs_that_cannot_be_listed_leave_nothing_in_the_segment_that_they_share(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        ((digest, content),) = batch(number, 1, 240_000)
        upload = repository.store.begin_upload(digest, f"{number}", offset=0)
        upload.write(content)
        with monkeypatch.context() as patch:
            patch.setattr(SegmentWriter, "list_placed", never)
            with pytest.raises(NoSpace):
                upload.finish()
        assert repository.uncounted_bytes() <= 0


def test_who_waits_while_the_index_cannot_grow_is_refused_in_time_and_writes_nothing_that_stays(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROOM_SECONDS", 1)
    outcomes: list[object] = []
    with some_upkeep(repository), no_transaction(monkeypatch):
        waiting = threading.Thread(target=lambda: outcomes.extend(repository.store.put_many(batch("x", 17, 200_000))))
        begun = time.monotonic()
        waiting.start()
        while waiting.is_alive() and time.monotonic() < begun + 20:
            assert repository.uncounted_bytes() <= MIB, "one batch may be on its way"
            time.sleep(0.1)
        waiting.join(10)
    assert all(isinstance(outcome, NoSpace) for outcome in outcomes)
    assert len(outcomes) == 17
    assert time.monotonic() < begun + 10
    assert repository.uncounted_bytes() <= 0


# -- what is taken back -------------------------------------------------------------------------------------------------


def test_what_an_upload_had_announced_is_taken_back_as_soon_as_that_can_be_written(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = repository.claimed_bytes()
    ((digest, content),) = batch("x", 1, 2 * MIB)
    upload = repository.store.begin_upload(digest, "session", offset=0)
    upload.write(content[:1000])
    writer = repository.store._index_writer
    with no_transaction(monkeypatch, above_rows=0):
        upload.abandon()
        for _ in range(3):
            with suppress(NoSpace):
                writer.run(lambda _: None)
    writer.run(lambda _: None)
    assert repository.claimed_bytes() == before


def test_what_was_waited_for_is_wanted_no_more_as_soon_as_that_can_be_written(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = repository.store
    wish = store._room.wish(5 * MIB)
    wish.__enter__()
    with no_transaction(monkeypatch, above_rows=0):
        wish.__exit__(None, None, None)
        with pytest.raises(NoSpace):
            store._index_writer.run(lambda _: None)
    store._index_writer.run(lambda _: None)
    assert in_rows(repository, b"want") == 0


def test_a_smaller_quota_leaves_nothing_of_what_was_announced_under_a_larger_one(repository: Repository) -> None:
    give_quota(repository, 1024 * MIB)
    ((digest, content),) = batch("x", 1, 3 * MIB)
    upload = repository.store.begin_upload(digest, "session", offset=0)
    upload.write(content)
    upload._claim(upload._whole_bytes)  # the last thing that it does before it is killed
    upload._close()
    give_quota(repository, 64 * MIB)
    before = in_rows(repository, b"announced")
    repository.store.begin_upload(digest, "session", offset=len(content)).finish()
    assert in_rows(repository, b"announced") == before
    assert repository.uncounted_bytes() <= 0


def test_a_larger_quota_does_not_have_an_upload_copied_for_which_no_room_was_set_aside(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((digest, content),) = batch("x", 1, 2 * MIB)
    upload = repository.store.begin_upload(digest, "session", offset=0)
    upload.write(content)
    give_quota(repository, 1024 * MIB)
    list_placed: Callable[..., int] = SegmentWriter.list_placed

    def look(*arguments: Any) -> int:
        assert repository.uncounted_bytes() <= 0
        return list_placed(*arguments)

    monkeypatch.setattr(SegmentWriter, "list_placed", look)
    upload.finish()


# -- what is gone -------------------------------------------------------------------------------------------------------


def test_a_segment_that_was_removed_and_not_taken_off_the_ledger_is_so_soon(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who found no room charged what lay there; then the duty removed it and could not write that."""
    space = repository.store._room.space
    never_listed = Path(space.segment_path(999))
    never_listed.write_bytes(bytes(MIB))
    os.utime(never_listed, (0, 0))
    assert repository.opened
    with repository.opened.index.writing() as txn:
        space.charge_files(txn)
    with no_transaction(monkeypatch, above_rows=0), suppress(NoSpace):
        abandoned(repository).run()
    assert not never_listed.exists()
    abandoned(repository).run()
    assert without_file(repository) == {}


def test_what_somebody_else_charged_before_it_could_not_be_listed_is_taken_off_again(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert repository.opened
    index, space = repository.opened.index, repository.store._room.space
    prepare = PutJob.prepare

    def charged_meanwhile(job: PutJob) -> None:
        prepare(job)
        with index.writing() as txn:
            space.charge_files(txn)

    with monkeypatch.context() as patch:
        patch.setattr(PutJob, "prepare", charged_meanwhile)
        patch.setattr(SegmentWriter, "list_placed", never)
        repository.store.put_many(batch("own", 1, MIB // 2))
    abandoned(repository).run()
    assert without_file(repository) == {}


# -- copies -------------------------------------------------------------------------------------------------------------


def test_copies_that_nobody_points_to_any_more_are_counted(tmp_path: Path) -> None:
    upkept = Upkept(tmp_path / "repo", quota_bytes=64 * MIB)
    try:
        digests = upkept.put([200_000] * 5, "x")
        upkept.settled()
        parts, files = upkept.parts, SegmentFiles(upkept.layout.segments)
        forwarder = Forwarder(
            upkept.layout.segments,
            upkept.index,
            upkept.space,
            parts.sealer,
            take_numbers=parts.names.take_numbers,
            clock=upkept.clock,
        )
        found = [(digest.key, upkept.repository.entry(digest)) for digest in digests]
        forwarder.point(forwarder.copy(files, found[:1], lambda *_: None))
        for key, entry in found[1:]:
            moved: Sequence[Any] = forwarder.copy(files, [(key, entry)], lambda *_: None)
            with upkept.index.writing() as txn:  # a reader finds it damaged
                txn.delete(key, db=upkept.index.blobs)
            forwarder.point(moved)
            assert upkept.repository.uncounted_bytes() <= 0
        forwarder.close()
        files.close()
    finally:
        upkept.close()
