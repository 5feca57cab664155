"""The LMDB environment that holds names: how it is opened, which format it has, what its failures mean.

The rule: an environment that this version cannot understand is left as it is. Opening judges the format before it
writes, and every failure becomes one sentence of the closed family; LMDB's own words go to the log.
"""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import lmdb

from millpond.core.errors import MillpondError, NoSpace, NotReady, RefusedToStart
from millpond.disk import environment as disk
from millpond.disk.group_writer import GroupWriter

NAMES_FORMAT = 1
"""The format this version writes. A newer one is refused, an older one goes through ``_UPGRADES``."""

TABLES = (b"meta", b"bindings", b"counters")

_FORMAT_KEY = b"names_format"
Tables = dict[bytes, lmdb._Database]

_UPGRADES: dict[int, Callable[["lmdb.Transaction[bytes]", Tables], None]] = {}
"""Format -> what turns it into the next one. All steps share one write transaction."""

_log = logging.getLogger(__name__)


def open_environment(path: Path, *, read_only: bool, map_bytes: int, lock: bool) -> lmdb.Environment:
    """The environment in directory ``path``, made if it is missing (never with ``read_only``).

    Raises:
        RefusedToStart: it cannot be opened, or is not an LMDB environment.
    """

    def attempt(*, lock: bool) -> lmdb.Environment:
        return disk.open_environment(
            str(path), tables=len(TABLES), sync=True, read_only=read_only, lock=lock, map_bytes=map_bytes
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
        return {key: environment.open_db(key, create=False) for key in TABLES}
    except lmdb.Error as error:
        raise _refusal(path, error) from error


def tables_to_write(path: Path, environment: lmdb.Environment, writer: GroupWriter) -> Tables:
    """The tables of names, made or brought to ``NAMES_FORMAT`` if need be.

    Raises:
        RefusedToStart: a newer format, not the names of a Millpond, or they cannot be written.

    """

    def prepare(transaction: "lmdb.Transaction[bytes]") -> Tables:
        found = 0
        if transaction.stat()["entries"]:
            meta = environment.open_db(b"meta", txn=transaction, create=False)
            found = _format(path, transaction.get(_FORMAT_KEY, db=meta))
        tables = {key: environment.open_db(key, txn=transaction) for key in TABLES}
        for step in range(found, NAMES_FORMAT) if found else ():
            _UPGRADES[step](transaction, tables)
        if found != NAMES_FORMAT:
            transaction.put(_FORMAT_KEY, b"%d" % NAMES_FORMAT, db=tables[b"meta"])
        return tables

    try:
        return writer.run(prepare)
    except lmdb.Error as error:
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
    _log.error("names in %s cannot be written", path, exc_info=error)
    return NotReady("the names cannot be written now: the server's log says why")


def unread(path: Path, error: lmdb.Error) -> MillpondError:
    """What to tell a peer whose look-up failed for another reason than a bad checksum."""
    _log.error("names in %s cannot be read", path, exc_info=error)
    return NotReady("the names cannot be read now: the server's log says why")


def _refusal(path: Path, error: Exception) -> RefusedToStart:
    if isinstance(error, (lmdb.NotFoundError, lmdb.IncompatibleError)):
        return _not_names(path)
    if isinstance(error, disk.DAMAGE):
        return RefusedToStart(
            f"the names in {path} are damaged ({error}): move {path.parent} aside, and put your own backup of all of it"
            " in its place or begin anew"
        )
    return RefusedToStart(f"the names in {path} cannot be opened: {error}")


def _not_names(path: Path) -> RefusedToStart:
    return RefusedToStart(f"{path} does not hold the names of a Millpond: give it a directory of its own")
