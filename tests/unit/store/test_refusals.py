"""The memory of what found no room works just when there is none."""

import errno
import os
from typing import Any

import lmdb
import pytest
from unit.store.repositories import OtherProcess, Repository

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NoSpace, NotReady
from millpond.store.failures import told
from millpond.store.room.refusals import FILE_BYTES

A, B = Digest.of(b"a"), Digest.of(b"b")


def full_disk(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index cannot be written."""

    def run(*_: Any, **__: Any) -> Any:
        raise NoSpace("the cache's disk is full")

    monkeypatch.setattr(repository.store._refusals._index_writer, "run", run)


def test_on_a_full_disk_everything_counts_as_refused_for_an_hour(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_700_000_000_000]
    repository.store._refusals._clock = lambda: now[0]
    with monkeypatch.context() as patch:
        full_disk(repository, patch)
        repository.store.refuse([A])
    assert repository.store.was_refused([A])
    assert repository.store.was_refused([B])
    now[0] += limits.REFUSED_MS
    assert not repository.store.was_refused([A, B])


def test_a_flipped_bit_does_not_refuse_for_centuries(repository: Repository) -> None:
    with (repository.path / "refusals").open("r+b") as overflow:
        overflow.write((1 << 60).to_bytes(8, "little"))
    assert not repository.store.was_refused([A])


def test_the_overflow_needs_no_room_and_reaches_every_process(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = os.stat(repository.path / "refusals").st_blocks
    assert os.stat(repository.path / "refusals").st_size == FILE_BYTES
    other = OtherProcess(repository.path)
    assert not other.was_refused([B])
    full_disk(repository, monkeypatch)
    repository.store.refuse([A])
    assert other.was_refused([B])
    other.end()
    assert os.stat(repository.path / "refusals").st_blocks == blocks


def test_old_refusals_make_room_for_new_ones(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REFUSED_DIGESTS", 10)
    now = [1_700_000_000_000]
    repository.store._refusals._clock = lambda: now[0]
    for hour in range(5):
        refused = [Digest.of(b"%d/%d" % (hour, i)) for i in range(10)]
        repository.store.refuse(refused)
        assert all(repository.store.was_refused([digest]) for digest in refused)
        assert not repository.store.was_refused([A])
        now[0] += limits.REFUSED_MS


def test_the_index_says_no_space_in_the_words_of_the_family(repository: Repository) -> None:
    assert isinstance(told(OSError(errno.ENOSPC, "full")), NoSpace)
    assert isinstance(told(OSError(errno.EDQUOT, "full")), NoSpace)
    assert isinstance(told(OSError(errno.EROFS, "read only")), NotReady)
    assert isinstance(told(lmdb.MapFullError("full")), NoSpace)
    assert isinstance(told(lmdb.CorruptedError("damaged")), NotReady)
    bug = ValueError("a bug")
    assert told(bug) is bug


def test_a_disk_that_takes_nothing_at_all_is_no_failure_of_the_refusal(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full_disk(repository, monkeypatch)

    def pwrite(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as refusing:
        refusing.setattr(os, "pwrite", pwrite)
        repository.store.refuse([A])
    assert "could not be noted" in caplog.text
