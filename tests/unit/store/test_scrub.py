"""Scrubbing: everything is looked at, at a bounded rate, once per period; damage is taken off the index and told."""

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from unit.store.repositories import MIB, Repository, blob, flip, noise, read

from millpond.core.digest import Digest
from millpond.core.errors import NotReady
from millpond.store.care import verification
from millpond.store.care.quarantine import quarantine
from millpond.store.care.scrub import DAY_MS, Progress, ScrubDuty
from millpond.store.index import Entry
from millpond.store.segments.format import Damaged

NOW_MS = 1_700_000_000_000


class Scrubbing:
    """A duty over a repository, with clocks that stand still until they are moved."""

    def __init__(self, repository: Repository, *, days: int = 30, rate_bytes: int = 100 * MIB) -> None:
        assert repository.opened
        self.repository, self.index = repository, repository.opened.index
        self.layout = repository.opened.layout
        self.now_ms, self.seconds = NOW_MS, 0.0
        self.days, self.rate_bytes = days, rate_bytes
        self.restart()

    def restart(self) -> None:
        self.duty = ScrubDuty(
            self.index,
            self.layout,
            self.quarantine,
            days=self.days,
            rate_bytes=self.rate_bytes,
            clock=lambda: self.now_ms,
            monotonic=lambda: self.seconds,
        )

    def quarantine(self, digest: Digest, entry: Entry) -> int:
        with self.index.env.begin(write=True) as txn:
            return quarantine(self.index, self.layout.segments, txn, digest.key, entry)

    @property
    def progress(self) -> Progress:
        return Progress.read(self.layout.scrub)

    def whole_pass(self) -> Progress:
        """Run until nothing is to be done; the clock is moved as the duty asks."""
        for _ in range(10_000):
            nap = self.duty.run()
            if self.progress.finished_ms and not self.progress.running:
                return self.progress
            self.seconds += nap
        raise AssertionError("it does not end")


@pytest.fixture
def scrubbing(repository: Repository) -> Scrubbing:
    return Scrubbing(repository)


def put(repository: Repository, *data: bytes) -> list[Digest]:
    assert repository.store.put_many([blob(one) for one in data]) == [None] * len(data)
    return [Digest.of(one) for one in data]


def many(repository: Repository) -> list[Digest]:
    """Small blobs together, and some that have segments of their own."""
    small = [noise(size, "small") for size in range(1, 60_000, 1500)]
    return put(repository, *small, noise(400_000, "own"), noise(MIB, "one MiB"), noise(3 * MIB + 7, "large"))


def test_a_pass_looks_at_everything_once(repository: Repository, scrubbing: Scrubbing) -> None:
    digests = many(repository)
    done = scrubbing.whole_pass()
    assert (done.blobs, done.damaged, done.finished_ms) == (len(digests), 0, NOW_MS)
    assert done.size_bytes > sum(digest.size_bytes for digest in digests)
    assert scrubbing.duty.run() > 0
    assert scrubbing.progress == done


PLACES: dict[str, Callable[[Entry], int]] = {
    "magic": lambda entry: entry.offset,
    "size": lambda entry: entry.offset + 8,
    "offset": lambda entry: entry.offset + 17,
    "digest": lambda entry: entry.offset + 30,
    "header's checksum": lambda entry: entry.offset + 63,
    "first byte": lambda entry: entry.offset + 64,
    "last byte": lambda entry: entry.offset + 63 + entry.size_bytes,
    "checksum table": lambda entry: entry.offset + 64 + entry.size_bytes,
    "segment header": lambda entry: 20,
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("size_bytes", [3000, MIB, 3 * MIB + 7])
def test_every_flipped_bit_is_found_logged_counted_and_healed_by_the_next_upload(
    repository: Repository, scrubbing: Scrubbing, size_bytes: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = noise(size_bytes, "rotten")
    (digest,) = put(repository, data)
    other = put(repository, b"in another segment" if size_bytes > MIB // 4 else noise(MIB, "in another segment"))
    entry = repository.entry(digest)
    before = repository.row(entry.segment).incarnation
    flip(repository.segment(entry.segment), PLACES[where](entry), bit=5)
    done = scrubbing.whole_pass()
    assert (done.damaged, done.damaged_ever) == (1, 1)
    assert f"blob {digest} is damaged" in caplog.text
    assert repository.store.find_missing([digest, *other]) == [digest]
    assert repository.row(entry.segment).incarnation == before + 1  # closures that lie there are walked again
    put(repository, data)
    repository.open()  # a descriptor that was opened while its header was sound would hide that it is not
    assert read(repository.store, digest) == data


def test_neighbours_of_a_damaged_blob_stay(repository: Repository, scrubbing: Scrubbing) -> None:
    digests = many(repository)
    rotten = digests[7]
    flip(repository.segment(repository.entry(rotten).segment), repository.entry(rotten).offset + 70)
    assert scrubbing.whole_pass().damaged == 1
    assert repository.store.find_missing(digests) == [rotten]


def test_bytes_that_match_their_checksum_but_not_their_digest_are_found(
    repository: Repository, scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad memory at the moment of writing: the checksum was made of what was wrong already."""
    wrong, right = noise(2 * MIB + 1, "wrong"), Digest.of(noise(2 * MIB + 1, "right"))
    small_wrong, small_right = b"wrong", Digest.of(b"right")
    monkeypatch.setattr(Digest, "matches", lambda *_: True)
    assert repository.store.put_many([(right, wrong), (small_right, small_wrong)]) == [None, None]
    monkeypatch.undo()
    assert scrubbing.whole_pass().damaged == 2
    assert set(repository.store.find_missing([right, small_right])) == {right, small_right}


@pytest.mark.parametrize("harm", ["gone", "header"])
def test_a_segment_that_is_no_more_is_lost_as_a_whole(
    repository: Repository, scrubbing: Scrubbing, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody appends to it either: what is uploaded next heals."""
    contents = [noise(3000, "one"), noise(2000, "two"), noise(1000, "three")]
    lost, kept = put(repository, *contents), put(repository, noise(MIB, "kept"))
    path = repository.segment(repository.entry(lost[0]).segment)
    path.unlink() if harm == "gone" else flip(path, 20)
    assert scrubbing.whole_pass().damaged == 3
    assert "nor are 2 others that lie there" in caplog.text
    assert repository.store.find_missing([*lost, *kept]) == lost
    put(repository, *contents)
    repository.open()
    assert [read(repository.store, digest) for digest in lost] == contents


def test_what_eviction_took_meanwhile_is_not_damage(repository: Repository, scrubbing: Scrubbing) -> None:
    first, second = put(repository, noise(MIB, "first"), noise(MIB, "second"))
    scrubbing.rate_bytes = 1000
    scrubbing.restart()
    scrubbing.duty.run()  # the entries are read by now
    entry = repository.entry(second)
    assert scrubbing.quarantine(second, entry)  # as eviction does: first the entry, then the file
    repository.segment(entry.segment).unlink()
    done = scrubbing.whole_pass()
    assert (done.damaged, repository.store.find_missing([first])) == (0, [])


@pytest.mark.parametrize("size_bytes", [5000, 2 * MIB])
def test_a_read_error_is_damage_of_that_blob_only(
    repository: Repository, scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    before, bad, after = put(repository, noise(5000, "before"), noise(size_bytes, "bad"), noise(5000, "after"))
    entry = repository.entry(bad)
    reading = verification.read_at

    def failing(descriptor: int, size: int, offset: int, **how: Any) -> memoryview:
        of_its_segment = os.fstat(descriptor).st_ino == repository.segment(entry.segment).stat().st_ino
        if of_its_segment and offset < entry.offset + 100 and entry.offset + 70 < offset + size:
            raise Damaged("the disk could not read it: Input/output error")
        return reading(descriptor, size, offset, **how)

    monkeypatch.setattr(verification, "read_at", failing)
    assert scrubbing.whole_pass().damaged == 1
    assert repository.store.find_missing([before, bad, after]) == [bad]


def test_the_rate_is_kept_by_naps(repository: Repository, scrubbing: Scrubbing) -> None:
    many(repository)
    scrubbing.rate_bytes = MIB
    scrubbing.restart()
    done = scrubbing.whole_pass()
    assert scrubbing.seconds == pytest.approx(done.size_bytes / MIB, rel=0.01)


def test_a_pass_goes_on_where_it_was_after_a_restart(repository: Repository, scrubbing: Scrubbing) -> None:
    digests = many(repository)
    scrubbing.rate_bytes = 1000
    scrubbing.restart()
    while not scrubbing.progress.after:
        scrubbing.duty.run()
    before = scrubbing.progress
    scrubbing.restart()
    done = scrubbing.whole_pass()
    assert done.blobs <= len(digests) + 1  # one segment may have been half done
    assert done.begun_ms == before.begun_ms
    first = repository.entry(digests[0]).segment
    assert before.after >= first


def test_the_next_pass_begins_a_period_after_the_last_one_began(repository: Repository, scrubbing: Scrubbing) -> None:
    many(repository)
    assert scrubbing.whole_pass().begun_ms == NOW_MS
    scrubbing.now_ms += 30 * DAY_MS - 1
    assert scrubbing.duty.run() > 0
    assert not scrubbing.progress.running
    scrubbing.now_ms += 1
    scrubbing.duty.run()
    assert scrubbing.progress.begun_ms == NOW_MS + 30 * DAY_MS


def test_a_clock_that_was_set_back_does_not_put_it_off_for_years(repository: Repository, scrubbing: Scrubbing) -> None:
    many(repository)
    scrubbing.whole_pass()
    scrubbing.now_ms -= 1000 * DAY_MS
    scrubbing.duty.run()
    assert scrubbing.progress.begun_ms == NOW_MS - 1000 * DAY_MS


def test_with_no_days_nothing_is_looked_at(repository: Repository, scrubbing: Scrubbing) -> None:
    many(repository)
    scrubbing.days = 0
    scrubbing.restart()
    assert scrubbing.duty.run() > 60
    assert scrubbing.progress == Progress()


def test_a_machine_without_means_is_no_end_of_a_pass(
    repository: Repository, scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = many(repository)

    def failing(*_: Any, **__: Any) -> memoryview:
        raise NotReady("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(verification, "read_at", failing)
        with pytest.raises(NotReady):
            scrubbing.whole_pass()
    assert scrubbing.progress.running
    assert scrubbing.whole_pass().blobs == len(digests)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"begun_ms": 5}', b"\xff" * 4096])
def test_a_position_that_makes_no_sense_is_the_beginning(scrubbing: Scrubbing, content: bytes) -> None:
    with open(scrubbing.layout.scrub, "wb") as file:
        file.write(content)
    assert scrubbing.progress == Progress()


def test_a_position_of_wrong_types_is_the_beginning(scrubbing: Scrubbing) -> None:
    Progress(after=5).write(scrubbing.layout.scrub)
    assert scrubbing.progress.after == 5
    with open(scrubbing.layout.scrub, "rb") as file:
        content = json.loads(file.read())
    with open(scrubbing.layout.scrub, "wb") as file:
        file.write(json.dumps({**content, "after": "5"}).encode())
    assert scrubbing.progress == Progress()


def test_many_groups_are_verified_like_one(
    repository: Repository, scrubbing: Scrubbing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_BLOBS_AT_ONCE", 2)
    monkeypatch.setattr(verification, "_ROWS_AT_ONCE", 3)
    digests = many(repository)
    rotten = digests[-1]
    flip(repository.segment(repository.entry(rotten).segment), repository.entry(rotten).offset + 70)
    done = scrubbing.whole_pass()
    assert (done.blobs, done.damaged) == (len(digests), 1)


@pytest.mark.parametrize("size_bytes", [3000, 2 * MIB])
def test_an_entry_that_no_read_would_accept_is_found(
    repository: Repository, scrubbing: Scrubbing, size_bytes: int
) -> None:
    """A flipped bit in the index instead of the segment."""
    data = noise(size_bytes, "whole")
    (digest,) = put(repository, data)
    entry = repository.entry(digest)
    with scrubbing.index.env.begin(write=True) as txn:
        txn.put(digest.key, entry._replace(checksum=entry.checksum ^ 4).encode(), db=scrubbing.index.blobs)
    assert scrubbing.whole_pass().damaged == 1
    put(repository, data)
    assert read(repository.store, digest) == data
