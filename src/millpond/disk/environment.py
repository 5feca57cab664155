"""LMDB environments: how they are opened, and what their failures mean.

Rules that LMDB's behaviour forces, each tried:

* the map has a fixed size: growing it breaks the other processes;
* no WRITEMAP: a full disk would be a SIGBUS;
* ``lock.mdb`` gets all its blocks when it is made: LMDB makes it sparse and maps it, so the 63rd reader at once touches
  a page that a full disk does not have, which is a SIGBUS;
* nobody opens ``lock.mdb`` while it is in use: closing any descriptor of it drops the process's locks;
* a data file shorter than its contents opens, and reading it is a SIGBUS: it is measured first;
* tables are not opened in a read transaction: py-lmdb forgets such handles.
"""

import errno
import os
from collections.abc import Callable

import lmdb
from lmdb.verify import VerifyError, verify

from millpond.core import limits

FILES_MODE = 0o750
"""For directory and files; LMDB drops the execute bits for its files."""
_LOCK_BYTES_PER_READER = 64  # lmdb.h: a cache line per reader, and a header
_LOCK_HEADER_BYTES = 128
_FULL_BELOW_BYTES = limits.MIB

DAMAGE = (
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.VersionMismatchError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
)
"""What LMDB says of a file that is none of its, or no longer one."""


def open_environment(
    path: str,
    *,
    tables: int,
    sync: bool,
    read_only: bool,
    lock: bool = True,
    map_bytes: int = limits.LMDB_MAP_BYTES,
    readers: int = limits.LMDB_READERS,
) -> lmdb.Environment:
    """The environment in directory ``path``, made if it is missing (never with ``read_only``).

    Raises:
        lmdb.Error: not an environment, or a damaged one.
        OSError: the directory cannot be used.
    """
    if not read_only:
        _reserve_lock_file(path, readers)
    environment = lmdb.open(
        path,
        map_size=map_bytes,
        readonly=read_only,
        create=not read_only,
        mode=FILES_MODE,
        sync=sync,
        metasync=sync,
        readahead=False,
        max_readers=readers,
        max_dbs=tables,
        max_spare_txns=8,
        lock=lock or not read_only,
    )
    if _is_cut_off(path, environment):
        environment.close()
        raise lmdb.CorruptedError("the file is shorter than its contents")
    return environment


def _reserve_lock_file(path: str, readers: int) -> None:
    os.makedirs(path, mode=FILES_MODE, exist_ok=True)
    lock_file = os.path.join(path, "lock.mdb")
    try:
        descriptor = os.open(lock_file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILES_MODE & 0o666)
    except FileExistsError:
        return
    try:
        os.posix_fallocate(descriptor, 0, _LOCK_HEADER_BYTES + _LOCK_BYTES_PER_READER * readers)
    finally:
        os.close(descriptor)


def _is_cut_off(path: str, environment: lmdb.Environment) -> bool:
    """Whether pages in use lie beyond the end of the file.

    A file may be shorter than its page count by pages that are free and were never written; the walk tells.
    """
    used_bytes = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if os.stat(os.path.join(path, "data.mdb")).st_size >= used_bytes:
        return False
    try:
        return bool(verify(path))  # type: ignore[no-untyped-call]  # lmdb ships no stub for it
    except VerifyError:
        return True


End = Callable[[BaseException, bool], None]
_ends: list[End] = []


def end_when_lost(end: End) -> None:
    """Have ``end`` called with a failure after which an open environment is of no more use to this process.

    With it comes whether the file may be damaged.
    """
    _ends.append(end)


def heed(failure: BaseException, *, reading: bool = False) -> None:
    """Look at what LMDB said of an open environment: after some failures only a new process may open it again.

    When one of the two first pages could not be written LMDB gives the environment up for good, for reading, too (tried);
    and damaged pages are damaged until somebody judges the file, which nobody may do while it is open. A transaction that
    only reads turns bad of nothing but these.
    """
    if isinstance(failure, DAMAGE) or (reading and isinstance(failure, lmdb.BadTxnError)):
        for end in _ends:
            end(failure, not isinstance(failure, lmdb.PanicError))


def code(error: BaseException) -> int:
    """The errno of an LMDB error, 0 when it has none."""
    found: int = getattr(error, "code", 0)
    return found


def is_no_space(error: lmdb.Error, path: str) -> bool:
    """Whether a write failed because the disk is full.

    LMDB reports a short write as EIO ("filesystem full?", mdb.c, mdb_page_flush); tried on a full tmpfs.
    """
    if code(error) in (errno.ENOSPC, errno.EDQUOT):
        return True
    space = os.statvfs(path)
    return code(error) == errno.EIO and space.f_bavail * space.f_frsize < _FULL_BELOW_BYTES
