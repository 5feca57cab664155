"""What is evicted is charged until nobody has it open."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from unit.store.test_room import Scene

from millpond.store.room import departing as departing_module
from millpond.store.room.departing import Departing

KIB = 1 << 10


class Leaving(Scene):
    """Segments of 64 KiB, and upkeep that lets them go."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.do(lambda txn: self.space.free(txn, 1))
        self.directory = os.path.dirname(self.space.segment_path(1))
        self.departing = Departing(self.directory, self.space, self.index)

    def segment(self, number: int) -> Path:
        path = Path(self.space.segment_path(number))
        path.write_bytes(bytes(64 * KIB))
        self.do(lambda txn: self.space.takes(txn, number, 64 * KIB))
        return path

    def depart(self, *numbers: int) -> None:
        self.departing.depart({number: self.space.segment_path(number) for number in numbers})

    @property
    def charged_bytes(self) -> int:
        with self.index.reading() as txn:
            return int.from_bytes(txn.get(b"used", bytes(8), db=self.index.space), "little")

    def files(self) -> list[Path]:
        return sorted(Path(self.directory).iterdir())

    def going(self) -> list[int]:
        with self.index.reading() as txn:
            return self.space.going_segments(txn)


@pytest.fixture
def leaving(tmp_path: Path) -> Iterator[Leaving]:
    leaving = Leaving(tmp_path)
    yield leaving
    leaving.departing.close()
    leaving.close()


def test_a_segment_that_nobody_has_open_is_free_at_once(leaving: Leaving) -> None:
    paths = [leaving.segment(number) for number in (1, 2, 3)]
    leaving.depart(1, 3)
    assert [path.exists() for path in paths] == [False, True, False]
    assert leaving.charged_bytes == 64 * KIB
    assert (leaving.going(), len(leaving.departing)) == ([], 0)


def test_its_blocks_return_before_its_name_goes(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    """XFS returns those of a removed file in the background, and meanwhile others would be given their room."""
    taken_bytes = unlinked(monkeypatch)
    leaving.segment(1)
    leaving.depart(1)
    assert taken_bytes == [0]


def test_what_somebody_may_be_reading_is_removed_whole(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "leases")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(departing_module, "_BLIND_SECONDS", 0)
    taken_bytes = unlinked(monkeypatch)
    with leaving.segment(1).open("rb") as reader:
        leaving.depart(1)
        assert reader.read() == bytes(64 * KIB)
    assert taken_bytes == [64 * KIB]


def test_a_copy_that_is_made_of_links_stays_whole(leaving: Leaving, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    os.link(leaving.segment(1), copy)
    leaving.depart(1)
    assert copy.read_bytes() == bytes(64 * KIB)
    assert leaving.charged_bytes == 0


def unlinked(patch: pytest.MonkeyPatch) -> list[int]:
    """How long files are when they are removed."""
    sizes: list[int] = []
    real = os.unlink

    def unlink(path: str) -> None:
        sizes.append(os.stat(path).st_size)
        real(path)

    patch.setattr(os, "unlink", unlink)
    return sizes


def test_what_is_read_slowly_is_known_to_linger(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(leaving.segment(1), os.O_RDONLY)
    leaving.depart(1)
    assert leaving.departing.lingering_bytes() == 0
    monkeypatch.setattr(departing_module, "_LINGERING_SECONDS", 0.0)
    assert leaving.departing.lingering_bytes() == 64 * KIB
    os.close(descriptor)
    leaving.departing.collect()
    assert leaving.departing.lingering_bytes() == 0


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR], ids=["reader", "writer"])
def test_a_segment_that_somebody_has_open_is_charged_until_it_is_closed(
    leaving: Leaving, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departing_module, "_BLIND_SECONDS", 0.0)
    path = leaving.segment(1)
    descriptor = os.open(path, flags)
    leaving.depart(1)
    assert not path.exists()
    assert leaving.departing.collect() == 0
    assert (leaving.charged_bytes, leaving.going(), len(leaving.departing)) == (64 * KIB, [1], 1)
    assert os.pread(descriptor, 10, 0) == bytes(10)  # I5
    os.close(descriptor)
    assert leaving.departing.collect() == 64 * KIB
    assert leaving.departing.collect() == 0
    assert (leaving.charged_bytes, leaving.going(), len(leaving.departing)) == (0, [], 0)


def test_a_file_that_is_gone_and_one_that_departs_twice_are_free(leaving: Leaving) -> None:
    leaving.segment(1).unlink()
    path = leaving.segment(2)
    with path.open() as reader:
        leaving.depart(1, 2)
        leaving.depart(2)
        assert leaving.charged_bytes == 64 * KIB
        assert reader.fileno()
    assert leaving.departing.collect() == 64 * KIB
    assert leaving.charged_bytes == 0


def test_a_successor_goes_on_waiting_for_whoever_still_reads(leaving: Leaving) -> None:
    paths = [leaving.segment(number) for number in (1, 2)]
    descriptor = os.open(paths[0], os.O_RDONLY)
    leaving.depart(1)
    os.close(leaving.departing._leaving.pop(1).descriptor)  # here the process was killed
    successor = Departing(leaving.directory, leaving.space, leaving.index)
    assert successor.take_over() == 0
    assert (leaving.charged_bytes, leaving.going()) == (2 * 64 * KIB, [1])
    os.close(descriptor)
    assert successor.collect() == 64 * KIB
    assert (leaving.charged_bytes, leaving.going()) == (64 * KIB, [])
    assert [path.name for path in leaving.files()] == [paths[1].name]
    successor.close()


def test_a_successor_frees_what_is_gone_and_leaves_alone_what_has_its_name(leaving: Leaving) -> None:
    gone, there = leaving.segment(1), leaving.segment(2)
    leaving.do(lambda txn: [leaving.space.going(txn, number) for number in (1, 2)])
    gone.unlink()  # and here the process died
    successor = Departing(leaving.directory, leaving.space, leaving.index)
    assert successor.take_over() == 64 * KIB
    assert there.exists()
    assert leaving.going() == [2]
    successor.depart({2: str(there)})
    assert leaving.charged_bytes == 0
    assert not leaving.files()
    successor.close()


def test_where_no_longer_name_fits_a_segment_goes_all_the_same(
    leaving: Leaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> None:
        raise OSError(errno.ENOSPC, "no block for a longer name")

    path = leaving.segment(1)
    with path.open() as reader:
        monkeypatch.setattr(departing_module.os, "rename", refuse)
        leaving.depart(1)
        assert not leaving.files()
        assert leaving.charged_bytes == 64 * KIB
        assert reader.fileno()
    assert leaving.departing.collect() == 64 * KIB


def uncounted_bytes(leaving: Leaving) -> int:
    return sum(path.stat().st_blocks * 512 for path in leaving.files()) - leaving.charged_bytes


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, "no")


def test_one_that_could_neither_be_renamed_nor_removed_is_charged_until_it_can(
    leaving: Leaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving.segment(7)
    with monkeypatch.context() as patch:
        patch.setattr(departing_module.os, "rename", refuse)
        patch.setattr(departing_module.os, "unlink", refuse)
        with pytest.raises(OSError, match="no"):
            leaving.depart(7)
    leaving.depart(7)
    assert uncounted_bytes(leaving) <= 0
    assert not leaving.files()


def test_one_that_could_not_be_removed_is_at_the_next_look(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving.segment(7)
    with monkeypatch.context() as patch:
        patch.setattr(departing_module.os, "unlink", refuse)
        with pytest.raises(OSError, match="no"):
            leaving.depart(7)
    leaving.departing.take_over()
    assert leaving.departing.collect() == 0
    assert (leaving.files(), leaving.charged_bytes) == ([], 0)


def test_whoever_opens_one_that_is_going_does_not_end_us(leaving: Leaving) -> None:
    """A copy that is just being made of the repository, say. The lease is there, and nobody has closed the file yet."""
    path = leaving.segment(7)
    going = departing_module._Leaving(str(path), os.open(path, os.O_RDONLY))
    assert going.is_only_ours()
    opener = subprocess.Popen([sys.executable, "-c", "import sys; print(len(open(sys.argv[1], 'rb').read()))", path])
    time.sleep(0.5)
    assert opener.poll() is None, "it waits"
    os.close(going.descriptor)
    assert opener.wait(30) == 0


def test_at_the_end_readers_get_a_moment_and_the_rest_is_left_to_a_successor(leaving: Leaving) -> None:
    path = leaving.segment(1)
    with path.open():
        leaving.depart(1)
        leaving.departing.close()
        assert leaving.charged_bytes == 64 * KIB
    successor = Departing(leaving.directory, leaving.space, leaving.index)
    assert successor.take_over() == 64 * KIB
    assert not leaving.files()


def test_nothing_goes_that_the_ledger_could_not_be_told_of(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leaving.segment(1)

    def refuse(**_: Any) -> None:
        raise lmdb.DiskError("no space left on device")

    monkeypatch.setattr(leaving.index, "writing", refuse)
    with pytest.raises(lmdb.Error):
        leaving.depart(1)
    assert path.exists()


def test_where_there_are_no_leases_a_moment_must_do(leaving: Leaving, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EINVAL, "no leases here")

    monkeypatch.setattr(departing_module, "fcntl", type("NoLeases", (), {"fcntl": refuse, **_constants()}))
    leaving.segment(1)
    leaving.depart(1)
    assert leaving.charged_bytes == 64 * KIB
    monkeypatch.setattr(departing_module, "_BLIND_SECONDS", 0.0)
    assert leaving.departing.collect() == 64 * KIB


def _constants() -> dict[str, int]:
    return {"F_SETLEASE": fcntl.F_SETLEASE, "F_WRLCK": fcntl.F_WRLCK, "F_SETSIG": fcntl.F_SETSIG}
