"""What upkeep knows of uses: times only rise, and what may be wrong is begun anew."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from unit.store.repositories import known

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.store.repository import filesystem
from millpond.store.repository.distrust import distrust
from millpond.store.repository.layout import Layout
from millpond.store.uses.table import Uses
from millpond.store.uses.use import NameUse, Use

NOW_MS = 1_700_000_000_000
A, B, C = (Digest.of(text).key for text in (b"a", b"b", b"c"))
ROW = b"r" * 32


@pytest.fixture
def uses(tmp_path: Path) -> Iterator[Uses]:
    uses = Uses(str(tmp_path / "uses"))
    yield uses
    uses.close()


def test_times_and_leases_only_rise(uses: Uses) -> None:
    uses.note({A: Use(NOW_MS, NOW_MS + 5)})
    uses.note({A: Use(NOW_MS - 1, NOW_MS + 9), B: Use(NOW_MS)})
    uses.used([A], NOW_MS + 2)
    assert known(uses, [A, B, C]) == {A: Use(NOW_MS + 2, NOW_MS + 9), B: Use(NOW_MS)}


def test_only_leases_of_before_are_ended(uses: Uses) -> None:
    until = NOW_MS + limits.LEASE_MS
    uses.note({A: Use(NOW_MS, until, 1), B: Use(NOW_MS + 1, until + 1, 1)})
    uses.unlease([A, B, C], NOW_MS)
    assert known(uses, [A, B, C]) == {A: Use(NOW_MS), B: Use(NOW_MS + 1, until + 1)}


def test_a_push_ends_its_own_lease_and_not_that_of_another_client(uses: Uses) -> None:
    until = NOW_MS + limits.LEASE_MS
    uses.note({A: Use(NOW_MS, until, 1)})
    uses.note({A: Use(NOW_MS + 5, until + 5, 1)})
    uses.unlease([A], NOW_MS + 10)
    assert known(uses, [A]) == {A: Use(NOW_MS + 5, until + 5, 1)}
    uses.unlease([A], NOW_MS + 20)
    assert known(uses, [A]) == {A: Use(NOW_MS + 5)}


def test_a_lease_that_lapsed_counts_no_more(uses: Uses) -> None:
    later = NOW_MS + limits.LEASE_MS
    uses.note({A: Use(NOW_MS, NOW_MS + limits.LEASE_MS, 1)})
    uses.note({A: Use(later, later + limits.LEASE_MS, 1)})
    uses.unlease([A], later)
    assert known(uses, [A]) == {A: Use(later)}


def test_what_is_forgotten_is_not_known(uses: Uses) -> None:
    uses.used([A, B], NOW_MS)
    uses.forget([A, C])
    assert known(uses, [A, B]) == {B: Use(NOW_MS)}


def test_a_name_is_known_by_its_latest_use(uses: Uses) -> None:
    with uses.env.begin(write=True) as txn:
        uses.note_name_in(txn, ROW, NameUse(NOW_MS, NOW_MS - 5, NOW_MS))
        uses.note_name_in(txn, ROW, NameUse(NOW_MS + 7))
    assert uses.name(ROW) == NameUse(NOW_MS + 7, NOW_MS - 5, NOW_MS)
    uses.set_name(ROW, NameUse(NOW_MS, NOW_MS, 0))
    assert list(uses.all_names()) == [(ROW, NameUse(NOW_MS, NOW_MS, 0))]
    uses.set_name(ROW, None)
    assert uses.name(ROW) is None


def test_all_names_are_listed_however_many(uses: Uses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.store.uses.table._ROWS_AT_ONCE", 3)
    rows = [bytes([i]) * 32 for i in range(10)]
    for row in rows:
        uses.set_name(row, NameUse(NOW_MS))
    assert [row for row, _ in uses.all_names()] == rows


def test_pins_last_until_a_later_epoch_ends_them(uses: Uses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.store.uses.table._ROWS_AT_ONCE", 1)
    assert not uses.pins_known()
    uses.pin(1, [A, B])
    uses.pin(2, [B, C])
    assert uses.unpinned(2, [A, B, C]) == [A]
    assert uses.pinned_of([A, B, C]) == {A, B, C}
    uses.end_pins_before(2)
    assert uses.pinned_of([A, B, C]) == {B, C}
    assert uses.pins_known()


def fill(path: Path) -> None:
    uses = Uses(str(path))
    uses.used([A], NOW_MS)
    uses.close()


def kill(uses: Uses, keys: Sequence[bytes]) -> None:
    """Leave without a word, having used ``keys``."""
    uses.used(keys, NOW_MS)
    uses.env.close()
    os.close(uses._open_lock)


def known_at(path: Path) -> dict[bytes, Use]:
    uses = Uses(str(path))
    try:
        return known(uses, [A])
    finally:
        uses.close()


def test_after_a_clean_end_it_is_believed_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "uses")
    monkeypatch.setattr(filesystem, "boot_id", lambda: "another boot")
    assert known_at(tmp_path / "uses") == {A: Use(NOW_MS)}


def test_without_a_clean_end_it_is_believed_in_the_same_boot_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(Uses(str(tmp_path / "uses")), [A])
    assert known_at(tmp_path / "uses") == {A: Use(NOW_MS)}
    kill(Uses(str(tmp_path / "uses")), [A])
    monkeypatch.setattr(filesystem, "boot_id", lambda: "another boot")
    assert known_at(tmp_path / "uses") == {}


def test_whoever_comes_while_it_is_open_believes_it(tmp_path: Path) -> None:
    first = Uses(str(tmp_path / "uses"))
    lock = os.open(tmp_path / "uses" / "open.lock", os.O_RDWR)  # another process has it open as well
    fcntl.flock(lock, fcntl.LOCK_SH)
    kill(first, [A])
    (tmp_path / "index").mkdir()
    distrust(Layout(str(tmp_path)))
    assert known_at(tmp_path / "uses") == {A: Use(NOW_MS)}
    os.close(lock)
    assert known_at(tmp_path / "uses") == {}


def test_only_the_last_to_leave_vouches_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = Uses(str(tmp_path / "uses"))
    leaving.used([A], NOW_MS)
    lock = os.open(tmp_path / "uses" / "open.lock", os.O_RDWR)  # another process has it open as well
    fcntl.flock(lock, fcntl.LOCK_SH)
    leaving.close()
    os.close(lock)
    monkeypatch.setattr(filesystem, "boot_id", lambda: "another boot")
    assert known_at(tmp_path / "uses") == {}


@pytest.mark.parametrize("damage", [b"", b"nonsense" * 1024])
def test_what_is_damaged_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    fill(tmp_path / "uses")
    (tmp_path / "uses" / "data.mdb").write_bytes(damage)
    assert known_at(tmp_path / "uses") == {}
    fill(tmp_path / "uses")
    assert known_at(tmp_path / "uses") == {A: Use(NOW_MS)}


def test_what_is_distrusted_is_begun_anew_once(tmp_path: Path) -> None:
    fill(tmp_path / "uses")
    (tmp_path / "index").mkdir()
    distrust(Layout(str(tmp_path)))
    assert known_at(tmp_path / "uses") == {}
    fill(tmp_path / "uses")
    assert known_at(tmp_path / "uses") == {A: Use(NOW_MS)}
