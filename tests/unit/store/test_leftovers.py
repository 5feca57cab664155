"""Interrupted uploads: kept while nobody needs the room, and no longer than a client may want to go on."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.store.repositories import MIB, noise
from unit.store.upkept import Upkept

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.store.room import holders
from millpond.store.room.leftovers import Leftovers
from millpond.store.room.pressure import Pressure
from millpond.store.room.space import Space
from millpond.store.segments.spool import SpooledUpload

QUOTA_BYTES = 64 * MIB
LONG_AGO, LATELY = limits.SUSPENDED_SECONDS + 60, 30


@pytest.fixture
def upkept(tmp_path: Path) -> Iterator[Upkept]:
    upkept = Upkept(tmp_path / "repo", quota_bytes=QUOTA_BYTES)
    yield upkept
    upkept.close()


@pytest.fixture
def needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is needed."""
    monkeypatch.setattr(
        Space, "pressure", lambda _: Pressure(QUOTA_BYTES, QUOTA_BYTES, 0, to_free_bytes=1, wanted_bytes=0)
    )


def spooled(upkept: Upkept) -> list[Path]:
    return sorted((upkept.repository.path / "uploads").iterdir())


def look(upkept: Upkept, times: int = 1) -> None:
    parts = upkept.parts
    duty = Leftovers(parts.layout, parts.index, parts.index_writer, parts.space, parts.clock)
    for _ in range(times):
        duty.run()
        duty._due_ms = 0


def begun(upkept: Upkept, session: str, size_bytes: int = 2 * MIB) -> SpooledUpload:
    digest = Digest.of(noise(2 * size_bytes, session))
    upload = upkept.store.begin_upload(digest, session, offset=0)
    upload.write(noise(2 * size_bytes, session)[:size_bytes])
    return upload


def interrupted(upkept: Upkept, session: str, *, idle_seconds: float, size_bytes: int = 2 * MIB) -> Path:
    before = set(spooled(upkept))
    begun(upkept, session, size_bytes).suspend()
    (file,) = set(spooled(upkept)) - before
    then = time.time() - idle_seconds
    os.utime(file, (then, then))
    return file


def taken(upkept: Upkept) -> int:
    """What the ledger says of uploads, one row or more."""
    with upkept.index.reading() as txn:
        rows = dict(txn.cursor(upkept.index.space))
    return sum(int.from_bytes(value, "little") for key, value in rows.items() if key.startswith(b"upload:"))


def test_while_nobody_needs_the_room_an_interrupted_upload_is_kept_for_a_day(upkept: Upkept) -> None:
    kept = [interrupted(upkept, f"{i}", idle_seconds=limits.KEPT_UPLOAD_SECONDS - 100) for i in range(4)]
    gone = interrupted(upkept, "old", idle_seconds=limits.KEPT_UPLOAD_SECONDS + 100)
    look(upkept)
    assert set(spooled(upkept)) == set(kept)
    assert not gone.exists()
    assert taken(upkept) == sum(file.stat().st_blocks * 512 for file in kept)
    assert upkept.store.upload_offset("0") == 2 * MIB


def test_when_room_is_needed_the_cold_ones_go(upkept: Upkept, needed: None) -> None:
    interrupted(upkept, "cold", idle_seconds=LONG_AGO)
    warm = interrupted(upkept, "warm", idle_seconds=LATELY)
    look(upkept)
    assert spooled(upkept) == [warm]
    assert taken(upkept) == warm.stat().st_blocks * 512
    assert upkept.store.upload_offset("cold") == 0


def test_when_room_is_needed_they_keep_a_share_of_the_quota_and_the_newest_stay(upkept: Upkept, needed: None) -> None:
    files = [interrupted(upkept, f"{i}", idle_seconds=LATELY - i, size_bytes=MIB) for i in range(7)]
    look(upkept)
    assert set(spooled(upkept)) == set(files[-3:])  # of 4 MiB, with what frames them
    assert taken(upkept) <= limits.SUSPENDED_SHARE * QUOTA_BYTES


def test_what_is_being_written_is_left_alone_however_slowly_it_comes(upkept: Upkept, needed: None) -> None:
    upload = begun(upkept, "slow")
    (file,) = spooled(upkept)
    os.utime(file, (0, 0))
    before = taken(upkept)
    look(upkept, times=3)
    assert spooled(upkept) == [file]
    assert taken(upkept) == before
    upload.write(noise(4 * MIB, "slow")[2 * MIB :])
    upload.finish()


def test_what_can_never_be_gone_on_with_goes_at_once(upkept: Upkept) -> None:
    first, second = begun(upkept, "one name"), begun(upkept, "one name")
    second._close()  # its process died
    for file in spooled(upkept):
        os.utime(file, (time.time() - LATELY,) * 2)
    look(upkept)
    (left,) = spooled(upkept)
    assert "-" not in left.name
    first.abandon()
    assert taken(upkept) == 0


def test_the_ledger_forgets_what_a_killed_process_had_set_aside_for_an_upload(upkept: Upkept) -> None:
    file = interrupted(upkept, "killed", idle_seconds=LATELY)
    row = holders.upload(file.name, file.stat().st_ino)
    upkept.parts.index_writer.run(lambda txn: upkept.space.end_upload(txn, row, announced_bytes=0, kept_bytes=9 * MIB))
    look(upkept)
    assert taken(upkept) == file.stat().st_blocks * 512
    file.unlink()  # it became a segment, and was never listed
    look(upkept)
    assert taken(upkept) > 0, "a segment may just be made of it"
    look(upkept, times=2)
    assert taken(upkept) == 0
