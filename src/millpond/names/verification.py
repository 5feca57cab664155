"""Is a file of names sound? Asked by whoever opens names first, before LMDB trusts a byte of it.

LMDB believes its pages: a damaged one is a crash, or an older state without a word. So the structure is walked page by
page (3 µs per name). And because one flipped bit in one of the two *meta* pages, which say where the last two states
begin and which is the newer, would bring the older one back, each commit writes its own number among the names as well
(:func:`sign`): the rule is that a state is believed only under its own number. What stands inside of the pages is
covered by each value's checksum (``names.values``).

Layout (mdb.c, LMDB 0.9): a page is (number, pad, flags, lower, upper), then 16-bit offsets of its nodes; a node is (two
halves of the size of its data, flags, size of its key), key, data; a table's data is an MDB_db, whose root comes last.
"""

import os
import struct
from pathlib import Path

import lmdb
from lmdb.verify import VerifyError, verify

NAMES_FORMAT = 1
"""The format this version writes."""
FORMAT_KEY = b"names_format"
"""Where the table ``meta`` says it, in decimal digits."""

_PAGE = struct.Struct("=QHHHH")
_META = struct.Struct("=IIQQ48s48sQQ")  # magic, version, address, map size, MDB_db of free pages, of tables, pages, txn
_NODE = struct.Struct("=HHHH")
_PAGE_BYTES = struct.Struct("=I")  # the first field of the MDB_db of free pages
_FLAGS = slice(4, 6)
_KINDS = (struct.pack("=H", 0x08), bytes(2))  # MDB_INTEGERKEY, none
_ROOT_AT = 40
_NO_PAGE = 2**64 - 1
_LEAF = 0x02
_TABLE = b"meta"
_KEY = b"commit"


class Unsound(Exception):
    """A file that is not what LMDB wrote."""


def sign(transaction: "lmdb.Transaction[bytes]", table: lmdb._Database) -> None:
    """Write the number of the commit that ``transaction`` will be into ``table``, which is ``meta``."""
    transaction.put(_KEY, transaction.id().to_bytes(8, "little"), db=table)


def check(directory: Path, *, must_exist: bool) -> None:
    """Look at the file of names in ``directory``, which nobody has open.

    Raises:
        Unsound: it is damaged; or it is not there, and ``must_exist``.
    """
    path = directory / "data.mdb"
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError:
        size_bytes = 0
    if not size_bytes:
        if must_exist:
            raise Unsound("they are missing")
        return
    try:
        findings = verify(str(directory))  # type: ignore[no-untyped-call]  # lmdb ships no stub for it
    except VerifyError as error:
        raise Unsound(str(error)) from error
    if findings:
        raise Unsound(str(findings[0]))
    try:
        _check_commits(path)
    except (struct.error, IndexError, OverflowError) as error:
        raise Unsound("the pages that say which state is the newest are no such pages") from error


def _check_commits(path: Path) -> None:
    """Whether the two newest states are what their meta pages call them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = os.pread(descriptor, _PAGE.size + _META.size, 0)
        page_bytes = _PAGE_BYTES.unpack_from(_META.unpack_from(first, _PAGE.size)[4])[0]
        second = os.pread(descriptor, _PAGE.size + _META.size, page_bytes)
        for page in (first, second):
            *_, free, tables, _, commit = _META.unpack_from(page, _PAGE.size)
            if (free[_FLAGS], tables[_FLAGS]) != _KINDS:  # LMDB would abort the process
                raise Unsound("its tables are of an unknown kind")
            signed = _signed(descriptor, page_bytes, tables)
            if signed not in (None, commit):
                raise Unsound(f"commit {signed} is called {commit}")
    finally:
        os.close(descriptor)


def _signed(descriptor: int, page_bytes: int, tables: bytes) -> int | None:
    """The number that a state was signed with; None for one without names, or of a format that is not ours to judge."""
    meta = _value(descriptor, page_bytes, tables, _TABLE)
    if meta is None or _value(descriptor, page_bytes, meta, FORMAT_KEY) != b"%d" % NAMES_FORMAT:
        return None
    commit = _value(descriptor, page_bytes, meta, _KEY)
    return 0 if commit is None else int.from_bytes(commit, "little")


def _value(descriptor: int, page_bytes: int, table: bytes, key: bytes) -> bytes | None:
    """What stands under ``key`` in a table that is so small that it is one page; ``table`` is its MDB_db."""
    root = int.from_bytes(table[_ROOT_AT : _ROOT_AT + 8], "little")
    if root == _NO_PAGE:
        return None
    page = os.pread(descriptor, page_bytes, root * page_bytes)
    _, _, flags, lower, _ = _PAGE.unpack_from(page)
    if flags != _LEAF:
        return None
    for at in range(_PAGE.size, lower, 2):
        node = int.from_bytes(page[at : at + 2], "little")
        low, high, _, key_bytes = _NODE.unpack_from(page, node)
        begin = node + _NODE.size
        if page[begin : begin + key_bytes] == key:
            return page[begin + key_bytes : begin + key_bytes + (low | high << 16)]
    return None
