"""What takes room beside blobs takes it where the ledger has room for it, and everybody sees that at once."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep

import pytest
from unit.store.repositories import MIB, OtherProcess, Repository, blob, noise, soon
from unit.store.upkept import Time, Upkept, upkept

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import MillpondError, NoSpace, NotReady, WouldBlock
from millpond.core.names import Name, Namespace
from millpond.disk import locks
from millpond.disk.group_writer import Work
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.store.eviction.sweeping import End, Rule
from millpond.store.index import Index
from millpond.store.room.growth import Growth
from millpond.store.uses.touch_log import Kind

QUOTA_BYTES = 22_000_000


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def small(tmp_path: Path, time: Time) -> Iterator[Upkept]:
    with upkept(tmp_path / "repo", quota_bytes=QUOTA_BYTES, clock=time) as one:
        yield one


def claimed(small: Upkept, size_bytes: int) -> None:
    with small.index.writing() as txn:
        small.space.claim(txn, size_bytes)


def left(small: Upkept) -> int:
    small.space._taken.forget()
    with small.index.reading() as txn:
        return small.space.left_bytes(txn)


def fill(small: Upkept) -> None:
    """All that may be claimed is."""
    claimed(small, left(small) - 16 * limits.KIB)


def use_up(small: Upkept) -> None:
    """Nothing can grow any more, for whoever leaves room to move a segment."""
    growth = Growth(small.index, small.space)
    descriptor = os.open(small.repository.path / "in-the-way", os.O_RDWR | os.O_CREAT)
    size = limits.growth_bytes(QUOTA_BYTES)
    while size >= 4096:
        try:
            growth(size, functools.partial(os.posix_fallocate, descriptor, os.fstat(descriptor).st_size, size))
        except NoSpace:
            size //= 2
    os.close(descriptor)


def until_refused(step: Callable[[int], object], refusal: type[MillpondError]) -> None:
    with suppress(refusal):
        for i in range(1000):
            step(i)
        raise AssertionError("it went on for ever")


def test_what_has_grown_a_moment_ago_is_seen_by_whoever_claims(small: Upkept) -> None:
    room = left(small)
    with small.index.reading() as txn:
        assert small.space.left_bytes(txn) == room  # it was measured just now
    (small.repository.path / "touch" / "another.log").write_bytes(bytes(MIB))
    with pytest.raises(NoSpace):
        claimed(small, room)


def test_what_grows_leaves_room_to_move_a_segment(small: Upkept) -> None:
    fill(small)
    grown: list[int] = []
    growth = Growth(small.index, small.space)
    growth(limits.KIB, lambda: grown.append(1))
    with pytest.raises(NoSpace):
        growth(limits.growth_bytes(QUOTA_BYTES) + limits.segment_bytes(QUOTA_BYTES), lambda: grown.append(2))
    Growth(small.index, small.space, for_eviction=True)(limits.growth_bytes(QUOTA_BYTES), lambda: grown.append(3))
    assert grown == [1, 3]


def test_copies_are_claimed_before_they_are_made(small: Upkept) -> None:
    digests = small.put([50_000] * 20, "kept")
    small.settled()
    number = small.repository.entry(digests[0]).segment
    here = [digest for digest in digests if small.repository.entry(digest).segment == number]
    rule = Rule(0, small.clock(), float("inf"))  # all of it is kept
    with small.index.writing() as txn:
        taken = small.space._taken.overhead_bytes() + small.space.used_bytes(txn) + claims(small)
        kept_free = small.space._ahead_bytes(txn) + small.space.kept_for_eviction_bytes
        small.space.claim(txn, QUOTA_BYTES - taken - kept_free - 100_000, for_moving=True)
    listed = [(digest.key, small.repository.entry(digest)) for digest in here]
    with pytest.raises(NoSpace):
        small.eviction._sweeper._move(listed)
    sweeper = small.eviction._sweeper
    sweeper._sorted_out = lambda *_: (listed[:3], listed[3:], 0)  # type: ignore[method-assign]
    assert sweeper.sweep(number, rule, small.parts.merger.reader()).end is End.NO_ROOM
    assert small.is_whole(digests)
    with small.index.writing() as txn:
        small.space.give_back(txn, MIB)
    before = claims(small)
    small.eviction._sweeper._move(listed)
    assert claims(small) == before  # what the copies take is charged to their segment now
    assert small.repository.entry(here[0]).segment != number


def claims(small: Upkept) -> int:
    with small.index.reading() as txn:
        return sum(size for _, size in small.space._ledger.rows(txn, b"claim:"))


# -- logs ---------------------------------------------------------------------------------------------------------


def test_a_promise_finds_room_in_the_log_or_is_refused_and_never_taken_from_the_quota(small: Upkept) -> None:
    digests = small.put([1000] * 50, "held")
    fill(small)
    use_up(small)
    taken = small.taken_bytes()
    until_refused(lambda _: small.store.find_missing(digests), NotReady)
    small.store.intact(b"r" * 32, b"s" * 16)
    assert small.taken_bytes() <= taken + 4096


def test_who_may_not_wait_for_room_in_the_log_is_told_so(small: Upkept) -> None:
    digests = small.put([1000] * 50, "held")
    logs = len(os.listdir(small.layout.touch))
    until_refused(lambda _: small.store.find_missing(digests, wait=False), WouldBlock)
    assert len(os.listdir(small.layout.touch)) == logs
    assert small.store.find_missing(digests) == []
    assert small.store.find_missing(digests, wait=False) == []


def test_reads_are_noted_once_there_is_a_log_for_them(small: Upkept) -> None:
    (digest,) = small.put([1000], "read")
    small.store._touches.append(Kind.LEASED, [b"x" * 33] * 500)
    for _ in range(3000):
        small.store.read_many([digest])  # more than is buffered, and nobody waited
    assert small.store._touches._uses or len(os.listdir(small.layout.touch)) > 1
    small.settled()
    assert digest.key in small.parts.merger.reader().read().keys


def test_processes_that_are_killed_one_after_the_other_take_nothing_from_the_quota(tmp_path: Path) -> None:
    """Each begins a log of its own, and nobody merges them: with as many as these they are more than what is kept free."""
    path, quota_bytes = tmp_path / "repo", 8 * MIB
    repository = Repository(path, quota_bytes=quota_bytes)
    store = repository.open()
    held = [blob(noise(50_000, f"{i}")) for i in range(200)]
    outcomes = [store.put_many([one])[0] for one in held]
    assert outcomes[0] is None
    assert outcomes[-1] is not None  # it is full
    repository.close()
    for _ in range(30):
        process = OtherProcess(path, quota_bytes=quota_bytes)
        with suppress(NotReady):
            process.find_missing([held[0][0]])
        process.kill()
        assert taken_bytes(path) <= quota_bytes


def taken_bytes(path: Path) -> int:
    return sum(
        os.lstat(Path(parent, name)).st_blocks * 512
        for parent, directories, files in os.walk(path)
        for name in [*directories, *files]
    )


# -- databases ----------------------------------------------------------------------------------------------------


def test_a_name_that_the_quota_has_no_blocks_for_is_refused(small: Upkept) -> None:
    Growth(small.index, small.space).begin(small.layout)  # as in a worker
    fill(small)
    use_up(small)
    taken = small.taken_bytes()
    names = small.repository.names
    with names._env.begin():  # of what this sees nothing is used again
        until_refused(lambda i: bound(names, f"name {i}"), NoSpace)
    assert small.taken_bytes() <= taken + 4096


def test_the_quota_holds_while_a_process_that_was_stopped_looks_at_the_index(small: Upkept, time: Time) -> None:
    """Nothing that it could see is used again, so each transaction takes new pages: of the room that blobs give up."""
    for i in range(12):
        small.push(f"artifact {i}", [20_000] * 80)
        time.passes(hours=2)
    with small.index.env.begin():
        for i in range(300):
            small.store.put_many([blob(noise(20_000, f"{i}/{j}")) for j in range(5)])
            small.settled()
            with suppress(NoSpace):
                small.eviction.run()
            assert small.taken_bytes() <= QUOTA_BYTES
            time.passes(ms=1)
    time.passes(hours=2)
    assert small.is_whole(small.push("when it has gone on", [20_000] * 80))
    assert small.taken_bytes() <= QUOTA_BYTES


def bound(names: LmdbNames, key: str) -> None:
    names.bind([(Name("", Namespace.ASSET_BLOB, key), Binding(Digest.of(b"x"), pushed_at_ms=1, pushed_by=""))])


def test_a_name_waits_for_room_and_keeps_nobody_from_the_names_meanwhile(tmp_path: Path) -> None:
    """Upkeep, which makes the room, takes numbers of segments from them."""
    repository = Repository(tmp_path / "repo", quota_bytes=QUOTA_BYTES)
    store = repository.open()
    assert repository.opened
    index, layout, space = repository.opened.index, repository.opened.layout, store._room.space
    upkeeper = locks.open_lock_file(layout.upkeeper_lock)
    locks.lock(upkeeper, exclusive=True)  # somebody may make room
    with index.writing() as txn:
        space.claim(txn, space.left_bytes(txn) - 2 * MIB)
        spare = space.left_bytes(txn) + space._spare_bytes(txn) - space._ahead_bytes(txn)
    in_the_way = os.open(repository.path / "in-the-way", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(in_the_way, 0, spare - limits.segment_bytes(QUOTA_BYTES))
    with repository.names._env.begin(), ThreadPoolExecutor(1) as thread:  # of what this sees nothing is used again
        binding = thread.submit(lambda: [bound(repository.names, f"name {i}") for i in range(6)])
        assert soon(lambda: wanted(index))
        with repository.names._env.begin(write=True) as txn:
            txn.abort()
        assert not binding.done()
        # Who writes the index may be waiting for a number, and is not waited for.
        asked = repository.store._index_writer.submit(AskingForANumber(repository))
        sleep(0.05)  # it has begun
        os.ftruncate(in_the_way, 0)
        asked.result()
        binding.result(10)
    assert not wanted(index)
    os.close(in_the_way)
    os.close(upkeeper)
    repository.close()


class AskingForANumber(Work):
    """As a blob that needs a new segment."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(lambda _: None)
        self._repository = repository

    def prepare(self) -> None:
        self._repository.names.take_numbers(1)


def wanted(index: Index) -> bool:
    with index.reading() as txn:
        return any(key.startswith(b"want:") for key, _ in txn.cursor(index.space))


def test_what_a_database_may_take_is_given_back_when_it_needs_it_no_more(small: Upkept) -> None:
    path, allowed = small.layout.names, small.space.databases.allowed
    with small.index.writing() as txn:
        small.space.databases.allow(txn, path, 4 * MIB)
    before = left(small)
    bound(small.repository.names, "a name")
    with small.index.reading() as txn:
        assert allowed(txn, path) < MIB // 2
    assert left(small) > before + 3 * MIB
