"""Segments grow, are sealed, continued and given up as ``store.segments.writer`` says."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import MIB, Repository, blob, noise, read

from millpond.core.digest import Digest
from millpond.core.errors import NoSpace, NotReady
from millpond.store.index import SegmentState
from millpond.store.segments import writer as segment_writer
from millpond.store.segments.files import SegmentFile
from millpond.store.segments.open_segment import OpenSegment
from millpond.store.segments.rebuild import read_records


def put(repository: Repository, *data: bytes) -> list[Digest]:
    assert repository.store.put_many([blob(one) for one in data]) == [None] * len(data)
    return [Digest.of(one) for one in data]


def upload(repository: Repository, data: bytes) -> Digest:
    digest = Digest.of(data)
    stream = repository.store.begin_upload(digest, "session", offset=0)
    stream.write(data)
    stream.finish()
    return digest


def failing(error: int, monkeypatch: pytest.MonkeyPatch, *, times: int = 1_000_000, after: int = 0) -> None:
    """Let writes of segments fail, half done."""
    calls = [0]
    real = os.pwritev

    def write(descriptor: int, buffers: Any, offset: int) -> int:
        calls[0] += 1
        if after < calls[0] <= after + times:
            real(descriptor, [b"".join(buffers)[: sum(map(len, buffers)) // 2]], offset)
            raise OSError(error, os.strerror(error))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(segment_writer.os, "pwritev", write)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def sealed_records(repository: Repository, number: int) -> list[bytes]:
    """The keys in a segment's footer."""
    file = SegmentFile(str(repository.segment(number)), number)
    records, _, sealed = read_records(file)
    assert sealed
    return [record.key for record in records]


def test_small_blobs_share_a_segment_and_a_large_one_gets_its_own(repository: Repository) -> None:
    small = put(repository, b"a", noise(100_000))
    large = put(repository, noise(300_000, "x"), noise(2 * MIB))
    streamed = [upload(repository, noise(300_000, "streamed")), upload(repository, noise(100_000, "streamed"))]
    numbers = [repository.entry(digest).segment for digest in (*small, *large, *streamed)]
    assert numbers[0] == numbers[1] == numbers[5]
    assert len(set(numbers)) == 4


def test_a_full_segment_is_sealed_with_a_footer_that_lists_all_of_it(repository: Repository) -> None:
    digests = put(repository, *(noise(90_000, str(i)) for i in range(30)))
    digests += put(repository, noise(MIB))
    repository.close()
    repository.open()
    sealed = {number: row for number, row in repository.rows().items() if row.state is SegmentState.SEALED}
    assert len(sealed) >= 3
    in_footers = [key for number in sealed for key in sealed_records(repository, number)]
    listed = [digest.key for digest in digests if repository.entry(digest).segment in sealed]
    assert sorted(in_footers) == sorted(listed)
    assert all(row.synced_to == row.end and row.live_count for row in sealed.values())


def test_a_segment_is_continued_by_the_next_process(repository: Repository) -> None:
    (early,) = put(repository, b"early")
    repository.open()
    (late,) = put(repository, b"late")
    assert repository.entry(late).segment == repository.entry(early).segment
    assert repository.entry(late).offset > repository.entry(early).offset
    assert [read(repository.store, early), read(repository.store, late)] == [b"early", b"late"]


def test_what_lies_beyond_the_end_that_the_index_knows_is_cut_off(repository: Repository) -> None:
    (early,) = put(repository, b"early")
    number = repository.entry(early).segment
    repository.close()
    with repository.segment(number).open("ab") as segment:
        segment.write(b"what a killed process had written and not listed" * 1000)
    repository.open()
    end = repository.row(number).end
    (late,) = put(repository, b"late")
    assert repository.entry(late)[:2] == (number, end)
    assert repository.segment(number).stat().st_size == repository.row(number).end


def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    seen: set[int] = set()
    for life in range(5):
        repository.open()
        put(repository, *(noise(300_000, f"{life}/{i}") for i in range(3)))
        numbers = {repository.entry(Digest.of(noise(300_000, f"{life}/{i}"))).segment for i in range(3)}
        assert not numbers & seen
        seen |= numbers
        repository.close()
        for path in (tmp_path / "repo" / "segments").iterdir():
            path.unlink()  # evicted, say: the number stays taken
    repository.close()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_room_and_leaves_nothing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    (early,) = put(repository, b"early")
    files, open_files = repository.segments(), descriptors()
    with monkeypatch.context() as patch:
        failing(error, patch)
        for data in (b"small", noise(300_000), noise(3 * MIB)):
            (why,) = repository.store.put_many([blob(data)])
            assert isinstance(why, NoSpace)
            assert repository.store.find_missing([Digest.of(data)])
        assert read(repository.store, early) == b"early"
    assert repository.segments() == files
    assert descriptors() <= open_files + 1
    put(repository, b"small", noise(300_000), noise(3 * MIB))
    assert read(repository.store, Digest.of(b"small")) == b"small"


def test_a_disk_that_fails_is_not_ready(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(errno.EIO, monkeypatch, times=1)
    (why,) = repository.store.put_many([blob(b"small")])
    assert isinstance(why, NotReady)
    put(repository, b"small")
    assert read(repository.store, Digest.of(b"small")) == b"small"


def test_a_batch_that_failed_half_way_does_not_shift_what_follows(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository, b"early")
    with monkeypatch.context() as patch:
        real = os.open

        def no_descriptor(path: Any, flags: int, *rest: int) -> int:
            if flags & os.O_EXCL:
                raise OSError(errno.EMFILE, "too many open files")
            return real(path, flags, *rest)

        patch.setattr(segment_writer.os, "open", no_descriptor)
        outcomes = repository.store.put_many([blob(noise(50_000, "never")), blob(noise(300_000, "own segment"))])
        assert [type(why) for why in outcomes] == [NotReady, NotReady]
    streamed = upload(repository, noise(60_000, "streamed"))
    (after,) = put(repository, noise(70_000, "after"))
    assert read(repository.store, streamed) == noise(60_000, "streamed")
    assert read(repository.store, after) == noise(70_000, "after")


def test_a_file_that_could_not_be_copied_in_leaves_the_segment_as_it_was(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (early,) = put(repository, b"early")
    number = repository.entry(early).segment
    data = noise(100_000, "streamed")
    stream = repository.store.begin_upload(Digest.of(data), "session", offset=0)
    stream.write(data)
    with monkeypatch.context() as patch:
        failing(errno.ENOSPC, patch, after=1)
        with pytest.raises(NoSpace):
            stream.finish()
    assert repository.segment(number).stat().st_size == repository.row(number).end
    upload(repository, data)
    assert read(repository.store, Digest.of(data)) == data


@pytest.mark.parametrize("streamed", [False, True])
def test_a_counter_that_was_set_back_harms_no_segment(tmp_path: Path, *, streamed: bool) -> None:
    """Names that were restored from a copy hand out numbers that are taken."""
    repository = Repository(tmp_path / "repo")
    repository.open()
    before = [noise(300_000, f"{i}") for i in range(100)]
    put(repository, *before)
    repository.close()
    shutil.rmtree(tmp_path / "repo" / "names")
    repository.open()
    for i in range(5):
        data = noise(300_000, f"late {i}")
        upload(repository, data) if streamed else put(repository, data)
        assert read(repository.store, Digest.of(data)) == data
    assert all(read(repository.store, Digest.of(data)) == data for data in before)
    repository.close()


def test_what_fits_one_by_one_fits_together(repository: Repository) -> None:
    """Of a batch without room for all, as many are taken as there is room for."""
    writer, space = repository.store._writer, repository.store._room.space
    for size, count in ((900, 4000), (20_000, 900), (300_000, 60), (5_000_000, 12)):
        digests = [Digest.of(b"%d/%d" % (size, i))._replace(size_bytes=size) for i in range(count)]
        with repository.store._index.env.begin(write=True) as txn:
            left = space.left_bytes(txn)
            room = writer.room_for(digests[: count // 2]) + writer._claimed_bytes
            space.claim(txn, max(0, left - room))
        fitting = count - len(writer._those_without_room(digests))
        assert count * 0.97 // 2 - 1 <= fitting <= count // 2 + 1, size
        with repository.store._index.env.begin(write=True) as txn:
            space.give_back(txn, 1 << 40)
        writer._claimed_bytes = 0


def charged(repository: Repository) -> tuple[int, int]:
    """What the ledger says that segments take, and what this process has set aside."""
    assert repository.opened
    with repository.opened.index.reading() as txn:
        rows = dict(txn.cursor(repository.opened.index.space))
    by_number = {key: int.from_bytes(value, "little") for key, value in rows.items() if key.startswith(b"seg:")}
    used = int.from_bytes(rows.get(b"used", b""), "little")
    assert used == sum(by_number.values())
    return used, sum(int.from_bytes(value, "little") for key, value in rows.items() if key.startswith(b"claim:"))


def taken(repository: Repository) -> int:
    return sum(path.stat().st_blocks * 512 for path in repository.segments())


@pytest.mark.parametrize("size", [1, 700, 4096, 100_000, 300_000, 2_500_000])
def test_segments_are_charged_no_less_than_they_take_and_what_was_claimed_is_spent(
    repository: Repository, size: int
) -> None:
    writer = repository.store._writer
    for batch in range(12):
        contents = [noise(size, f"{batch}/{i}") for i in range(min(200, 1 + 2_000_000 // size))]
        assert set(repository.store.put_many([(Digest.of(data), data) for data in contents])) == {None}
        used, claimed = charged(repository)
        assert taken(repository) <= used
        assert claimed == writer._claimed_bytes
        if used > repository.quota_bytes * 0.7:
            break
    repository.store._sealer.close()  # what is full is sealed and measured
    sealed = [number for number, row in repository.rows().items() if row.state is SegmentState.SEALED]
    assert len(sealed) == len(repository.rows()) - (size < 262_000)
    used, _ = charged(repository)
    footer = sum(row.live_count * 52 for row in repository.rows().values() if row.state is not SegmentState.SEALED)
    assert taken(repository) <= used <= taken(repository) + footer + 4096
    repository.store._writer.close()
    assert charged(repository)[1] == 0


def test_what_two_batches_of_one_transaction_append_is_claimed_for_both(repository: Repository) -> None:
    """Until the transaction is through, nothing of what they have written is listed."""
    writer = repository.store._writer
    appended = [
        writer.append([(Digest.of(data), data) for data in [noise(100_000, f"{batch}/{i}") for i in range(20)]])
        for batch in range(2)
    ]
    assert taken(repository) <= sum(charged(repository))
    for one in appended:
        writer.forsake(one)
    claimed = charged(repository)[1]
    writer.forsake(writer.append([(Digest.of(b"small"), b"small")]))
    assert charged(repository)[1] == claimed, "it is there for what comes next"


def test_a_batch_that_fails_half_way_leaves_no_segment(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The large blob's segment is complete when the disk refuses the small one."""
    before = repository.segments()
    large, small = noise(5 * MIB, "large"), noise(1000, "small")
    flush = OpenSegment.flush

    def flush_large(segment: OpenSegment) -> None:
        if segment.end < MIB:
            raise OSError(errno.EIO, "no")
        flush(segment)

    monkeypatch.setattr(OpenSegment, "flush", flush_large)
    with pytest.raises(OSError, match="no"):
        repository.store._writer.append([(Digest.of(large), large), (Digest.of(small), small)])
    left = [path for path in repository.segments() if path not in before]
    assert all(path.stat().st_size < MIB for path in left)


def test_no_more_of_a_segment_counts_as_synced_than_is_listed(repository: Repository) -> None:
    """What was appended and never listed is cut off one day, and what is appended there then was not synced."""
    repository.store.put_many([blob("listed")])
    ((number, row),) = repository.rows().items()
    descriptor = os.open(repository.segment(number), os.O_RDONLY)
    repository.store._sealer._sync(number, descriptor, row.end + 1000)
    assert repository.rows()[number].synced_to == row.end
