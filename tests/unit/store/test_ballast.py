"""A few blocks that are given up when nothing else helps, and made anew."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from unit.store.repositories import MIB, Repository

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.store.repository.layout import REPOSITORY_FORMAT, Layout, write_marker
from millpond.store.room import ballast as ballast_module
from millpond.store.room.ballast import Ballast

QUOTA_BYTES = 100 * MIB
SIZE_BYTES = limits.ballast_bytes(QUOTA_BYTES)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(str(tmp_path))
    write_marker(layout, {"format": REPOSITORY_FORMAT, "quota_bytes": QUOTA_BYTES})
    return layout


def held_bytes(layout: Layout) -> int:
    return os.stat(layout.ballast).st_blocks * 512


def test_it_is_given_up_once_and_made_anew(layout: Layout) -> None:
    ballast = Ballast(layout)
    assert ballast.give_up() is False
    ballast.run()
    assert SIZE_BYTES <= held_bytes(layout) <= SIZE_BYTES + 4096
    assert ballast.give_up() is True
    assert held_bytes(layout) == 0
    assert ballast.give_up() is False
    ballast.run()
    assert held_bytes(layout) >= SIZE_BYTES


def test_it_stays_as_it_is_where_it_takes_more_than_its_length(tmp_path: Path) -> None:
    """Blocks are whole ones; and in a full cache what is let go is not to be had again."""
    quota_bytes = 40_000_000
    assert limits.ballast_bytes(quota_bytes) % 4096
    layout = Layout(str(tmp_path))
    write_marker(layout, {"format": REPOSITORY_FORMAT, "quota_bytes": quota_bytes})
    Ballast(layout).run()

    def refuse(*_: object) -> None:
        raise NoSpace("full")

    Ballast(layout, refuse).run()
    assert held_bytes(layout) >= limits.ballast_bytes(quota_bytes)


def test_it_is_not_made_on_a_disk_that_has_little_to_spare(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    little = SimpleNamespace(f_bavail=3 * SIZE_BYTES // 4096, f_frsize=4096, f_blocks=1 << 28)
    monkeypatch.setattr(ballast_module.os, "statvfs", lambda _: little)
    Ballast(layout).run()
    assert not os.path.exists(layout.ballast)


def test_a_disk_that_fills_while_it_is_made_is_no_failure(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(ballast_module.os, "posix_fallocate", full)
    Ballast(layout).run()
    assert held_bytes(layout) == 0


def test_it_follows_the_quota(layout: Layout) -> None:
    Ballast(layout).run()
    write_marker(layout, {"format": REPOSITORY_FORMAT, "quota_bytes": QUOTA_BYTES // 10})
    Ballast(layout).run()
    assert held_bytes(layout) <= limits.ballast_bytes(QUOTA_BYTES // 10) + 4096


@pytest.mark.parametrize("quota_bytes", [256 << 10, 5 * MIB, 22_000_000, 1 << 30, 1 << 42])
def test_it_is_a_small_part_of_the_quota(quota_bytes: int) -> None:
    assert 4096 <= limits.ballast_bytes(quota_bytes) <= min(quota_bytes // 64, 4 * MIB)


def test_a_repository_has_it_from_the_beginning(repository: Repository) -> None:
    assert held_bytes(Layout(str(repository.path))) >= limits.ballast_bytes(repository.quota_bytes)
