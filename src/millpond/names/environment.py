"""The LMDB environment that holds names: how it is opened, which format it has, what its failures mean.

The rule: an environment that this version cannot understand is left as it is. Opening judges the format before it
writes, and every failure becomes one sentence of the closed family; LMDB's own words go to the log.
"""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lmdb

from millpond.core.errors import MillpondError, NoSpace, NotReady, RefusedToStart
from millpond.core.seldom import Seldom
from millpond.disk import environment as disk
from millpond.disk import locks
from millpond.disk.files import sync_directory
from millpond.disk.group_writer import GroupWriter
from millpond.names import verification

NAMES_FORMAT = verification.NAMES_FORMAT
"""The format this version writes. A newer one is refused, an older one goes through ``_UPGRADES``."""

TABLES = (b"meta", b"bindings", b"counters")
ADDED = (b"pins", b"changes", b"broken")
"""Tables that an older Millpond does not have and does not miss."""

PRESENCE_LOCK = "open.lock"
_FORMAT_KEY = verification.FORMAT_KEY
Tables = dict[bytes, lmdb._Database]  # of ADDED only those that are there

_UPGRADES: dict[int, Callable[["lmdb.Transaction[bytes]", Tables], None]] = {}
"""Format -> what turns it into the next one. All steps share one write transaction."""

_log = logging.getLogger(__name__)
_seldom = Seldom(_log)


def enter(path: Path, *, read_only: bool, must_exist: bool, map_bytes: int) -> int | None:
    """A descriptor that says, until it is closed, that somebody has the names in ``path`` open; None without a lock.

    Who is the first verifies the file, or makes it, and the others wait for that. As long as somebody is there nobody judges the
    file, because one that is being written to looks damaged, and nobody replaces it.

    Raises:
        RefusedToStart: they are damaged, or missing and ``must_exist``.
    """
    descriptor = _open_lock(path, read_only=read_only)
    try:
        if descriptor is None or locks.try_lock(descriptor, exclusive=True):
            verification.check(path, must_exist=must_exist)
            if not read_only:
                _made(path, map_bytes)
        if descriptor is not None:
            locks.lock(descriptor, exclusive=False)
    except BaseException as failure:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(failure, verification.Unsound):
            raise damaged(path, failure) from None
        if isinstance(failure, (lmdb.Error, OSError)):
            raise _refusal(path, failure) from failure
        raise
    return descriptor


def _made(path: Path, map_bytes: int) -> None:
    """Make the file if there is none: elsewhere, and renamed when it is whole, so that a power loss leaves none or one.

    What is there is made durable, its name in the directory too, before anybody relies on it.
    """
    if not (path / "data.mdb").exists():
        new = path / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        with lmdb.open(str(new), map_size=map_bytes, max_dbs=1, mode=disk.FILES_MODE, lock=False) as made:
            table = made.open_db(b"meta")
            with made.begin(write=True) as transaction:
                transaction.put(_FORMAT_KEY, b"%d" % NAMES_FORMAT, db=table)
                verification.sign(transaction, table)
        (new / "data.mdb").rename(path / "data.mdb")
        shutil.rmtree(new)
    sync_directory(str(path))


def _open_lock(path: Path, *, read_only: bool) -> int | None:
    """The lock of those who have names open; None where it cannot be: then nobody can write them either."""
    try:
        if not read_only:
            path.mkdir(mode=disk.FILES_MODE, parents=True, exist_ok=True)
        return locks.open_lock_file(str(path / PRESENCE_LOCK), read_only=read_only)
    except OSError as failure:
        if read_only:
            return None
        raise _refusal(path, failure) from failure


def open_environment(path: Path, *, read_only: bool, map_bytes: int, lock: bool) -> lmdb.Environment:
    """The environment in directory ``path``, made if it is missing (never with ``read_only``).

    Raises:
        RefusedToStart: it cannot be opened, or is not an LMDB environment.
    """

    def attempt(*, lock: bool) -> lmdb.Environment:
        return disk.open_environment(
            str(path), tables=len(TABLES) + len(ADDED), sync=True, read_only=read_only, lock=lock, map_bytes=map_bytes
        )

    try:
        try:
            return attempt(lock=lock)
        except lmdb.Error as error:
            if not (read_only and lock and disk.code(error) in (errno.EACCES, errno.EPERM, errno.EROFS)):
                raise
            _log.warning("%s/lock.mdb cannot be written: reading names without a lock", path)
            return attempt(lock=False)
    except (lmdb.Error, OSError) as error:
        raise _refusal(path, error) from error


def tables_to_read(path: Path, environment: lmdb.Environment) -> Tables:
    """The tables of names that were made by somebody else.

    Raises:
        RefusedToStart: there are none, or not of this version's format.

    """
    try:
        # Not inside a transaction of ours: py-lmdb forgets handles that were opened in a read transaction (tried).
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(meta) as transaction:
            found = _format(path, transaction.get(_FORMAT_KEY))
        if found < NAMES_FORMAT:
            raise RefusedToStart(f"the names in {path} have format {found}: start a server that may upgrade them first")
        tables = {key: environment.open_db(key, create=False) for key in TABLES}
        for key in ADDED:
            with suppress(lmdb.NotFoundError):
                tables[key] = environment.open_db(key, create=False)
        return tables
    except lmdb.Error as error:
        raise _refusal(path, error) from error


def tables_to_write(path: Path, environment: lmdb.Environment, writer: GroupWriter, *, must_exist: bool) -> Tables:
    """The tables of names, made or brought to ``NAMES_FORMAT`` if need be.

    Raises:
        RefusedToStart: a newer format, not the names of a Millpond, none although they ``must_exist``, or they cannot
            be written.

    """

    def prepare(transaction: "lmdb.Transaction[bytes]") -> Tables:
        found = 0
        if transaction.stat()["entries"]:
            meta = environment.open_db(b"meta", txn=transaction, create=False)
            found = _format(path, transaction.get(_FORMAT_KEY, db=meta))
        elif must_exist:
            raise damaged(path, "they hold nothing")
        tables = {key: environment.open_db(key, txn=transaction) for key in (*TABLES, *ADDED)}
        for step in range(found, NAMES_FORMAT) if found else ():
            _UPGRADES[step](transaction, tables)
        if found != NAMES_FORMAT:
            transaction.put(_FORMAT_KEY, b"%d" % NAMES_FORMAT, db=tables[b"meta"])
        verification.sign(transaction, tables[b"meta"])
        return tables

    try:
        return writer.run(prepare)
    except lmdb.Error as error:
        if must_exist and isinstance(error, (lmdb.NotFoundError, lmdb.IncompatibleError)):
            raise damaged(path, error) from error
        raise _refusal(path, error) from error


def _format(path: Path, found: bytes | None) -> int:
    if found is None or not found.isdigit():
        raise _not_names(path)
    if int(found) > NAMES_FORMAT:
        raise RefusedToStart(
            f"the names in {path} have format {int(found)} and this Millpond knows up to {NAMES_FORMAT}: "
            "start the version that wrote them, or a newer one"
        )
    return int(found)


def unwritten(path: Path, error: lmdb.Error) -> MillpondError:
    """What to tell a peer whose write failed."""
    if isinstance(error, lmdb.MapFullError):
        return NoSpace("the names fill all the room that they may have: nothing was written")
    if disk.is_no_space(error, str(path)):
        return NoSpace("the disk that holds the names is full: nothing was written")
    disk.heed(error)
    _seldom.say(logging.ERROR, "write", f"names in {path} cannot be written: {error}")
    return NotReady("the names cannot be written now: the server's log says why")


def unread(path: Path, error: lmdb.Error) -> MillpondError:
    """What to tell a peer whose look-up failed for another reason than a bad checksum."""
    disk.heed(error)
    _seldom.say(logging.ERROR, "read", f"names in {path} cannot be read: {error}")
    return NotReady("the names cannot be read now: the server's log says why")


def _refusal(path: Path, error: Exception) -> RefusedToStart:
    if isinstance(error, (lmdb.NotFoundError, lmdb.IncompatibleError)):
        return _not_names(path)
    if isinstance(error, disk.DAMAGE):
        return damaged(path, error)
    return RefusedToStart(f"the names in {path} cannot be opened: {error}")


def _not_names(path: Path) -> RefusedToStart:
    return RefusedToStart(f"{path} does not hold the names of a Millpond: give it a directory of its own")


def damaged(path: Path, why: object) -> RefusedToStart:
    """The sentence for names that cannot be believed; ``path`` is REPO/names."""
    return RefusedToStart(
        f"the names in {path} are damaged ({why}): stop every server of {path.parent}, then run: millpond names restore"
        f" {path.parent}"
    )
