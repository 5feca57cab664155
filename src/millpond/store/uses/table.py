"""The last use of every blob and name, what is leased, and what is pinned: what upkeep knows when it chooses.

An LMDB environment of its own, ``REPO/uses``, written by upkeep alone (whoever holds ``upkeep.lock``): the touch logs
are merged into it (``store.uses.merging``). Like the index it is not synced while it runs, so it is believed only after a
clean end or in the boot that wrote it; it may be lost, and then a blob is as old as its segment's header says.

The rule: times only rise. A use that is merged late, or twice, changes nothing.

Tables: ``blobs`` key -> (time, leased until, grants); ``names`` ``Name.row`` -> :class:`NameUse`; ``pinned`` key -> epoch;
``meta``: how far each touch log was read, and what else upkeep remembers.
"""

import json
import logging
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import lmdb

from millpond.core import json_text, limits
from millpond.disk import locks
from millpond.disk.blocks import Governed, pieces
from millpond.disk.environment import open_environment
from millpond.disk.group_writer import Transaction
from millpond.store.repository import filesystem
from millpond.store.repository.distrust import is_distrusted, is_vouched, vouch
from millpond.store.uses.use import NameUse, Use

log = logging.getLogger(__name__)
USES_FORMAT = 2
"""Raised by every change of a table; an environment of another format is made anew."""

_TABLES = (b"blobs", b"names", b"pinned", b"meta")
_STATE = b"trust"
_PINS_KNOWN = b"pins-known"
_READERS = 126
"""Upkeep and commands; few, so that the lock file is small in a small repository."""
USE = struct.Struct("<QQI")
"""An encoded :class:`Use`."""
Row = tuple[int, int, int]
"""What an encoded :class:`Use` holds, which is made for each blob that is used: a plain tuple takes half the time."""
_NAME_USE = struct.Struct("<QQQ")
_EPOCH = struct.Struct("<Q")
_ROWS_AT_ONCE = 10_000


class Uses:
    """The environment. Methods write in a transaction of their own unless they are given one."""

    def __init__(self, path: str) -> None:
        """Open it, or begin anew where it is not to be believed. The caller holds ``upkeep.lock``.

        Raises:
            OSError, lmdb.Error: the disk does not allow it.
        """
        self.path = path
        os.makedirs(path, exist_ok=True)
        self._open_lock = locks.open_lock_file(os.path.join(path, "open.lock"))
        try:
            if locks.try_lock(self._open_lock, exclusive=True):
                self.env = self._believed() or self._anew()
            else:
                self.env = self._open()  # whoever has it open has judged it
            locks.lock(self._open_lock, exclusive=False)
            self._open_tables()
            self._governed = Governed(self.env, path)
            self._governed.tables = (self.blobs, self.names, self.pinned, self.meta)
            self.writing, self.at_once = self._governed.writing, self._governed.rows_at_once
            self._mark(clean=False)
        except BaseException:
            os.close(self._open_lock)
            raise

    # -- uses -------------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A read transaction."""
        with self.env.begin() as txn:
            yield txn

    def found(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], dict[bytes, Use]]:
        """What is known of ``keys``, encoded, and what each of that means: few uses, as what came together is alike."""
        with self.env.begin() as txn, txn.cursor(self.blobs) as cursor:
            found = dict(cursor.getmulti(keys))
        return found, {value: Use(*USE.unpack(value)) for value in set(found.values())}

    def used(self, keys: Iterable[bytes], time_ms: int) -> None:
        """Note a use of blobs."""
        self.note({key: Use(time_ms) for key in keys})

    def note(self, uses: Mapping[bytes, Use], meta: Mapping[bytes, bytes] | None = None) -> None:
        """Raise times and leases to those given, add the grants, and write ``meta`` with them."""
        for some in pieces(sorted(uses), self.at_once()):
            with self.writing(rows=len(some)) as txn:
                self.note_in(txn, some, [uses[key] for key in some])
        if meta:
            with self.writing(rows=len(meta)) as txn:
                for key, value in meta.items():
                    txn.put(key, value, db=self.meta)

    def note_in(self, txn: Transaction, keys: Sequence[bytes], uses: Sequence[Row]) -> None:
        """As :meth:`note`; one use for each of ``keys``, in their order."""
        encoded = {row: USE.pack(*row) for row in set(uses)}  # few: what came together is alike
        values = map(encoded.__getitem__, uses)
        with txn.cursor(self.blobs) as cursor:
            # Most blobs are new, and so most is done with one look at the table.
            is_new = list(map(cursor.put, keys, values, repeat(True), repeat(False)))  # noqa: FBT003 - dupdata, overwrite
            if not all(is_new):
                held = {key: use for key, use, new in zip(keys, uses, is_new, strict=True) if not new}
                cursor.putmulti([(key, _raised(value, *held[key])) for key, value in cursor.getmulti(list(held))])

    def unlease(self, keys: Sequence[bytes], granted_by_ms: int) -> None:
        """A push ended at that time (in ms): one of each blob's grants ends, and the lease with the last of them.

        A lease that was granted again since then stays.
        """
        for some in pieces(sorted(set(keys)), self.at_once()):
            with self.writing(rows=len(some)) as txn, txn.cursor(self.blobs) as cursor:
                rows = []
                for key, value in cursor.getmulti(some):
                    time_ms, lease_ms, grants = USE.unpack(value)
                    grants = max(0, grants - 1)
                    if not grants and lease_ms <= granted_by_ms + limits.LEASE_MS:
                        lease_ms = 0
                    rows.append((key, USE.pack(time_ms, lease_ms, grants)))
                cursor.putmulti(rows)

    def forget(self, keys: Iterable[bytes]) -> None:
        """Blobs that are no longer held."""
        for some in pieces(list(keys), self.at_once()):
            with self.writing(rows=len(some)) as txn, txn.cursor(self.blobs) as cursor:
                list(map(cursor.pop, some))

    # -- names ------------------------------------------------------------------------------------------------------

    def name(self, row: bytes) -> NameUse | None:
        """When a name was last used, if that is known."""
        with self.env.begin() as txn:
            value = txn.get(row, db=self.names)
        return None if value is None else NameUse(*_NAME_USE.unpack(value))

    def all_names(self) -> Iterator[tuple[bytes, NameUse]]:
        """All names of which a use is known, by row; not one snapshot."""
        after = b""
        while True:
            with self.env.begin() as txn, txn.cursor(self.names) as cursor:
                rows = []
                if cursor.set_range(after):
                    for row, value in cursor:
                        rows.append((row, NameUse(*_NAME_USE.unpack(value))))
                        if len(rows) == _ROWS_AT_ONCE:
                            break
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            after = rows[-1][0] + b"\0"

    def note_name_in(self, txn: Transaction, row: bytes, use: NameUse) -> None:
        """Raise a name's times to those given."""
        value = txn.get(row, db=self.names)
        if value is not None:
            use = NameUse(*map(max, use, _NAME_USE.unpack(value)))
        txn.put(row, _NAME_USE.pack(*use), db=self.names)

    def set_name(self, row: bytes, use: NameUse | None) -> None:
        """Write what is known of a name; None forgets it."""
        with self.writing(rows=1) as txn:
            if use is None:
                txn.delete(row, db=self.names)
            else:
                txn.put(row, _NAME_USE.pack(*use), db=self.names)

    # -- pins -------------------------------------------------------------------------------------------------------

    def pin(self, epoch: int, keys: Iterable[bytes]) -> None:
        """Keep blobs until :meth:`end_pins_before` a later epoch."""
        value = _EPOCH.pack(epoch)
        for some in pieces(sorted(set(keys)), self.at_once()):
            with self.writing(rows=len(some)) as txn, txn.cursor(self.pinned) as cursor:
                cursor.putmulti([(key, value) for key in some])

    def end_pins_before(self, epoch: int) -> None:
        """Let go of what was pinned in earlier epochs and not again. From now on pins are known."""
        after: bytes | None = b""
        while after is not None:
            with self.writing(rows=self.at_once()) as txn:
                old, after = self._pins_before(txn, epoch, after)
                for key in old:
                    txn.delete(key, db=self.pinned)
        self.remember(_PINS_KNOWN, _EPOCH.pack(epoch))

    def pins_known(self) -> bool:
        """Whether all that is to be pinned is. Not so in an environment that was begun anew: nothing may be evicted."""
        return self.remembered(_PINS_KNOWN) is not None

    def pins_epoch(self) -> int:
        """The epoch of the last complete count, 0 before the first."""
        value = self.remembered(_PINS_KNOWN)
        return 0 if value is None else _EPOCH.unpack(value)[0]

    def unpinned(self, epoch: int, keys: Sequence[bytes]) -> list[bytes]:
        """Those of ``keys`` that are not pinned in this epoch or a later one."""
        with self.env.begin() as txn, txn.cursor(self.pinned) as cursor:
            pinned = {key for key, value in cursor.getmulti(keys) if _EPOCH.unpack(value)[0] >= epoch}
        return [key for key in keys if key not in pinned]

    def _pins_before(self, txn: Transaction, epoch: int, after: bytes) -> tuple[list[bytes], bytes | None]:
        old: list[bytes] = []
        seen = 0
        with txn.cursor(self.pinned) as cursor:
            if cursor.set_range(after):
                for key, value in cursor:
                    if seen == _ROWS_AT_ONCE or len(old) == self.at_once():
                        return old, key
                    seen += 1
                    if _EPOCH.unpack(value)[0] < epoch:
                        old.append(key)
        return old, None

    def pinned_of(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of ``keys`` that are pinned."""
        with self.env.begin() as txn:
            if not txn.stat(self.pinned)["entries"]:
                return set()
            with txn.cursor(self.pinned) as cursor:
                return {key for key, _ in cursor.getmulti(keys)}

    # -- meta -------------------------------------------------------------------------------------------------------

    def remembered(self, key: bytes) -> bytes | None:
        """What was remembered under ``key``."""
        with self.env.begin() as txn:
            value: bytes | None = txn.get(key, db=self.meta)
        return value

    def remember(self, key: bytes, value: bytes | None) -> None:
        """Remember; None forgets."""
        with self.writing(rows=1) as txn:
            if value is None:
                txn.delete(key, db=self.meta)
            else:
                txn.put(key, value, db=self.meta)

    # -- life -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close it; the last to do so makes it durable and says so. Repeating it is fine."""
        if self._open_lock < 0:
            return
        locks.unlock(self._open_lock)
        if locks.try_lock(self._open_lock, exclusive=True):
            self._mark(clean=True)
        self._governed.close()
        self.env.close()
        os.close(self._open_lock)
        self._open_lock = -1

    def _open(self) -> lmdb.Environment:
        return open_environment(self.path, tables=len(_TABLES), sync=False, read_only=False, readers=_READERS)

    def _open_tables(self) -> None:
        # Each by itself: py-lmdb forgets handles that were opened inside of a read transaction.
        self.blobs, self.names, self.pinned, self.meta = (self.env.open_db(name) for name in _TABLES)

    def _believed(self) -> "lmdb.Environment | None":
        if is_distrusted(self.path) or not is_vouched(self.path):
            return None
        env = None
        try:
            env = self._open()
            with env.begin() as txn:
                value = txn.get(_STATE, db=env.open_db(b"meta", txn=txn, create=False))
            state = json_text.parse(value) if value else {}
            here = self._here()
            if state.get("format") == USES_FORMAT and (
                state["clean"] or all(state[fact] == here[fact] for fact in here)
            ):
                env.close()
                return self._open()
        except (lmdb.Error, ValueError, LookupError, TypeError, AttributeError) as failure:
            log.warning("what was known of last uses is damaged and begun anew: %s", failure)
        if env is not None:
            env.close()
        return None

    def _anew(self) -> lmdb.Environment:
        for entry in os.scandir(self.path):
            if entry.name != "open.lock":
                shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
        return self._open()

    def _here(self) -> dict[str, Any]:
        file = os.stat(os.path.join(self.path, "data.mdb"))
        return {"boot": filesystem.boot_id(), "device": file.st_dev, "inode": file.st_ino, "format": USES_FORMAT}

    def _mark(self, *, clean: bool) -> None:
        force = True  # the environment is opened without sync
        if clean:
            self.env.sync(force)  # all that the mark will vouch for
        else:
            vouch(self.path, clean=False)  # before anything is written that a power loss may take
        with self.env.begin(write=True) as txn:
            txn.put(_STATE, json.dumps({**self._here(), "clean": clean}).encode(), db=self.meta)
        self.env.sync(force)
        if clean:
            vouch(self.path, clean=True)


def _raised(before: bytes, time_ms: int, lease_ms: int, grants: int) -> bytes:
    """What is known of a blob, after one more use."""
    before_ms, leased_ms, granted = USE.unpack(before)
    if leased_ms > lease_ms - limits.LEASE_MS:  # it had not lapsed
        grants += granted
    return USE.pack(max(time_ms, before_ms), max(lease_ms, leased_ms), grants)
