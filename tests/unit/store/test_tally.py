"""Hits and misses: counted in memory, told through the touch log, added up per hour for a week."""

from pathlib import Path

import lmdb
import pytest
from unit.store.repositories import Repository, soon

from millpond.store.uses import tally
from millpond.store.uses.counts import HOUR_MS, Counts, Sums
from millpond.store.uses.tally import KEPT_HOURS
from millpond.store.uses.touch_log import Group, Kind, decode


@pytest.fixture
def environment(tmp_path: Path) -> lmdb.Environment:
    return lmdb.open(str(tmp_path / "table"), max_dbs=1)


def counted(time_ms: int, *news: Sums) -> Group:
    return Group(Kind.COUNTED, time_ms, [one.encode() for one in news])


def test_news_is_what_came_since_it_was_last_asked_for() -> None:
    counts = Counts()
    assert counts.news() is None
    counts.names_found += 2
    counts.bytes_read += 7
    assert counts.news() == Sums(names_found=2, bytes_read=7)
    assert counts.news() is None
    counts.names_missed += 1
    assert counts.news() == Sums(names_missed=1)
    assert counts.sums() == Sums(names_found=2, names_missed=1, bytes_read=7)


def test_what_a_version_that_counts_less_or_more_wrote_is_understood() -> None:
    sums = Sums(*range(1, len(Sums._fields) + 1))
    assert Sums.decode(sums.encode()) == sums
    assert Sums.decode(sums.encode() + bytes(8)) == sums
    assert Sums.decode(sums.encode()[:16]) == Sums(1, 2)
    assert Sums.decode(b"") == Sums()


def test_hours_and_totals_add_up(environment: lmdb.Environment) -> None:
    table = environment.open_db(b"meta")
    begun = 1000 * HOUR_MS + 5
    with environment.begin(write=True) as txn:
        txn.put(b"another", b"row", db=table)
        assert tally.read(txn, table) == (0, Sums(), {})
        tally.add(txn, table, counted(begun, Sums(names_found=1), Sums(names_missed=2)))
        tally.add(txn, table, counted(begun + 10, Sums(names_found=4)))
        tally.add(txn, table, counted(begun + 2 * HOUR_MS, Sums(blobs_read=8)))
        found = tally.read(txn, table)
    assert found.since_ms == begun
    assert found.ever == Sums(names_found=5, names_missed=2, blobs_read=8)
    assert found.hours == {1000: Sums(names_found=5, names_missed=2), 1002: Sums(blobs_read=8)}
    assert found.of_last(24, begun + 3 * HOUR_MS) == found.ever
    assert found.of_last(2, begun + 3 * HOUR_MS) == Sums(blobs_read=8)
    assert found.of_last(3, begun + 2 * HOUR_MS) == found.ever


def test_hours_are_kept_for_a_week_and_totals_for_ever(environment: lmdb.Environment) -> None:
    table = environment.open_db(b"meta")
    with environment.begin(write=True) as txn:
        for hour in range(KEPT_HOURS + 50):
            tally.add(txn, table, counted(hour * HOUR_MS, Sums(names_found=1)))
        found = tally.read(txn, table)
    assert sorted(found.hours) == list(range(50, KEPT_HOURS + 50))
    assert found.ever.names_found == KEPT_HOURS + 50


def test_what_a_store_counts_is_in_its_log_soon_and_at_the_end(repository: Repository) -> None:
    repository.store.counts.names_found += 3
    assert soon(lambda: told(repository) == Sums(names_found=3))
    repository.store.counts.names_missed += 1
    repository.close()
    assert told(repository) == Sums(names_found=3, names_missed=1)


def told(repository: Repository) -> Sums:
    sums = Sums()
    for log in (repository.path / "touch").iterdir():
        for group in decode(log.read_bytes()):
            if group.kind is Kind.COUNTED:
                for row in group.rows:
                    sums = sums.plus(Sums.decode(row))
    return sums
