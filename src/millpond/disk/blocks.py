"""How far the file of an environment may grow.

LMDB copies what it changes. A page that was replaced is used again once no reader can see it, so a process that is
stopped while it reads, or died so, makes the file grow with every transaction. How much a transaction needs is known only
when it has been committed; but the most that it can need is known before (:func:`pages_for`), and so is how much of that
is free (:func:`reusable_pages`).

The rule: no transaction is begun that could make the file longer than it is allowed to be. It is allowed more before,
where somebody says that there is room for it (``Allow``). So whatever is stopped or killed, what the file takes was
counted before it took it. The file itself is left to LMDB.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import lmdb

from millpond.core import limits
from millpond.core.errors import NoSpace

T = TypeVar("T")
Transaction = Any
"""``lmdb.Transaction``."""
Grow = Callable[[int, Callable[[], None]], None]
"""Does what makes something take so many bytes more; NoSpace when there is no room for it."""
Allow = Callable[[int, int], None]
"""Lets a file be so long from now on, in which so many bytes are unused. NoSpace when there is no room for it."""
ROWS = 4
"""What a piece of work changes that does not say more: rows of tables, two of which are as good as never in one page."""
_FIXED_PAGES = 10
"""The tables' and the free list's own pages: the most that was ever seen are 8 (``tests/property/test_blocks.py``)."""
_IN_A_ROW_PAGES = 4
"""Lists of free pages may want several in a row, which are not to be had where single ones are free."""
_STEP_PAGES = 4
"""So many more are allowed at once."""
_LARGE_STEP_PAGES = 16

# mdb.c of LMDB 0.9: MDB_page (16 bytes), MDB_meta (behind it), MDB_node. One machine's byte order, one page size.
_META = struct.Struct("=16x24x 40xQ 48x QQ")
"""Root of the free list, last page, transaction."""
_PAGE = struct.Struct("=10xHHH")
"""Flags, end of the list of nodes, begin of the nodes."""
_NODE = struct.Struct("=HHHH")
"""Two halves of a size or page number, flags or more of the page number, length of the key."""
_U64 = struct.Struct("=Q")
_BRANCH, _BIG = 1, 1
_TRIES = 3


def pages_for(txn: Transaction, tables: Sequence[object], rows: int, *, file_pages: int) -> int:
    """The most pages that a transaction needs which changes so many rows of some 100 bytes.

    Each row may touch a page of rows and its neighbour, or split it, and what points to it. But there are no more pages
    than there are. ``file_pages``: the list of free ones is written as well.
    """
    leaves = branches = 0
    for table in tables:
        counts = txn.stat(table)
        leaves += counts["leaf_pages"]
        branches += counts["branch_pages"] + counts["overflow_pages"]
    return _FIXED_PAGES + min(2 * rows, 2 * leaves) + min(rows, branches) + rows // 8 + file_pages // 256


def pieces(items: Sequence[T], at_once: int) -> Iterator[Sequence[T]]:
    """``items`` in pieces that are changed in one transaction each."""
    for start in range(0, len(items), at_once):
        yield items[start : start + at_once]


def reusable_pages(descriptor: int, page_bytes: int, before: int, enough: int) -> int:
    """How many pages were free before transaction ``before``, as the last committed one has it; counted up to ``enough``.

    Read from the file, because LMDB does not tell. By whoever may write to it: nobody changes it meanwhile. Where the list
    is damaged, none are known to be free; LMDB itself will say what is wrong.
    """
    try:
        return _free_pages(descriptor, page_bytes, before, enough)
    except (struct.error, OverflowError, OSError):
        return 0


def _free_pages(descriptor: int, page_bytes: int, before: int, enough: int) -> int:
    metas = [_META.unpack(os.pread(descriptor, _META.size, number * page_bytes)) for number in (0, 1)]
    root, _, _ = max(metas, key=lambda meta: meta[2])
    free, pages = 0, [root] if root != 2**64 - 1 else []
    most_looks = os.fstat(descriptor).st_size // page_bytes  # a damaged list may lead in a circle
    while pages and free < enough and most_looks:
        most_looks -= 1
        page = os.pread(descriptor, page_bytes, pages.pop() * page_bytes)
        flags, end, _ = _PAGE.unpack_from(page)
        nodes = struct.unpack_from(f"={(end - 16) // 2}H", page, 16)
        if flags & _BRANCH:
            for node in reversed(nodes):  # the oldest first
                low, middle, high, _ = _NODE.unpack_from(page, node)
                pages.append(low | middle << 16 | high << 32)
            continue
        for node in nodes:
            _, _, kind, key_bytes = _NODE.unpack_from(page, node)
            if _U64.unpack_from(page, node + 8)[0] >= before:
                return free
            (count,) = _U64.unpack_from(page, node + 8 + key_bytes)
            if kind & _BIG:
                count = _U64.unpack(os.pread(descriptor, 8, count * page_bytes + 16))[0]
            free += count
    return free


class Blocks:
    """The file of one environment. Used by whoever is in a write transaction of it."""

    def __init__(self, environment: lmdb.Environment, path: str) -> None:
        self._environment = environment
        self._page_bytes: int = environment.stat()["psize"]
        self._descriptor = os.open(os.path.join(path, "data.mdb"), os.O_RDONLY | os.O_CLOEXEC)

    def see_to(
        self,
        txn: Transaction,
        tables: Sequence[object],
        rows: int,
        *,
        allowed_bytes: int,
        allow: Allow,
        step_bytes: int,
        most_rows: int,
    ) -> None:
        """Have a transaction that changes so many rows be allowed.

        ``allowed_bytes``: how long the file may be; ``step_bytes``: how much more is asked for, to ask seldom.
        ``most_rows``: what other transactions may change.

        Raises:
            NoSpace: there is no room for what it may need.
        """
        pages = self._environment.info()["last_pgno"] + 1
        ahead = allowed_bytes // self._page_bytes - pages
        step = max(_STEP_PAGES, step_bytes // self._page_bytes)
        if _FIXED_PAGES + _IN_A_ROW_PAGES + 4 * rows + pages // 128 <= min(ahead, step):
            return  # in any case, and not worth to be reckoned up
        lacking = self._lacking(txn, tables, rows, pages)
        if lacking > ahead and self._environment.reader_check():  # of what the dead have read nothing is used again
            lacking = self._lacking(txn, tables, rows, pages)
        if lacking <= ahead:
            # What is not needed any more is left to others; in a large cache, what no transaction needs any more. Not
            # little: what is free varies from one to the next by what they replace, and asking costs as much as they do.
            much = max(2 * _STEP_PAGES, 8 * step_bytes // self._page_bytes)
            if ahead - lacking > much and step >= _LARGE_STEP_PAGES:
                lacking = self._lacking(txn, tables, most_rows, pages)
            if ahead - lacking <= much:
                return
        counts = [txn.stat(table) for table in tables]
        held = sum(one["leaf_pages"] + one["branch_pages"] + one["overflow_pages"] for one in counts)
        allow((pages + lacking + step) * self._page_bytes, (pages - held) * self._page_bytes)

    def _lacking(self, txn: Transaction, tables: Sequence[object], rows: int, pages: int) -> int:
        needed = pages_for(txn, tables, rows, file_pages=pages)
        return max(_IN_A_ROW_PAGES + pages // 256, needed - self._reusable(needed))

    def _reusable(self, enough: int) -> int:
        """Not what the last transaction replaced, nor what was replaced since the oldest look that somebody still takes."""
        last: int = self._environment.info()["last_txnid"]
        looks = [words[2] for line in self._environment.readers().splitlines()[1:] if len(words := line.split()) == 3]
        oldest = min([last, *(int(number) for number in looks if number.isdigit())])
        return reusable_pages(self._descriptor, self._page_bytes, oldest, enough)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._descriptor)


class Governor(Protocol):
    """Says whether there is room, for the environments below a directory."""

    def allowed(self, path: str) -> int:
        """How long the file of the environment in ``path`` may be."""

    def allow(self, path: str, end_bytes: int, unused_bytes: int) -> None:
        """As ``Allow``."""

    def wait(self, size_bytes: int) -> bool:
        """Wait for so much room after :meth:`allow` found none; whether it is worth another try. No transaction may be open."""

    def rows_at_once(self) -> int:
        """What is larger is done in several transactions."""

    def step_bytes(self) -> int:
        """How much more is asked for at once."""


_governors: dict[str, Governor] = {}


def govern(directory: str, governor: Governor) -> None:
    """Have environments below ``directory`` that know nothing of its other content ask ``governor``, in this process."""
    _governors[os.path.abspath(directory)] = governor


def govern_no_more(directory: str, governor: Governor) -> None:
    """Unless somebody else does by now."""
    if _governors.get(os.path.abspath(directory)) is governor:
        del _governors[os.path.abspath(directory)]


class Governed:
    """The write transactions of an environment that asks whoever governs its directory."""

    def __init__(self, environment: lmdb.Environment, path: str) -> None:
        self.tables: Sequence[object] = ()
        self._environment = environment
        self._path = path
        self._directory = os.path.dirname(os.path.abspath(path))
        self._blocks: Blocks | None = Blocks(environment, path)
        self._wanted_bytes = 0

    @contextmanager
    def writing(self, *, rows: int = ROWS) -> Iterator[Transaction]:
        """A write transaction that changes at most so many rows, or a few more in small tables.

        Raises:
            NoSpace: there is no room for what it may need.
            lmdb.Error: it cannot be written.
        """
        governor = _governors.get(self._directory)
        refusal: NoSpace | None = None
        for _ in range(_TRIES):
            with self._environment.begin(write=True) as txn:
                try:
                    self._see_to(txn, rows, governor)
                except NoSpace as why:
                    refusal = why
                else:
                    refusal = None
                    yield txn
            if refusal is None:
                self._give_back(governor)
                return
            if governor is None or not governor.wait(self._wanted_bytes):
                break
        assert refusal is not None
        raise refusal

    def _give_back(self, governor: Governor | None) -> None:
        """In a small cache, leave to others what the next transaction may need and none needs now."""
        if governor is None or governor.step_bytes() >= _LARGE_STEP_PAGES * self._environment.stat()["psize"]:
            return
        # In a transaction: so nobody else is writing, who may need it.
        with suppress(NoSpace), self._environment.begin(write=True):
            end_bytes = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
            if governor.allowed(self._path) > end_bytes:
                governor.allow(self._path, end_bytes, 0)

    def _see_to(self, txn: Transaction, rows: int, governor: Governor | None) -> None:
        if governor is None or self._blocks is None:
            return
        allowed_bytes = governor.allowed(self._path)

        def allow(end_bytes: int, unused_bytes: int) -> None:
            self._wanted_bytes = end_bytes - allowed_bytes
            governor.allow(self._path, end_bytes, unused_bytes)

        self._blocks.see_to(
            txn,
            self.tables,
            rows,
            allowed_bytes=allowed_bytes,
            allow=allow,
            step_bytes=governor.step_bytes(),
            most_rows=governor.rows_at_once(),
        )

    def rows_at_once(self) -> int:
        """What is larger is done in several transactions."""
        governor = _governors.get(self._directory)
        return limits.ROWS_MAX if governor is None else governor.rows_at_once()

    def close(self) -> None:
        """Let the file go, before the environment is closed. Repeating it is fine."""
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None
