"""What every blob store promises; an implementation is one that passes this.

A new one adopts it by a factory in ``PLACES``.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from unit.store.repositories import MIB, QUOTA_BYTES, OtherProcess, Repository, blob, noise, read, read_chunks

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, DigestMismatch, InvalidRequest, NoSpace, WouldBlock
from millpond.store.interface import BlobStore
from millpond.store.memory import MemoryStore

CALLERS = 8
SIZES = [1, 100, 200_000, 300_000, MIB - 1, MIB, MIB + 1, 5 * MIB]
"""Around the chunk size, and around a quarter of a segment of the repository here."""


class Place(Protocol):
    """Where blobs outlive the store that took them."""

    def open(self) -> BlobStore:
        """The store, fresh; what was open before is closed."""

    def elsewhere(self) -> Any:
        """One more store over the same blobs: where it can be, in another process."""

    def leave(self) -> None: ...


class MemoryPlace:
    def __init__(self, _: Path) -> None:
        self.store = MemoryStore(QUOTA_BYTES)

    def open(self) -> MemoryStore:
        return self.store

    def elsewhere(self) -> MemoryStore:
        return self.store

    def leave(self) -> None:
        self.store.close()


class SegmentPlace:
    def __init__(self, path: Path) -> None:
        self.repository = Repository(path / "repo")
        self.others: list[OtherProcess] = []

    def open(self) -> BlobStore:
        return self.repository.open()

    def elsewhere(self) -> OtherProcess:
        self.others.append(OtherProcess(self.repository.path))
        return self.others[-1]

    def leave(self) -> None:
        for other in self.others:
            other.end()
        self.repository.close()


PLACES: dict[str, Callable[[Path], Place]] = {"memory": MemoryPlace, "segments": SegmentPlace}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = PLACES[request.param](tmp_path)
    yield place
    place.leave()


@pytest.fixture
def store(place: Place) -> BlobStore:
    return place.open()


def put(store: Any, *data: bytes) -> list[Digest]:
    digests = [Digest.of(one) for one in data]
    assert store.put_many(list(zip(digests, data, strict=True))) == [None] * len(data)
    return digests


def upload(store: Any, data: bytes, session: str = "session", piece_bytes: int = 300_000) -> Digest:
    digest = Digest.of(data)
    stream = store.begin_upload(digest, session, offset=0)
    for at in range(0, len(data), piece_bytes):
        stream.write(data[at : at + piece_bytes])
    stream.finish()
    return digest


def is_held(store: Any, data: bytes) -> bool:
    digest = Digest.of(data)
    return store.find_missing([digest]) == [] and read(store, digest) == data == read_chunks(store, digest)


def is_unheard_of(store: Any, digest: Digest) -> bool:
    with suppress(BlobNotFound):
        read_chunks(store, digest)
        return False
    return bool(store.find_missing([digest]) == [digest]) and read(store, digest) is None


# -- put, find, read, open ----------------------------------------------------------------------------------------


def test_what_was_never_stored_is_missing(store: BlobStore) -> None:
    assert is_unheard_of(store, Digest.of(b"never"))


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("store_it", [put, upload])
def test_what_was_stored_is_found_and_read_by_every_way(
    store: BlobStore, store_it: Callable[..., object], size_bytes: int
) -> None:
    store_it(store, noise(size_bytes))
    assert is_held(store, noise(size_bytes))


def test_the_missing_come_in_the_order_of_the_question_and_as_often(store: BlobStore) -> None:
    held, a, b = Digest.of(b"held"), Digest.of(b"a"), Digest.of(b"b")
    put(store, b"held")
    assert store.find_missing([b, held, a, EMPTY, b, held]) == [b, a, b]
    assert store.find_missing([]) == []


def test_answers_come_in_the_order_of_the_question_and_as_often(store: BlobStore) -> None:
    a, b = put(store, b"a", b"b")
    never = Digest.of(b"never")
    contents = store.read_many([b, never, a, EMPTY, b])
    assert [None if data is None else bytes(data) for data in contents] == [b"b", None, b"a", b"", b"b"]
    assert store.read_many([]) == []


def test_the_empty_blob_is_always_held_and_may_be_stored(store: BlobStore) -> None:
    assert is_held(store, b"")
    assert store.put_many([(EMPTY, b"")]) == [None]
    upload(store, b"")
    with store.open(EMPTY) as opened:
        assert bytes(opened.chunk(0)) == b""
    assert is_held(store, b"")


@pytest.mark.parametrize("size_bytes", [0, 3, 5, 2**63 - 1])
def test_a_hash_with_another_size_is_another_blob(store: BlobStore, size_bytes: int) -> None:
    (digest,) = put(store, b"four")
    assert is_unheard_of(store, digest._replace(size_bytes=size_bytes))
    assert is_unheard_of(store, EMPTY._replace(size_bytes=7))


def test_chunks_come_in_any_order_as_often_as_asked(store: BlobStore) -> None:
    data = noise(2 * MIB + 17)
    (digest,) = put(store, data)
    with store.open(digest) as opened:
        for index in (2, 0, 1, 0):
            assert bytes(opened.chunk(index)) == data[index * MIB : (index + 1) * MIB]


def test_readers_of_one_blob_do_not_disturb_each_other(store: BlobStore) -> None:
    data = noise(3 * MIB)
    (digest,) = put(store, data)
    with store.open(digest) as one, store.open(digest) as other:
        assert [bytes(reader.chunk(i)) for i in range(3) for reader in (one, other)] == [
            data[i * MIB : (i + 1) * MIB] for i in (0, 0, 1, 1, 2, 2)
        ]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_come_in_any_of_their_types_and_are_copied(store: BlobStore, kind: Any) -> None:
    source = bytearray(b"changed later")
    digest = Digest.of(source)
    assert store.put_many([(digest, kind(source))]) == [None]
    stream = store.begin_upload(Digest.of(b"streamed"), "session", offset=0)
    for_stream = bytearray(b"streamed")
    stream.write(kind(for_stream))
    source[:], for_stream[:] = b"x" * len(source), b"y" * len(for_stream)
    stream.finish()
    assert is_held(store, b"changed later")
    assert is_held(store, b"streamed")


def test_a_batch_of_thousands_is_stored_and_read(store: BlobStore) -> None:
    many = [noise(random.Random(i).randrange(1, 3000), str(i)) for i in range(3000)]
    digests = put(store, *many)
    assert store.find_missing(digests) == []
    assert [data and bytes(data) for data in store.read_many(digests)] == many


def test_storing_what_is_held_is_fine(store: BlobStore) -> None:
    for _ in range(3):
        put(store, b"again", noise(400_000))
        upload(store, noise(400_000))
    assert is_held(store, b"again")
    assert is_held(store, noise(400_000))


def test_the_same_blob_twice_in_a_batch_is_stored_once_and_fine(store: BlobStore) -> None:
    put(store, b"twin", noise(400_000), b"twin", noise(400_000))
    assert is_held(store, b"twin")
    assert is_held(store, noise(400_000))


# -- lies ---------------------------------------------------------------------------------------------------------

LIES = [b"", b"righ", b"wrong", b"right\0", b"rjght"]


@pytest.mark.parametrize("lie", LIES, ids=repr)
def test_bytes_that_are_not_the_blob_leave_nothing_behind(store: BlobStore, lie: bytes) -> None:
    right = Digest.of(b"right")
    (why,) = store.put_many([(right, lie)])
    assert isinstance(why, DigestMismatch)
    assert is_unheard_of(store, right)
    put(store, b"right")  # the name is not poisoned
    assert is_held(store, b"right")


@pytest.mark.parametrize("lie", LIES, ids=repr)
def test_streamed_bytes_that_are_not_the_blob_leave_nothing_behind(store: BlobStore, lie: bytes) -> None:
    right = Digest.of(b"right")
    stream = store.begin_upload(right, "session", offset=0)
    if len(lie) > right.size_bytes:
        stream.write(lie[:2])
        with pytest.raises(DigestMismatch):
            stream.write(lie[2:])
        stream.abandon()
    else:
        stream.write(lie)
        with pytest.raises(DigestMismatch):
            stream.finish()
    assert store.upload_offset("session") == 0
    assert is_unheard_of(store, right)
    upload(store, b"right")
    assert is_held(store, b"right")


def test_the_right_hash_with_the_wrong_size_is_a_lie(store: BlobStore) -> None:
    lie = Digest.of(b"right")._replace(size_bytes=4)
    (why,) = store.put_many([(lie, b"right")])
    assert isinstance(why, DigestMismatch)
    (why,) = store.put_many([(lie, b"righ")])
    assert isinstance(why, DigestMismatch)
    assert store.find_missing([lie, Digest.of(b"right")]) == [lie, Digest.of(b"right")]


def test_each_blob_of_a_batch_succeeds_or_fails_alone(store: BlobStore) -> None:
    twin = Digest.of(b"twin")
    outcomes = store.put_many([blob("one"), (Digest.of(b"two"), b"2"), (twin, b"lie"), (twin, b"twin"), (EMPTY, b"x")])
    assert [type(why) for why in outcomes] == [
        type(None),
        DigestMismatch,
        DigestMismatch,
        type(None),
        DigestMismatch,
    ]
    assert is_held(store, b"one")
    assert is_held(store, b"twin")
    assert is_unheard_of(store, Digest.of(b"two"))


# -- room ---------------------------------------------------------------------------------------------------------


def fill(store: Any) -> list[bytes]:
    size_bytes = 2 * MIB - 1000  # leaves room for something small
    stored: list[bytes] = []
    while len(stored) < 10_000:
        data = noise(size_bytes, f"filling {len(stored)}")
        (why,) = store.put_many([(Digest.of(data), data)])
        if why is not None:
            assert isinstance(why, NoSpace)
            return stored
        stored.append(data)
    raise AssertionError("the store is larger than its quota")


def test_a_full_store_says_so_and_serves_what_it_has(store: BlobStore) -> None:
    stored = fill(store)
    assert QUOTA_BYTES * 0.9 < sum(map(len, stored)) <= QUOTA_BYTES
    assert all(is_held(store, data) for data in stored)
    (why,) = store.put_many([blob(noise(3 * MIB, "late"))])
    assert isinstance(why, NoSpace)
    assert is_unheard_of(store, Digest.of(noise(3 * MIB, "late")))
    with pytest.raises(NoSpace):
        store.begin_upload(Digest.of(noise(3 * MIB, "late")), "session", offset=0)
    assert store.put_many([blob(stored[0]), blob(stored[-1])]) == [None, None]


def test_what_does_not_fit_does_not_take_its_batch_with_it(store: BlobStore) -> None:
    stored = fill(store)
    too_big = noise(3 * MIB, "too big")
    outcomes = store.put_many([blob(too_big), blob(stored[0]), blob("small"), (EMPTY, b"")])
    assert [type(why) for why in outcomes] == [NoSpace, type(None), type(None), type(None)]
    assert is_held(store, b"small")
    assert is_unheard_of(store, Digest.of(too_big))


@pytest.mark.parametrize("size_bytes", [QUOTA_BYTES, QUOTA_BYTES + 1, 2**63 - 1])
def test_an_upload_that_can_never_fit_is_refused_at_once(store: BlobStore, size_bytes: int) -> None:
    put(store, b"x")
    with pytest.raises(NoSpace):
        store.begin_upload(Digest.of(b"huge")._replace(size_bytes=size_bytes), "session", offset=0)


@pytest.mark.parametrize("end", ["abandon", "finish"])
def test_an_upload_claims_all_its_room_before_its_first_byte_and_gives_it_back(store: BlobStore, end: str) -> None:
    size_bytes = QUOTA_BYTES * 6 // 10
    data = noise(MIB)
    first = store.begin_upload(Digest.of(data)._replace(size_bytes=size_bytes), "first", offset=0)
    with pytest.raises(NoSpace):
        store.begin_upload(Digest.of(b"second")._replace(size_bytes=size_bytes), "second", offset=0)
    (why,) = store.put_many([blob(noise(size_bytes, "a third"))])
    assert isinstance(why, NoSpace)
    first.write(data)
    with suppress(DigestMismatch):
        getattr(first, end)()
    store.begin_upload(Digest.of(b"second")._replace(size_bytes=size_bytes), "second", offset=0).abandon()


# -- interrupted uploads ------------------------------------------------------------------------------------------

LARGE = noise(2 * MIB + 5, "streamed")


def begin(store: Any, session: str = "session", *, offset: int = 0, data: bytes = LARGE) -> Any:
    return store.begin_upload(Digest.of(data), session, offset=offset)


def suspend_at(store: Any, offset: int, session: str = "session") -> None:
    stream = begin(store, session)
    stream.write(LARGE[:offset])
    stream.suspend()


def go_on(store: Any, offset: int, session: str = "session") -> None:
    stream = begin(store, session, offset=offset)
    stream.write(LARGE[offset:])
    stream.finish()


def test_an_upload_says_how_far_it_came(store: BlobStore) -> None:
    assert store.upload_offset("session") == 0
    stream = begin(store)
    assert stream.committed_bytes == 0
    stream.write(LARGE[:10])
    stream.write(b"")
    stream.write(LARGE[10:MIB])
    assert stream.committed_bytes == MIB
    assert is_unheard_of(store, Digest.of(LARGE))  # I1
    stream.suspend()
    assert store.upload_offset("session") == MIB


@pytest.mark.parametrize("offset", [1, MIB - 1, MIB, MIB + 1, len(LARGE)])
def test_an_interrupted_upload_goes_on_where_it_stopped(store: BlobStore, offset: int) -> None:
    suspend_at(store, offset)
    assert store.upload_offset("session") == offset
    stream = begin(store, offset=offset)
    assert stream.committed_bytes == offset
    stream.write(LARGE[offset:])
    stream.finish()
    assert is_held(store, LARGE)
    assert store.upload_offset("session") == 0


def test_an_upload_may_be_interrupted_again_and_again(store: BlobStore) -> None:
    suspend_at(store, 1000)
    for offset in range(1000, MIB, 250_000):
        stream = begin(store, offset=offset)
        stream.write(LARGE[offset : offset + 250_000])
        stream.suspend()
    go_on(store, store.upload_offset("session"))
    assert is_held(store, LARGE)


@pytest.mark.parametrize("offset", [1, 999, 1001, len(LARGE), len(LARGE) + 1])
def test_going_on_elsewhere_than_where_it_stopped_is_refused_and_harms_nothing(store: BlobStore, offset: int) -> None:
    suspend_at(store, 1000)
    with pytest.raises(InvalidRequest):
        begin(store, offset=offset)
    with pytest.raises(InvalidRequest):
        begin(store, "never heard of", offset=offset)
    assert store.upload_offset("session") == 1000
    go_on(store, 1000)
    assert is_held(store, LARGE)


def test_beginning_anew_forgets_what_came_before(store: BlobStore) -> None:
    suspend_at(store, 1000)
    stream = begin(store)
    assert store.upload_offset("session") == 0
    stream.write(LARGE[:10])
    stream.suspend()
    assert store.upload_offset("session") == 10
    upload(store, LARGE)
    assert store.upload_offset("session") == 0


def test_an_abandoned_upload_is_forgotten(store: BlobStore) -> None:
    suspend_at(store, 1000)
    stream = begin(store, offset=1000)
    stream.write(LARGE[1000:2000])
    stream.abandon()
    assert store.upload_offset("session") == 0
    with pytest.raises(InvalidRequest):
        begin(store, offset=2000)


def test_an_upload_that_brought_nothing_leaves_nothing(store: BlobStore) -> None:
    begin(store).suspend()
    assert store.upload_offset("session") == 0


def test_a_lie_that_was_interrupted_is_found_out_at_the_end(store: BlobStore) -> None:
    stream = begin(store)
    stream.write(bytes(1000))
    stream.suspend()
    stream = begin(store, offset=1000)
    stream.write(LARGE[1000:])
    with pytest.raises(DigestMismatch):
        stream.finish()
    assert store.upload_offset("session") == 0
    assert is_unheard_of(store, Digest.of(LARGE))


def test_sessions_of_one_blob_know_nothing_of_each_other(store: BlobStore) -> None:
    suspend_at(store, 1000, "one")
    suspend_at(store, 2000, "other")
    assert [store.upload_offset("one"), store.upload_offset("other")] == [1000, 2000]
    go_on(store, 1000, "one")
    assert store.upload_offset("other") == 2000
    go_on(store, 2000, "other")
    assert is_held(store, LARGE)


def test_an_upload_that_is_still_running_is_left_alone_by_a_second_one(store: BlobStore) -> None:
    """A client comes back while its old connection is half open."""
    first = begin(store)
    first.write(LARGE[:1000])
    assert store.upload_offset("session") == 0
    with pytest.raises(InvalidRequest):
        begin(store, offset=1000)
    second = begin(store)
    second.write(LARGE[:500])
    second.suspend()
    first.write(LARGE[1000:])
    third = begin(store)
    third.write(LARGE)
    third.finish()
    assert is_held(store, LARGE)
    first.finish()
    assert is_held(store, LARGE)
    assert store.upload_offset("session") == 0


def test_room_of_an_interrupted_upload_comes_back_when_it_is_done(store: BlobStore) -> None:
    size_bytes = QUOTA_BYTES * 6 // 10
    data = noise(size_bytes)
    for _ in range(3):
        stream = begin(store, data=data)
        stream.write(data[:MIB])
        stream.suspend()
        begin(store, data=data, offset=MIB).abandon()
    upload(store, data)
    assert is_held(store, data)


# -- without waiting ----------------------------------------------------------------------------------------------


def test_without_waiting_the_answer_is_right_or_withheld(store: BlobStore) -> None:
    data = noise(2 * MIB)
    held = put(store, data, b"small")
    never = Digest.of(b"never")
    for _ in range(20):
        with suppress(WouldBlock):
            assert store.find_missing([*held, never], wait=False) == [never]
        with suppress(WouldBlock):
            small, nothing = store.read_many([held[1], never], wait=False)
            assert (small and bytes(small), nothing) == (b"small", None)
        with suppress(WouldBlock), store.open(held[0], wait=False) as opened:
            assert bytes(opened.chunk(1, wait=False)) == data[MIB:]
        with suppress(WouldBlock), pytest.raises(BlobNotFound), store.open(never, wait=False):
            pass


# -- many at once -------------------------------------------------------------------------------------------------


def test_eight_callers_at_once_lose_and_mix_up_nothing(store: BlobStore) -> None:
    shared = [noise(size, "shared") for size in (10, 5000, 300_000, MIB + 1)]
    start = threading.Barrier(CALLERS)

    def call(caller: int) -> None:
        start.wait()
        for i in range(10):
            own = noise(100 + 7919 * caller + i, f"{caller}")
            batch = [own, *shared, own]
            random.Random(caller * i).shuffle(batch)
            put(store, *batch)
            assert is_held(store, own)
            streamed = noise(200_000, f"{caller}/{i}")
            upload(store, streamed, f"{caller}/{i}")
            upload(store, shared[3], "shared session")
            assert is_held(store, streamed)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(call, range(CALLERS)))
    assert all(is_held(store, data) for data in shared)
    assert all(is_held(store, noise(100 + 7919 * caller, f"{caller}")) for caller in range(CALLERS))


# -- two stores, and what stays ------------------------------------------------------------------------------------


def test_two_stores_over_the_same_blobs_see_each_others_at_once(place: Place, store: BlobStore) -> None:
    other = place.elsewhere()
    for i in range(20):
        for size_bytes in (50, 300_000):
            here, there = noise(size_bytes, f"here {i}"), noise(size_bytes, f"there {i}")
            put(store, here)
            assert other.find_missing([Digest.of(here)]) == []
            assert read(other, Digest.of(here)) == here
            put(other, there)
            assert is_held(store, there)
            put(other, here)
            put(store, there)
    assert is_held(store, noise(50, "here 0"))


def test_an_upload_that_broke_off_goes_on_at_the_other_store(place: Place, store: BlobStore) -> None:
    other = place.elsewhere()
    suspend_at(store, MIB + 1)
    assert other.upload_offset("session") == MIB + 1
    stream = begin(other, offset=MIB + 1)
    assert store.upload_offset("session") == 0
    with pytest.raises(InvalidRequest):
        begin(store, offset=MIB + 1)
    stream.write(LARGE[MIB + 1 : MIB + 9])
    stream.suspend()
    go_on(store, MIB + 9)
    assert is_held(store, LARGE)
    assert read(other, Digest.of(LARGE)) == LARGE


def test_two_stores_share_one_quota(place: Place, store: BlobStore) -> None:
    other = place.elsewhere()
    size_bytes = QUOTA_BYTES * 6 // 10
    here = store.begin_upload(Digest.of(b"x")._replace(size_bytes=size_bytes), "here", offset=0)
    with pytest.raises(NoSpace):
        other.begin_upload(Digest.of(b"y")._replace(size_bytes=size_bytes), "there", offset=0)
    here.abandon()
    other.begin_upload(Digest.of(b"y")._replace(size_bytes=size_bytes), "there", offset=0).abandon()


def test_what_was_stored_stays(place: Place, store: BlobStore) -> None:
    stored: Sequence[bytes] = [noise(size, "stays") for size in SIZES]
    put(store, *stored[::2])
    for data in stored[1::2]:
        upload(store, data)
    suspend_at(store, MIB + 1)
    store = place.open()
    assert all(is_held(store, data) for data in stored)
    assert store.upload_offset("session") == MIB + 1
    put(store, b"and more can come")
    go_on(store, MIB + 1)
    store = place.open()
    assert all(is_held(store, data) for data in [*stored, LARGE, b"and more can come"])


def test_closing_twice_is_fine(place: Place, store: BlobStore) -> None:
    store.close()
    store.close()


def test_the_chunk_size_is_what_the_tests_think() -> None:
    assert limits.CHUNK_BYTES == MIB
