"""An environment whose file has its blocks before it needs them.

LMDB copies what it changes. A page that was replaced is used again once no reader can see it, so a process that is
stopped while it reads, or died so, makes the file grow with every transaction. How much a transaction needs is known only
when it has been committed; but the most that it can need is known before (:func:`pages_for`).

The rule: no transaction is begun that could need more blocks than the file has. They are given to it before, where
somebody says that there is room for them (``Grow``). So whatever is killed, the file takes what it took before.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import lmdb

from millpond.core import limits

T = TypeVar("T")
Transaction = Any
"""``lmdb.Transaction``."""
Grow = Callable[[int, Callable[[], None]], None]
"""Does what makes something take so many bytes more; NoSpace when there is no room for it."""
ROWS = 8
"""What a piece of work changes that does not say more: rows of tables, two of which are as good as never in one page."""
_PAGE_BYTES = 4096
_FIXED_PAGES = 12
"""The tables' and the free list's own pages: the most that was ever seen are 8 (``tests/property/test_blocks.py``)."""
_KEPT_PAGES = 8
"""Some are always ahead: lists of free pages want several in a row."""
_STEP_PAGES = 8
"""So many more are given at once."""


def pages_for(txn: Transaction, tables: Sequence[object], rows: int, *, file_pages: int) -> int:
    """The most pages that a transaction needs which changes so many rows of some 100 bytes, if none can be used again.

    Each row may touch a page of rows and its neighbour, or split it, and what points to it. But there are no more pages
    than there are. ``file_pages``: the list of free ones is written as well.
    """
    leaves = branches = 0
    for table in tables:
        counts = txn.stat(table)
        leaves += counts["leaf_pages"]
        branches += counts["branch_pages"] + counts["overflow_pages"]
    return _FIXED_PAGES + min(2 * rows, 2 * leaves) + min(rows, branches) + rows // 15 + file_pages // 256


def pieces(items: Sequence[T], at_once: int) -> Iterator[Sequence[T]]:
    """``items`` in pieces that are changed in one transaction each."""
    for start in range(0, len(items), at_once):
        yield items[start : start + at_once]


class Blocks:
    """The file of one environment. Used by whoever is in a write transaction of it."""

    def __init__(self, environment: lmdb.Environment, path: str) -> None:
        self._environment = environment
        self._descriptor = os.open(os.path.join(path, "data.mdb"), os.O_RDWR | os.O_CLOEXEC)
        status = os.fstat(self._descriptor)
        if status.st_blocks * 512 < status.st_size:  # made by an older Millpond, say
            with suppress(OSError):
                os.posix_fallocate(self._descriptor, 0, status.st_size)

    def see_to(self, txn: Transaction, tables: Sequence[object], rows: int, grow: Grow, *, more_pages: int = 0) -> None:
        """Have blocks for a transaction that changes so many rows, and ``more_pages`` that it must leave to others.

        Raises:
            NoSpace: there is no room for them.
        """
        pages = self._environment.info()["last_pgno"] + 1
        needed = pages_for(txn, tables, rows, file_pages=pages) + more_pages
        size = os.fstat(self._descriptor).st_size
        ahead = size // _PAGE_BYTES - pages
        if needed <= ahead:
            return
        self._environment.reader_check()  # of what the dead have read nothing is used again
        if ahead < _KEPT_PAGES + pages // 256 or needed > self._reusable_pages(txn, tables, pages):
            add = (needed - ahead + _STEP_PAGES) * _PAGE_BYTES
            grow(add, lambda: self._add(size, add))

    def _reusable_pages(self, txn: Transaction, tables: Sequence[object], pages: int) -> int:
        """At least so many pages are free and will be used before the file grows; below 0: none.

        What the last transaction replaced is not, nor what was replaced since the oldest look that somebody still takes.
        """
        last: int = self._environment.info()["last_txnid"]
        looks = [words[2] for line in self._environment.readers().splitlines()[1:] if len(words := line.split()) == 3]
        oldest = min([last, *(int(number) for number in looks if number.isdigit())])
        counts = [txn.stat(table) for table in tables]
        held = sum(one["leaf_pages"] + one["branch_pages"] + one["overflow_pages"] for one in counts)
        at_once = min(held + _FIXED_PAGES, pages_for(txn, tables, limits.ROWS_MAX, file_pages=pages))
        reusable: int = pages - held - (last - oldest + 1) * at_once - _FIXED_PAGES - pages // 256
        return reusable

    def _add(self, size: int, add: int) -> None:
        with suppress(
            OSError
        ):  # a full disk: LMDB may find free pages, or say so; there is room in the quota for what it takes
            os.posix_fallocate(self._descriptor, size, add)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)


class Governor(Protocol):
    """Says whether there is room, for what lies below a directory; a ``Grow``."""

    def __call__(self, size_bytes: int, grow: Callable[[], None]) -> None:
        """As ``Grow``."""

    def rows_at_once(self) -> int:
        """What is larger is done in several transactions."""


_governors: dict[str, Governor] = {}


def govern(directory: str, governor: Governor) -> None:
    """Have environments below ``directory`` that know nothing of its other content ask ``governor``, in this process."""
    _governors[os.path.abspath(directory)] = governor


def govern_no_more(directory: str, governor: Governor) -> None:
    """Unless somebody else does by now."""
    if _governors.get(os.path.abspath(directory)) is governor:
        del _governors[os.path.abspath(directory)]


def governor_of(path: str) -> Governor | None:
    """Who governs the directory in which ``path`` lies."""
    return _governors.get(os.path.dirname(os.path.abspath(path)))


class Governed:
    """The write transactions of an environment that asks whoever governs its directory."""

    def __init__(self, environment: lmdb.Environment, path: str) -> None:
        self.tables: Sequence[object] = ()
        self._environment = environment
        self._path = path
        self._blocks: Blocks | None = Blocks(environment, path)

    @contextmanager
    def writing(self, *, rows: int = ROWS) -> Iterator[Transaction]:
        """A write transaction that changes at most so many rows, or a few more in small tables.

        Raises:
            NoSpace: there is no room for what it may need.
            lmdb.Error: it cannot be written.
        """
        governor = governor_of(self._path)
        with self._environment.begin(write=True) as txn:
            if governor is not None and self._blocks is not None:
                self._blocks.see_to(txn, self.tables, rows, governor)
            yield txn

    def rows_at_once(self) -> int:
        """What is larger is done in several transactions."""
        governor = governor_of(self._path)
        return limits.ROWS_MAX if governor is None else governor.rows_at_once()

    def close(self) -> None:
        """Let the file go, before the environment is closed. Repeating it is fine."""
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None
