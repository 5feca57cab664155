"""What a census makes of an index and a table of uses: a horizon, and the cheapest segments below it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.store.eviction import horizon
from millpond.store.eviction.census import Census
from millpond.store.eviction.horizon import EVERYTHING_MS, Plan
from millpond.store.index import Entry, Index, SegmentRow, SegmentState
from millpond.store.segments.files import segment_name
from millpond.store.segments.format import Record, SegmentHeader, footer, record_bytes
from millpond.store.uses.table import Uses
from millpond.store.uses.use import Use

NOW_MS = 1_700_000_000_000
KIB, MIB = limits.KIB, limits.MIB
SIZE = 9 * KIB


class Stored:
    """An index and uses as the test says; segments are files of zeros with a header."""

    def __init__(self, path: Path) -> None:
        (path / "segments").mkdir()
        self.segments = path / "segments"
        self.index = Index(str(path / "index"))
        self.uses = Uses(str(path / "uses"))

    def segment(
        self,
        number: int,
        blobs: Sequence[tuple[str, int] | tuple[str, int, int]],
        *,
        dead_bytes: int = 0,
        state: SegmentState = SegmentState.SEALED,
        suspect: bool = False,
        created_ms: int = NOW_MS,
        with_records: bool = False,
    ) -> None:
        """``blobs``: name, time of use (0: unknown), end of the lease. ``with_records``: as a writer leaves it."""
        at, live = 64, 0
        records = []
        with self.index.env.begin(write=True) as txn:
            for name, *_ in blobs:
                entry = Entry(number, at, SIZE, 0)
                txn.put(key(name), entry.encode(), db=self.index.blobs)
                records.append(Record(key(name), at, SIZE, 0))
                at += record_bytes(SIZE)
                live += record_bytes(SIZE)
            end = at + dead_bytes
            self.index.put_segment(txn, number, SegmentRow(state, end, end, live, len(blobs), suspect=suspect))
        with (self.segments / segment_name(number)).open("wb") as file:
            header = SegmentHeader.new(number, created_ms)
            file.write(header.encode())
            file.truncate(end)
            if with_records:
                file.seek(end)
                file.write(footer(records, end, header.seed))
        self.uses.note({key(name): Use(*rest) for name, *rest in blobs if rest[0]})

    def remove(self, number: int) -> None:
        """As eviction does."""
        with self.index.env.begin(write=True) as txn:
            txn.delete(number.to_bytes(4, "big"), db=self.index.segments)
        (self.segments / segment_name(number)).unlink()

    def census(self, *, leased_limit_bytes: int = 1 << 40, ignore_leases: bool = False) -> Census:
        return Census(
            self.index,
            self.uses,
            str(self.segments),
            now_ms=NOW_MS,
            leased_limit_bytes=leased_limit_bytes,
            ignore_leases=ignore_leases,
        )


def key(name: str) -> bytes:
    return Digest.of(name.encode()).key


def numbers(plan: Plan) -> list[int]:
    return [victim.number for victim in plan.victims]


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    stored = Stored(tmp_path)
    yield stored
    stored.uses.close()
    stored.index.close()


def test_the_oldest_go_and_no_more_than_are_needed(stored: Stored) -> None:
    for number in range(1, 6):
        stored.segment(number, [(f"{number}/{i}", NOW_MS - 10 * number) for i in range(10)])
    plan = stored.census().plan(150 * KIB)
    assert (numbers(plan), plan.short_bytes) == ([4, 5], 0)
    assert plan.horizon_ms == NOW_MS - 30
    assert all(victim.kept_bytes < 100 for victim in plan.victims)


def test_of_what_is_as_old_the_cheapest_to_move_goes(stored: Stored) -> None:
    stored.segment(1, [*((f"old{i}", NOW_MS - 9) for i in range(5)), *((f"new{i}", NOW_MS) for i in range(5))])
    stored.segment(2, [*((f"older{i}", NOW_MS - 9) for i in range(8)), *((f"newer{i}", NOW_MS) for i in range(2))])
    plan = stored.census().plan(60 * KIB)
    assert numbers(plan) == [2]
    assert plan.victims[0].kept_bytes == pytest.approx(2 * record_bytes(SIZE), abs=1300)


def test_where_no_segment_has_a_quarter_to_give_the_horizon_rises(stored: Stored) -> None:
    for number in range(1, 11):
        old = [(f"{number}/old{i}", NOW_MS - 1000) for i in range(2)]
        new = [(f"{number}/new{i}", NOW_MS - 100 + number) for i in range(8)]
        stored.segment(number, old + new)
    plan = stored.census().plan(50 * KIB)
    assert plan.short_bytes == 0
    assert plan.horizon_ms > NOW_MS - 100
    for victim in plan.victims:
        assert victim.kept_bytes <= 3 * victim.freed_bytes
    assert numbers(plan)[0] == 1  # the one whose newer blobs are the oldest


def test_the_horizon_also_rises_for_a_single_byte(stored: Stored) -> None:
    """Where eviction goes ahead of need, it begins with less than a blob."""
    stored.segment(1, [("old", NOW_MS - 1000), *((f"new{at}", NOW_MS - 100 + at) for at in range(9))])
    plan = stored.census().plan(1)
    assert numbers(plan) == [1]
    assert plan.short_bytes == 0


def test_dead_bytes_are_taken_before_anything_that_is_listed(stored: Stored) -> None:
    stored.segment(1, [("hot", NOW_MS)], dead_bytes=90 * KIB)
    stored.segment(2, [(f"cold{i}", NOW_MS - 50) for i in range(9)])
    plan = stored.census().plan_below(0, 50 * KIB)
    assert numbers(plan) == [1]


def test_what_is_pinned_is_never_cold(stored: Stored) -> None:
    stored.segment(1, [(f"pinned{i}", NOW_MS - 10_000) for i in range(10)])
    stored.segment(2, [(f"other{i}", NOW_MS) for i in range(10)])
    stored.uses.pin(1, [key(f"pinned{i}") for i in range(10)])
    census = stored.census()
    assert numbers(census.plan(10 * KIB)) == [2]
    assert census.pinned_bytes == 10 * record_bytes(SIZE)


def test_what_is_leased_is_not_cold_until_the_lease_ends(stored: Stored) -> None:
    stored.segment(1, [(f"leased{i}", NOW_MS - 10_000, NOW_MS + 1) for i in range(10)])
    stored.segment(2, [(f"ended{i}", NOW_MS - 5_000, NOW_MS) for i in range(10)])
    census = stored.census()
    plan = census.plan(200 * KIB)
    assert numbers(plan) == [2]
    assert plan.short_bytes > 0
    assert census.leased_bytes == pytest.approx(10 * record_bytes(SIZE), abs=1300)
    assert sorted(numbers(stored.census(ignore_leases=True).plan(160 * KIB))) == [1, 2]


def test_leases_beyond_their_bound_count_by_age_the_newest_stay(stored: Stored) -> None:
    for number in range(1, 5):
        stored.segment(
            number, [(f"{number}/{i}", NOW_MS - 10 * number, NOW_MS + 1000 - 10 * number) for i in range(10)]
        )
    census = stored.census(leased_limit_bytes=200 * KIB)
    plan = census.plan(1 << 30)
    assert sorted(numbers(plan)) == [3, 4]
    assert census.leased_bytes <= 200 * KIB


def test_a_blob_whose_use_is_not_known_is_as_old_as_its_segment(stored: Stored) -> None:
    stored.segment(1, [(f"used{i}", NOW_MS - 50) for i in range(10)])
    stored.segment(2, [(f"unknown{i}", 0) for i in range(10)], created_ms=NOW_MS - 100)
    stored.segment(3, [(f"newer{i}", 0) for i in range(10)], created_ms=NOW_MS - 10)
    assert numbers(stored.census().plan(80 * KIB)) == [2]


def test_what_is_still_written_is_no_victim(stored: Stored) -> None:
    stored.segment(1, [(f"open{i}", NOW_MS - 500) for i in range(10)], state=SegmentState.OPEN)
    stored.segment(2, [(f"sealed{i}", NOW_MS) for i in range(10)])
    census = stored.census()
    assert numbers(census.plan(80 * KIB)) == [2]
    patient = census.plan(80 * KIB, patient=True)  # it is about to be sealed, and it is older
    assert (numbers(patient), patient.short_bytes) == ([], 0)


def test_a_segment_that_could_not_be_synced_is_all_dead(stored: Stored) -> None:
    stored.segment(1, [(f"suspect{i}", NOW_MS) for i in range(10)], suspect=True, state=SegmentState.OPEN)
    stored.segment(2, [(f"cold{i}", NOW_MS - 100) for i in range(10)])
    assert numbers(stored.census().plan_below(0, 1)) == [1]


def test_with_slack_what_is_next_to_go_goes_instead_of_being_copied(stored: Stored) -> None:
    for number in range(1, 5):  # two writers that took turns
        stored.segment(number, [(f"{number}/{i}", NOW_MS - 5000 + 100 * (number // 3) + 10 * i) for i in range(10)])
    exact = stored.census().plan(90 * KIB)
    assert sum(victim.kept_bytes for victim in exact.victims) > 20 * KIB
    slack = stored.census().plan(90 * KIB, slack_bytes=90 * KIB)
    assert sum(victim.kept_bytes for victim in slack.victims) < KIB


def test_slack_ends_where_nothing_was_used_for_a_while(stored: Stored) -> None:
    stored.segment(1, [(f"first{i}", NOW_MS - 9000) for i in range(10)])
    stored.segment(2, [(f"second{i}", NOW_MS - 5000) for i in range(10)])
    assert stored.census().plan(50 * KIB, slack_bytes=MIB).horizon_ms == NOW_MS - 5000


def test_a_segment_that_is_gone_is_not_chosen_again(stored: Stored) -> None:
    for number in (1, 2):
        stored.segment(number, [(f"{number}/{i}", NOW_MS - 10) for i in range(10)])
    census = stored.census()
    census.gone(1)
    plan = census.plan(1 << 30)
    assert (numbers(plan), plan.horizon_ms) == ([2], EVERYTHING_MS)


def test_many_distinct_times_are_counted_in_little_memory(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "_DISTINCT_TIMES", 16)
    for number in range(1, 11):
        stored.segment(number, [(f"{number}/{i}", NOW_MS - 100_000 + 1000 * number + i) for i in range(20)])
    census = stored.census()
    assert len(census._cold._units) <= 16
    plan = census.plan(300 * KIB)
    assert numbers(plan) == [1, 2]
    assert NOW_MS - 100_000 + 2000 < plan.horizon_ms < NOW_MS - 100_000 + 6000


# -- a census that grows older -------------------------------------------------------------------------------------------


def test_what_was_sealed_and_removed_since_is_known_after_an_update(stored: Stored) -> None:
    stored.segment(1, [(f"1/{i}", NOW_MS - 30) for i in range(10)])
    stored.segment(2, [(f"2/{i}", NOW_MS - 20) for i in range(10)])
    stored.segment(3, [(f"3/{i}", NOW_MS - 10) for i in range(10)], state=SegmentState.OPEN)
    census = stored.census()
    stored.remove(1)
    stored.segment(3, [(f"3/{i}", NOW_MS - 10) for i in range(10)], with_records=True)
    stored.segment(4, [(f"4/{i}", NOW_MS - 40) for i in range(10)], with_records=True)
    census.update(NOW_MS)
    plan = census.plan(240 * KIB)
    assert sorted(numbers(plan)) == [2, 3, 4]
    assert numbers(census.plan(80 * KIB)) == [4]
    assert census.blobs == 30


def test_a_large_segment_that_was_sealed_since_counts_as_a_few_of_its_blobs_are_used(stored: Stored) -> None:
    count = 512
    census = stored.census()
    mixed: list[tuple[str, int] | tuple[str, int, int]] = []
    for i in range(count):  # a half is cold, a quarter leased, and a quarter young; what came together lies together
        kind = i * 8 // count
        mixed.append(
            (f"{i}", NOW_MS - 30, NOW_MS + 9) if kind in (2, 3) else (f"{i}", NOW_MS - (50 if kind > 3 else 2))
        )
    stored.segment(1, mixed, with_records=True)
    census.update(NOW_MS)
    live_bytes = count * record_bytes(SIZE)
    (victim,) = census.plan_below(NOW_MS - 40, 1).victims
    assert victim.kept_bytes == pytest.approx(live_bytes / 2, rel=0.01)
    assert census.leased_bytes == pytest.approx(live_bytes / 4, rel=0.01)
    assert census.cold_bytes == pytest.approx(live_bytes * 3 / 4, rel=0.01)


def test_no_order_of_blobs_makes_a_segment_seem_what_it_is_not(stored: Stored) -> None:
    """Whoever knew which blobs stand for the others could have upkeep look at the same segments again and again."""
    census = stored.census()
    stored.segment(1, [(f"{i}", NOW_MS - (2 if i % 40 else 50)) for i in range(32 * 40)], with_records=True)
    census.update(NOW_MS)
    assert not census.plan_below(NOW_MS - 40, 1).victims  # a fortieth of it is cold


def test_what_did_not_go_when_it_was_looked_at_is_not_guessed_again(stored: Stored) -> None:
    census = stored.census()
    stored.segment(1, [(f"{i}", NOW_MS - (2 if i % 8 else 50)) for i in range(32 * 8)], with_records=True)
    census.update(NOW_MS)
    census.gone(1)
    census.update(NOW_MS)
    (victim,) = census.plan_below(NOW_MS - 40, 1, copied_per_freed=99).victims
    assert victim.kept_bytes == pytest.approx(32 * 7 * record_bytes(SIZE), rel=0.01)


def test_what_is_being_written_is_as_old_as_its_segment_in_an_update(stored: Stored) -> None:
    census = stored.census()
    stored.segment(1, [(f"open{i}", NOW_MS - 10) for i in range(10)], state=SegmentState.OPEN, created_ms=NOW_MS - 500)
    stored.segment(2, [(f"sealed{i}", NOW_MS - 5) for i in range(10)], with_records=True)
    census.update(NOW_MS)
    patient = census.plan(80 * KIB, patient=True)
    assert (numbers(patient), patient.short_bytes) == ([], 0)
    assert numbers(census.plan(80 * KIB)) == [2]
    assert census.other_bytes > 90 * KIB


def test_what_was_used_or_promised_no_more_counts_once_it_is_refreshed(stored: Stored) -> None:
    stored.segment(1, [(f"1/{i}", NOW_MS - 30) for i in range(10)], with_records=True)
    stored.segment(2, [(f"2/{i}", NOW_MS - 20) for i in range(10)], with_records=True)
    stored.segment(3, [(f"3/{i}", NOW_MS - 40, NOW_MS + 9) for i in range(10)], with_records=True)
    census = stored.census()
    stored.uses.used([key(f"1/{i}") for i in range(10)], NOW_MS)
    stored.uses.unlease([key(f"3/{i}") for i in range(10)], NOW_MS)
    census.refresh([1, 3])
    assert numbers(census.plan(80 * KIB)) == [3]
    assert numbers(census.plan(160 * KIB)) == [2, 3]
    assert census.leased_bytes == 0


def test_leases_that_were_ended_for_being_too_many_do_not_come_back(stored: Stored) -> None:
    """What the plan takes for cold must be so for whoever carries it out, too."""
    for number in range(1, 5):
        leased = [(f"{number}/{i}", NOW_MS - 10 * number, NOW_MS + 1000 - 10 * number) for i in range(10)]
        stored.segment(number, leased, with_records=True)
    census = stored.census(leased_limit_bytes=200 * KIB)
    floor_ms = census.lease_floor_ms
    assert floor_ms > NOW_MS
    census.update(NOW_MS + 1)
    assert census.lease_floor_ms == floor_ms
    assert sorted(numbers(census.plan(1 << 30))) == [3, 4]
    stored.segment(5, [(f"5/{i}", NOW_MS, NOW_MS + 1000) for i in range(10)], with_records=True)
    census.update(NOW_MS + 2)
    assert census.lease_floor_ms > floor_ms
    assert sorted(numbers(census.plan(1 << 30))) == [2, 3, 4]
    assert census.leased_bytes <= 200 * KIB


def test_leases_end_in_an_update(stored: Stored) -> None:
    stored.segment(1, [(f"1/{i}", NOW_MS - 30, NOW_MS + 5) for i in range(10)])
    census = stored.census()
    assert census.plan(1).victims == []
    census.update(NOW_MS + 5)
    assert numbers(census.plan(80 * KIB)) == [1]


def test_a_segment_that_became_suspect_is_all_dead_after_an_update(stored: Stored) -> None:
    blobs = [(f"1/{i}", NOW_MS) for i in range(10)]
    stored.segment(1, blobs)
    census = stored.census()
    stored.segment(1, blobs, suspect=True)
    census.update(NOW_MS)
    assert numbers(census.plan_below(0, 1)) == [1]


def test_leases_of_what_is_gone_do_not_count(stored: Stored) -> None:
    for number in (1, 2):
        stored.segment(number, [(f"{number}/{i}", NOW_MS - 30, NOW_MS + 5) for i in range(10)], with_records=True)
    census = stored.census(leased_limit_bytes=200 * KIB)
    stored.remove(1)
    stored.segment(3, [(f"3/{i}", NOW_MS, NOW_MS + 9) for i in range(10)], with_records=True)
    census.update(NOW_MS)
    assert census.plan(1).victims == []
