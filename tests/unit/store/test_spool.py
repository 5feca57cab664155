"""Streamed uploads: their files, their room, and what a failure leaves of both."""

import errno
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import MIB, QUOTA_BYTES, OtherProcess, Repository, noise, read, soon

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import DigestMismatch, InvalidRequest, NoSpace
from millpond.services.cache import Cache
from millpond.services.writing import Writer
from millpond.store.room import holders
from millpond.store.room.pressure import Held
from millpond.store.segments import spool
from millpond.store.segments import writer as segment_writer

DATA = noise(2 * MIB + 77, "spooled")
SMALL = noise(100_000, "spooled")


def spooled(repository: Repository) -> list[Path]:
    return sorted((repository.path / "uploads").iterdir())


def begin(repository: Repository, *, offset: int = 0, data: bytes = DATA, session: str = "session") -> Any:
    return repository.store.begin_upload(Digest.of(data), session, offset=offset)


def suspended_at(repository: Repository, offset: int) -> None:
    stream = begin(repository)
    stream.write(DATA[:offset])
    stream.suspend()


@pytest.mark.parametrize("data", [DATA, SMALL], ids=["own segment", "shared segment"])
def test_a_finished_upload_leaves_no_file_and_no_claim(repository: Repository, data: bytes) -> None:
    before = repository.claimed_bytes()
    stream = begin(repository, data=data)
    assert repository.claimed_bytes() > before + len(data)
    stream.write(data)
    stream.finish()
    assert spooled(repository) == []
    assert repository.claimed_bytes() == before
    assert read(repository.store, Digest.of(data)) == data


@pytest.mark.parametrize("data", [DATA, SMALL], ids=["own segment", "shared segment"])
@pytest.mark.parametrize("where", ["rename", "pwritev"])
def test_an_upload_that_cannot_be_placed_leaves_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, data: bytes, where: str
) -> None:
    before, segments = repository.claimed_bytes(), repository.segments()
    for _ in range(3):
        stream = begin(repository, data=data)
        stream.write(data)

        def full(*_: Any) -> Any:
            raise OSError(errno.ENOSPC, "full")

        with monkeypatch.context() as patch:
            patch.setattr(spool.os, "rename", full)
            if where == "pwritev":
                patch.setattr(segment_writer.os, "pwritev", full)
            if where == "pwritev" or data is DATA:
                with pytest.raises(NoSpace):
                    stream.finish()
                stream.suspend()  # as an edge does with whatever failed
                stream.abandon()
                assert repository.claimed_bytes() == before
                assert repository.segments() == segments
            else:
                stream.finish()
                return
        assert spooled(repository) == []
    stream = begin(repository, data=data)
    stream.write(data)
    stream.finish()
    assert read(repository.store, Digest.of(data)) == data


def test_no_room_leaves_no_file_and_keeps_what_was_suspended(repository: Repository) -> None:
    stream = repository.store.begin_upload(
        Digest.of(b"x")._replace(size_bytes=QUOTA_BYTES * 95 // 100), "in the way", offset=0
    )
    in_the_way, claimed = spooled(repository), repository.claimed_bytes()
    for i in range(3):
        with pytest.raises(NoSpace):
            begin(repository, data=noise(5 * MIB), session=f"session {i}")
        with pytest.raises(NoSpace):
            repository.store.begin_upload(Digest.of(b"y")._replace(size_bytes=5 * MIB), "in the way", offset=0)
    assert spooled(repository) == in_the_way
    assert repository.claimed_bytes() == claimed
    stream.abandon()

    suspended_at(repository, MIB)
    stream = repository.store.begin_upload(
        Digest.of(b"x")._replace(size_bytes=QUOTA_BYTES * 95 // 100), "in the way", offset=0
    )
    claimed = repository.claimed_bytes()
    for offset in (0, MIB):
        with pytest.raises(NoSpace):
            begin(repository, offset=offset)
    assert repository.claimed_bytes() == claimed
    assert repository.store.upload_offset("session") == MIB
    stream.abandon()
    stream = begin(repository, offset=MIB)
    stream.write(DATA[MIB:])
    stream.finish()


def test_what_is_suspended_is_counted_until_it_goes(repository: Repository) -> None:
    before = repository.claimed_bytes()
    suspended_at(repository, MIB)
    assert repository.claimed_bytes() - before >= MIB
    begin(repository, offset=MIB).suspend()
    assert repository.claimed_bytes() - before >= MIB
    begin(repository).abandon()
    assert repository.claimed_bytes() == before
    suspended_at(repository, MIB)
    stream = begin(repository, offset=MIB)
    stream.write(DATA[MIB:])
    stream.finish()
    assert repository.claimed_bytes() == before


def test_an_upload_of_what_another_stored_meanwhile_takes_no_room(repository: Repository) -> None:
    streams = [begin(repository, session=f"{i}") for i in range(4)] + [
        begin(repository, data=SMALL, session=f"small {i}") for i in range(4)
    ]
    for stream in streams:
        stream.write(DATA if stream._digest == Digest.of(DATA) else SMALL)
    streams[0].finish()
    streams[4].finish()
    ends = {number: row.end for number, row in repository.rows().items()}
    for stream in streams[1:4] + streams[5:]:
        stream.finish()
    assert {number: row.end for number, row in repository.rows().items()} == ends
    assert len(repository.segments()) == len(ends)
    assert spooled(repository) == []
    assert read(repository.store, Digest.of(DATA)) == DATA


def test_private_files_are_never_gone_on_with(repository: Repository) -> None:
    first, second = begin(repository), begin(repository)
    first.write(DATA[:10])
    second.write(DATA[:20])
    assert len(spooled(repository)) == 2
    second.suspend()
    assert len(spooled(repository)) == 1
    first.suspend()
    assert repository.store.upload_offset("session") == 10


def test_a_name_of_an_upload_may_be_anything(repository: Repository) -> None:
    for session in ("", "../../etc/passwd", "a/b\0c", "x" * 100_000, "ü-0123"):
        stream = begin(repository, session=session)
        stream.write(DATA[:5])
        stream.suspend()
        assert repository.store.upload_offset(session) == 5
    assert all(len(path.name) == 64 for path in spooled(repository))


def test_what_a_killed_process_left_can_be_gone_on_with(repository: Repository) -> None:
    other = OtherProcess(repository.path)
    stream = other.begin_upload(Digest.of(DATA), "session", offset=0)
    stream.write(DATA[:MIB])
    with pytest.raises(InvalidRequest):
        begin(repository, offset=MIB)
    other.kill()
    assert repository.store.upload_offset("session") == MIB
    mine = begin(repository, offset=MIB)
    mine.write(DATA[MIB:])
    mine.finish()
    assert read(repository.store, Digest.of(DATA)) == DATA


def test_an_upload_that_was_killed_while_its_blob_was_put_away_can_be_gone_on_with(repository: Repository) -> None:
    digest = Digest.of(DATA)
    stream = begin(repository)
    stream.write(DATA)
    stream.suspend()
    with spooled(repository)[0].open("ab") as file:
        file.write(bytes(24))  # the checksums, which are written before the file gets its name as a segment
    cache = Cache(repository.store, repository.store, repository.names, wall_clock)
    assert Writer(cache, "", "").upload_offset(digest, "session") == len(DATA)
    begin(repository, offset=len(DATA)).finish()
    assert read(repository.store, digest) == DATA
    assert spooled(repository) == []


def test_what_was_changed_in_the_file_meanwhile_is_found_out(repository: Repository) -> None:
    suspended_at(repository, MIB)
    with spooled(repository)[0].open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    stream = begin(repository, offset=MIB)
    stream.write(DATA[MIB:])
    with pytest.raises(DigestMismatch):
        stream.finish()


def test_a_write_that_fails_can_be_gone_on_with(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = begin(repository)
    stream.write(DATA[:1000])
    real = os.pwritev

    def half(descriptor: int, buffers: Any, offset: int) -> int:
        real(descriptor, [b"".join(buffers)[:100]], offset)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(segment_writer.os, "pwritev", half)
        with pytest.raises(NoSpace):
            stream.write(DATA[1000:2000])
    assert stream.committed_bytes == 1000
    stream.suspend()
    offset = repository.store.upload_offset("session")
    assert 1000 <= offset <= 1100
    stream = begin(repository, offset=offset)
    stream.write(DATA[offset:])
    stream.finish()
    assert read(repository.store, Digest.of(DATA)) == DATA


def test_eight_streams_of_one_name_end_well(repository: Repository) -> None:
    before = repository.claimed_bytes()

    def stream(caller: int) -> None:
        for i in range(6):
            try:
                upload = begin(repository, offset=repository.store.upload_offset("session"))
            except InvalidRequest:
                continue  # another one was faster
            at = upload.committed_bytes
            upload.write(DATA[at : at + 500_000])
            if (caller + i) % 3 == 0:
                upload.suspend()
            elif (caller + i) % 3 == 1:
                upload.abandon()
            else:
                upload.write(DATA[at + 500_000 :])
                upload.finish()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(stream, range(8)))
    begin(repository).abandon()
    assert spooled(repository) == []
    assert repository.claimed_bytes() == before
    assert read(repository.store, Digest.of(DATA)) == DATA


# -- room that is made as bytes come --------------------------------------------------------------------------------


@pytest.fixture
def kept(repository: Repository) -> Iterator[Repository]:
    """While upkeep is alive: what does not fit now may fit soon."""
    descriptor = os.open(repository.path / "upkeeper.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield repository
    os.close(descriptor)


def ledger_row(repository: Repository, kind: bytes) -> int:
    assert repository.opened
    with repository.opened.index.reading() as txn:
        rows = dict(txn.cursor(repository.opened.index.space))
    return sum(int.from_bytes(value, "little") for key, value in rows.items() if key.startswith(kind + b":"))


def test_room_is_set_aside_as_bytes_come_and_not_because_of_what_was_announced(kept: Repository) -> None:
    size_bytes = QUOTA_BYTES * 9 // 10
    stream = kept.store.begin_upload(Digest.of(b"x")._replace(size_bytes=size_bytes), "session", offset=0)
    assert ledger_row(kept, b"upload") == 0
    assert size_bytes < ledger_row(kept, b"announced") < size_bytes * 1.01 + 10_000
    whole = ledger_row(kept, b"announced")
    for sent in range(1, 9):
        stream.write(DATA[: MIB // 4])
        taken = (kept.path / "uploads" / spooled(kept)[0]).stat().st_blocks * 512
        assert taken <= ledger_row(kept, b"upload") <= sent * MIB // 4 + QUOTA_BYTES // 1024 + 8192
        assert ledger_row(kept, b"upload") + ledger_row(kept, b"announced") == whole
    stream.suspend()
    assert ledger_row(kept, b"announced") == 0
    assert 2 * MIB <= ledger_row(kept, b"upload") <= 2 * MIB + 8192
    kept.store.begin_upload(Digest.of(b"x")._replace(size_bytes=size_bytes), "session", offset=2 * MIB).abandon()
    assert ledger_row(kept, b"upload") == ledger_row(kept, b"announced") == 0


def test_an_upload_waits_where_its_bytes_find_no_room(kept: Repository) -> None:
    space, writer = kept.store._room.space, kept.store._index_writer
    with kept.store._index.reading() as txn:
        room = space.left_bytes(txn)
    writer.run(lambda txn: space.takes(txn, 999, room - MIB))
    stream = begin(kept)  # two MiB: half of it must wait
    with ThreadPoolExecutor(1) as thread:
        finishing = thread.submit(lambda: (stream.write(DATA), stream.finish()))
        assert soon(lambda: ledger_row(kept, b"want"))
        assert not finishing.done()
        writer.run(lambda txn: space.free(txn, 999))
        finishing.result(10)
    assert read(kept.store, Digest.of(DATA)) == DATA
    assert ledger_row(kept, b"want") == ledger_row(kept, b"upload") == ledger_row(kept, b"announced") == 0


def test_a_blob_whose_batch_finds_no_room_waits_and_the_index_is_written_meanwhile(kept: Repository) -> None:
    space, writer = kept.store._room.space, kept.store._index_writer
    with kept.store._index.reading() as txn:
        room = space.left_bytes(txn)
    writer.run(lambda txn: space.takes(txn, 999, room))
    data = noise(200_000)
    with ThreadPoolExecutor(1) as thread:
        putting = thread.submit(kept.store.put_many, [(Digest.of(data), data)])
        assert soon(lambda: ledger_row(kept, b"want"))
        assert space.pressure().to_free_bytes >= 200_000
        writer.run(lambda txn: space.cannot_free(txn, Held(30 * MIB, 0, 0)))
        (why,) = putting.result(10)
        assert isinstance(why, NoSpace)
        assert "31.5 MB are pinned" in str(why)
        putting = thread.submit(kept.store.put_many, [(Digest.of(data), data)])
        assert soon(lambda: ledger_row(kept, b"want"))
        writer.run(lambda txn: space.free(txn, 999))
        assert putting.result(10) == [None]


def test_what_can_never_fit_waits_for_nothing(kept: Repository) -> None:
    huge = Digest.of(b"x")._replace(size_bytes=QUOTA_BYTES)
    with pytest.raises(NoSpace):
        kept.store.begin_upload(huge, "session", offset=0)
    assert spooled(kept) == []
    assert ledger_row(kept, b"announced") == 0


def test_a_file_that_cannot_be_removed_is_still_counted(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> None:
        raise OSError(errno.EROFS, "read-only")

    stream = begin(repository)
    stream.write(DATA[:MIB])
    with monkeypatch.context() as patch:
        patch.setattr(spool.os, "unlink", refuse)
        stream.abandon()
    assert MIB <= ledger_row(repository, b"upload") <= MIB + 8192
    assert ledger_row(repository, b"announced") == 0


def killed_before_its_blob_was_listed(stream: Any) -> None:
    """Its process goes: what it had done to the file stays, and its lock is free."""
    stream._close_chunk()
    stream._claim(stream._whole_bytes)
    stream.place()
    stream._close()


@pytest.mark.parametrize("data", [DATA, SMALL], ids=["own segment", "shared segment"])
def test_a_blob_that_was_put_away_and_never_listed_is_counted_while_its_client_begins_again(
    repository: Repository, data: bytes
) -> None:
    stream = begin(repository, data=data)
    stream.write(data)
    killed_before_its_blob_was_listed(stream)
    assert repository.uncounted_bytes() <= 0
    again = begin(repository, data=data)
    again.write(data[:-1])
    assert repository.uncounted_bytes() <= 0
    again.abandon()
    assert repository.uncounted_bytes() <= 0


def test_what_is_set_aside_for_an_upload_does_not_go_with_the_listing_of_another_of_its_name(
    repository: Repository,
) -> None:
    """The client has lost its connection just when all was there, and begins again before the index knows."""
    first = begin(repository)
    first.write(DATA)
    first._close_chunk()
    first._claim(first._whole_bytes)
    placed = first.place()
    second = begin(repository)
    second.write(DATA[:-1])
    assert repository.opened
    with repository.opened.index.writing() as txn:
        first.listed(txn, placed)
    (file,) = spooled(repository)
    row = f"upload:{holders.upload(file.name, file.stat().st_ino)}".encode()
    with repository.opened.index.reading() as txn:
        set_aside = int.from_bytes(txn.get(row, b"", db=repository.opened.index.space), "little")
    assert set_aside >= file.stat().st_blocks * 512
    second.write(DATA[-1:])
    second.finish()
    assert repository.uncounted_bytes() <= 0


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "in a batch"])
def test_a_blob_that_cannot_be_listed_leaves_no_segment(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, *, streamed: bool
) -> None:
    data = noise(repository.store._room.space.segment_bytes // 2, "not listed")
    before = repository.segments()

    def refuse(*_: object) -> int:
        raise NoSpace("the index has no room")

    monkeypatch.setattr(segment_writer.SegmentWriter, "list_placed", refuse)
    if streamed:
        stream = begin(repository, data=data)
        stream.write(data)
        with pytest.raises(NoSpace):
            stream.finish()
    else:
        (outcome,) = repository.store.put_many([(Digest.of(data), data)])
        assert isinstance(outcome, NoSpace)
    assert repository.segments() == before
    assert repository.uncounted_bytes() <= 0


def test_what_could_not_be_let_go_at_once_is_not_gone_on_with_before_it_is(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger could not be written. Whoever went on would find its own room let go a moment later."""
    writer = repository.store._index_writer
    stream = begin(repository)
    stream.write(DATA[:MIB])
    with monkeypatch.context() as patch:
        patch.setattr(writer, "run", lambda _: (_ for _ in ()).throw(NoSpace("full")))
        stream.suspend()
    del stream
    other = begin(repository)
    assert [file.name for file in spooled(repository) if "-" in file.name], "it has a file of its own"
    other.abandon()
    writer.flush()
    soon(lambda: repository.store.upload_offset("session") == MIB)
    again = begin(repository, offset=MIB)
    again.write(DATA[MIB:])
    assert repository.uncounted_bytes() <= 0
    again.finish()


@pytest.mark.parametrize("end", ["copied", "held already", "abandoned"])
def test_what_is_removed_takes_nothing_although_it_is_still_open(repository: Repository, end: str) -> None:
    """Its room is given away by the transaction, and its process may be stopped before it closes the file."""
    if end == "held already":
        repository.store.put_many([(Digest.of(SMALL), SMALL)])
    stream = begin(repository, data=SMALL)
    stream.write(SMALL)
    descriptor = os.dup(stream._descriptor)
    assert os.fstat(descriptor).st_blocks
    if end == "abandoned":
        stream.abandon()
    else:
        stream.finish()
    assert os.fstat(descriptor).st_blocks == 0
    os.close(descriptor)
    assert spooled(repository) == []
