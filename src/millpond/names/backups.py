"""Copies of the names, made while they are in use.

A copy is a names environment of its own, without gaps, in a directory ``names-TIME``: every value whose checksum fits,
the counter of segment numbers and the pins. The rule: it is written beside its place, synced, read back value by value,
and only then gets its name; the older copies go after that. A copy is never put in the live file's place by upkeep;
``names.restoring`` does that, offline.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import lmdb

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.errors import MillpondError, NoSpace, RefusedToStart
from millpond.disk.files import sync_directory
from millpond.names import values, verification
from millpond.names.lmdb_names import LmdbNames

log = logging.getLogger(__name__)
_PREFIX = "names-"
_NEW = "names.new"
_TIME = "%Y%m%dT%H%M%S.%f"
_ROWS_AT_ONCE = 256
_STEP_SECONDS = 0.2
_SOON_SECONDS = 0.05
_IDLE_SECONDS = 1.0
_FULL_SECONDS = 60.0
_SMALLEST_BYTES = 64 * limits.KIB

HoldRoom = Callable[[int], AbstractContextManager[object]]
"""Sets so many bytes aside while something is written; raises NoSpace when they are not there."""


class CopyFailed(MillpondError):
    """A copy that does not read back as it was written."""


def copies(directory: Path) -> list[Path]:
    """The copies in ``directory``, the newest first. Nothing is said about their content."""
    try:
        return sorted((path for path in directory.iterdir() if path.name.startswith(_PREFIX)), reverse=True)
    except FileNotFoundError:
        return []


def made_at_ms(copy: Path) -> int:
    """When a copy was made; 0 when its name does not say."""
    try:
        return int(datetime.strptime(copy.name.removeprefix(_PREFIX) + "+0000", _TIME + "%z").timestamp() * 1000)
    except ValueError:
        return 0


def verify(copy: Path) -> Iterator[None]:
    """Read a copy, every value of it; a step at a time.

    Raises:
        RefusedToStart: it is not sound.
    """
    held = LmdbNames(copy, read_only=True, lock=False, must_exist=True)
    try:
        held.next_number()
        for row, value in held.rows():
            values.unseal(row, value)
            yield
    except (values.Damaged, MillpondError) as damage:
        raise RefusedToStart(f"the copy of the names in {copy} is damaged: {damage}") from None
    finally:
        held.close()


class BackupDuty:
    """Makes a copy when names changed and the last one is old or holds half of them, and keeps two."""

    name = "backup of names"

    def __init__(
        self,
        names: LmdbNames,
        directory: Path,
        *,
        clock: Clock,
        hold_room: HoldRoom = lambda _: nullcontext(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = names
        self._directory = directory
        self._clock = clock
        self._hold_room = hold_room
        self._monotonic = monotonic
        self._copied_version = -1
        self._copied_bytes = 0
        self._said_full = False
        self._steps: Iterator[None] | None = None

    def run(self) -> float:
        """Make a copy if it is time to, a fraction of a second of it."""
        if self._steps is None:
            if not self._due():
                return _IDLE_SECONDS
            self._steps = self._copy()
        deadline = self._monotonic() + _STEP_SECONDS
        try:
            for _ in self._steps:
                if self._monotonic() >= deadline:
                    return _SOON_SECONDS
        except NoSpace as full:
            self._steps = None
            if not self._said_full:
                self._said_full = True
                log.warning("there is no room for a copy of the names: %s", full)
            return _FULL_SECONDS
        except BaseException:
            self._steps = None
            raise
        self._said_full = False
        self._steps = None
        return _IDLE_SECONDS

    def renew(self) -> None:
        """Make a copy now and let all older ones go: what was removed from the names is in no copy any more."""
        self._steps = None
        for _ in self._copy():
            pass
        self._keep(1)

    def _due(self) -> bool:
        version = self._names.version()
        held_bytes = self._names.held_bytes()
        if version == self._copied_version or not held_bytes:
            return False
        newest = next(iter(copies(self._directory)), None)
        if newest is None:
            return True
        # A young repository doubles in minutes; an hour's names would be most of it.
        doubled = 0 < 2 * self._copied_bytes <= held_bytes
        self._copied_bytes = self._copied_bytes or held_bytes
        # A copy from the future (the clock was wrong) must not keep us from making one.
        return doubled or not 0 <= self._clock() - made_at_ms(newest) < limits.BACKUP_MS

    def _copy(self) -> Iterator[None]:
        version, held_bytes = self._names.version(), self._names.held_bytes()
        with self._hold_room(_SMALLEST_BYTES + held_bytes):
            new = self._directory / _NEW
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            yield from self._write(new)
            yield from verify(new)
            when = datetime.fromtimestamp(self._clock() / 1000, UTC).strftime(_TIME)[:-3]
            new.rename(self._directory / f"{_PREFIX}{when}")
            sync_directory(str(self._directory))
        self._keep(limits.BACKUPS)
        self._copied_version, self._copied_bytes = version, held_bytes

    def _write(self, new: Path) -> Iterator[None]:
        written = 0
        with lmdb.open(str(new), map_size=limits.LMDB_MAP_BYTES, max_dbs=8, lock=False, sync=False) as copy:
            meta, bindings = copy.open_db(b"meta"), copy.open_db(b"bindings")
            with copy.begin(write=True) as transaction:
                self._names.copy_notes(copy, transaction)
                for row, value in self._names.rows():
                    if _is_sound(row, value):
                        written += transaction.put(row, value, db=bindings, append=True)
                    yield
                verification.sign(transaction, meta)
            force = True
            copy.sync(force)
            with copy.begin() as transaction:
                found = transaction.stat(bindings)["entries"]
        if found != written:
            raise CopyFailed(f"a copy of the names holds {found} names instead of {written}")
        sync_directory(str(new))

    def _keep(self, count: int) -> None:
        for old in copies(self._directory)[count:]:
            shutil.rmtree(old, ignore_errors=True)
        sync_directory(str(self._directory))


def _is_sound(row: bytes, value: bytes) -> bool:
    try:
        values.unseal(row, value)
    except values.Damaged:
        return False  # LmdbNames has said so where it was looked up
    return True
