"""Touch logs are read once, to their ends, and go when nobody will write to them any more."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.store.repositories import known

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.store.uses import merging
from millpond.store.uses.merging import Merger
from millpond.store.uses.table import Uses
from millpond.store.uses.touch_log import Kind, TouchLog, encode
from millpond.store.uses.use import NameUse, Use

NOW_MS = 1_700_000_000_000
A, B, C = (Digest.of(text).key for text in (b"a", b"b", b"c"))
ROW = b"r" * 32


class Logged:
    """A directory of logs, the table they are merged into, and a clock."""

    def __init__(self, path: Path) -> None:
        self.now_ms = NOW_MS
        self.directory = path / "touch"
        self.directory.mkdir()
        self.uses = Uses(str(path / "uses"))
        self.merger = Merger(str(self.directory), self.uses, lambda: self.now_ms)
        self.log = TouchLog(str(self.directory), lambda: self.now_ms)

    def logs(self) -> list[str]:
        return sorted(os.listdir(self.directory))


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Logged]:
    logged = Logged(tmp_path)
    yield logged
    logged.log.close()
    logged.uses.close()


def test_uses_and_leases_of_blobs_are_merged(logged: Logged) -> None:
    logged.log.append(Kind.LEASED, [A, B])
    logged.now_ms += 5
    logged.log.append(Kind.USED, [A])
    logged.merger.merge()
    until = NOW_MS + limits.LEASE_MS
    assert known(logged.uses, [A, B]) == {A: Use(NOW_MS + 5, until, 1), B: Use(NOW_MS, until, 1)}


def test_each_promise_to_a_client_is_counted_and_a_walk_is_none(logged: Logged) -> None:
    logged.log.append(Kind.LEASED, [A])
    logged.log.append(Kind.LEASED, [A])
    logged.log.append(Kind.WALKED, [A, B])
    logged.merger.merge()
    until = NOW_MS + limits.LEASE_MS
    assert known(logged.uses, [A, B]) == {A: Use(NOW_MS, until, 2), B: Use(NOW_MS, until, 0)}


def test_names_are_merged_with_what_is_known_of_their_closures(logged: Logged) -> None:
    logged.log.append(Kind.NAME_BOUND, [ROW + (NOW_MS - 9).to_bytes(8, "little")])
    logged.now_ms += 5
    logged.log.append(Kind.NAME_USED, [ROW])
    logged.merger.merge()
    assert logged.uses.name(ROW) == NameUse(NOW_MS + 5, NOW_MS - 9, NOW_MS)
    logged.now_ms += 5
    logged.log.append(Kind.NAME_WALKED, [ROW + (NOW_MS + 8).to_bytes(8, "little")])
    logged.merger.merge()
    assert logged.uses.name(ROW) == NameUse(NOW_MS + 10, NOW_MS + 8, NOW_MS)


def test_what_was_merged_is_not_read_again(logged: Logged) -> None:
    logged.log.append(Kind.USED, [A])
    assert logged.merger.merge() == 1
    logged.log.append(Kind.USED, [B, C])
    assert logged.merger.merge() == 2
    assert logged.merger.merge() == 0


def test_a_log_goes_when_its_process_has_let_it_go_and_not_before(logged: Logged) -> None:
    logged.log.append(Kind.USED, [A])
    logged.merger.merge()
    assert len(logged.logs()) >= 1
    logged.log.append(Kind.USED, [B])
    logged.log.close()
    logged.merger.merge()
    assert known(logged.uses, [A, B]).keys() == {A, B}
    assert not [name for name in logged.logs() if name.endswith(".log")]
    logged.merger.merge()
    with logged.uses.reading() as txn:
        assert not [key for key, _ in txn.cursor(logged.uses.meta) if key.startswith(b"log:")]


def test_an_empty_log_may_be_one_that_is_just_being_begun(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    newborn = logged.directory / "newborn.log"
    newborn.touch()
    logged.merger.merge()
    assert newborn.exists()
    monkeypatch.setattr(merging, "_NEWBORN_SECONDS", -1)
    logged.merger.merge()
    assert not newborn.exists()


def test_half_a_group_hides_only_itself(logged: Logged) -> None:
    whole, torn = encode(Kind.USED, NOW_MS, [A]), encode(Kind.USED, NOW_MS, [B])
    (logged.directory / "killed.log").write_bytes(whole + torn[:-1])
    logged.merger.merge()
    assert known(logged.uses, [A, B]).keys() == {A}
    assert "killed.log" not in logged.logs()


def test_a_wrong_clock_makes_nothing_young_for_ever(logged: Logged) -> None:
    (logged.directory / "future.log").write_bytes(
        encode(Kind.LEASED, NOW_MS + 10**12, [A]) + encode(Kind.NAME_USED, NOW_MS + 10**12, [ROW])
    )
    logged.merger.merge()
    assert known(logged.uses, [A]) == {A: Use(NOW_MS, NOW_MS + limits.LEASE_MS, 1)}
    assert logged.uses.name(ROW) == NameUse(NOW_MS)


def test_a_long_log_is_merged_in_pieces(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(merging, "_PIECE_BYTES", 100)  # a group is longer than that
    keys = [Digest.of(b"%d" % i).key for i in range(200)]
    for start in range(0, 200, 25):
        logged.log.append(Kind.USED, keys[start : start + 25])
    assert logged.merger.merge() == 200
    assert known(logged.uses, keys).keys() == set(keys)


def test_a_reader_sees_what_came_since_the_merge_without_merging_it(logged: Logged) -> None:
    logged.log.append(Kind.USED, [A])
    logged.merger.merge()
    reader = logged.merger.reader()
    assert reader.read() == (set(), set())
    logged.log.append(Kind.LEASED, [B])
    logged.log.append(Kind.NAME_USED, [ROW])
    assert reader.read() == ({B}, {ROW})
    other = TouchLog(str(logged.directory), lambda: NOW_MS)  # a process that was started meanwhile
    other.append(Kind.USED, [C])
    assert reader.read() == ({B, C}, {ROW})
    assert known(logged.uses, [B, C]) == {}
    other.close()
