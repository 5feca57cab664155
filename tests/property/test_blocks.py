"""A database never takes more than it was given, whatever is changed in it and whoever reads."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk.group_writer import Transaction
from millpond.store.index import Index

DYING_READER = """
import os, sys
from millpond.store.index import Index
look = Index(sys.argv[1]).env.begin()
os._exit(0)  # with its place among the readers
"""


class Given:
    """An index, and what its file was given."""

    def __init__(self, path: Path) -> None:
        self.index = Index(str(path))
        self.file = path / "data.mdb"
        self.given_bytes = 0
        self.is_full = False
        self.index.grow_by(self.give, rows_at_once=lambda: 100)

    def give(self, _: Transaction, size_bytes: int, grow: Callable[[], None]) -> None:
        if self.is_full:
            raise NoSpace("nothing more")
        before = self.taken_bytes
        grow()
        assert self.taken_bytes - before <= size_bytes + 2 * 4096  # and what the file system needs to remember where
        self.given_bytes += size_bytes

    @property
    def taken_bytes(self) -> int:
        return os.stat(self.file).st_blocks * 512

    @property
    def used_bytes(self) -> int:
        used: int = (self.index.env.info()["last_pgno"] + 1) * 4096
        return used


@pytest.fixture
def given(tmp_path: Path) -> Iterator[Given]:
    given = Given(tmp_path / "index")
    yield given
    given.index.close()


def changed(given: Given, chance: random.Random, keys: list[bytes], rows: int) -> None:
    """A transaction as there are many: blobs come, go and move, and the ledger and a segment's row with them."""
    index = given.index
    with index.writing(rows=rows + 4) as txn:
        for _ in range(rows):
            if keys and chance.random() < 0.5:
                txn.delete(keys.pop(chance.randrange(len(keys))), db=index.blobs)
            else:
                keys.append(chance.randbytes(33))
                txn.put(keys[-1], chance.randbytes(24), db=index.blobs)
        for table in (index.space, index.segments, index.closures, index.refused):
            txn.put(chance.randbytes(4), chance.randbytes(40), db=table)


@pytest.mark.parametrize("blobs", [0, 1_000, 20_000])
@pytest.mark.parametrize("rows", [1, 20, 300])
@pytest.mark.parametrize("is_read", [False, True], ids=["unread", "read all the time"])
def test_no_transaction_needs_more_than_was_said(given: Given, blobs: int, rows: int, *, is_read: bool) -> None:
    chance = random.Random(f"{blobs}/{rows}")
    keys = sorted(chance.randbytes(33) for _ in range(blobs))
    with given.index.env.begin(write=True) as txn, txn.cursor(given.index.blobs) as cursor:
        cursor.putmulti([(key, bytes(24)) for key in keys], append=True)  # full pages: each insertion splits one
    reader = given.index.env.begin() if is_read else None
    changed(given, chance, keys, rows)
    taken = given.taken_bytes - given.given_bytes
    for _ in range(100):
        before = given.taken_bytes, given.given_bytes
        changed(given, chance, keys, rows)
        assert given.taken_bytes - before[0] <= given.given_bytes - before[1] + 2 * 4096
        assert given.used_bytes <= given.file.stat().st_size
    assert given.taken_bytes - given.given_bytes <= taken + 4 * 4096
    if reader is not None:
        reader.abort()


def test_what_finds_no_room_is_not_begun(given: Given) -> None:
    chance = random.Random(1)
    keys: list[bytes] = []
    with given.index.env.begin(), suppress(NoSpace):  # whose pages nobody may use again
        for _ in range(20):
            changed(given, chance, keys, 20)
        given.is_full = True
        taken = given.taken_bytes
        for _ in range(1_000):
            changed(given, chance, keys, 20)
        raise AssertionError("it went on for ever")
    assert given.taken_bytes == taken
    for _ in range(100):  # nobody reads any more: what was replaced is used again
        changed(given, chance, keys, 1)
    assert given.taken_bytes == taken


def test_who_leaves_pages_to_others_stops_before_them(given: Given) -> None:
    chance = random.Random(2)
    keys: list[bytes] = []
    given.index.grow_by(given.give, rows_at_once=lambda: 100, left_pages=64)
    changed(given, chance, keys, 50)
    given.is_full = True
    with given.index.env.begin():
        with suppress(NoSpace):
            for _ in range(1_000):
                changed(given, chance, keys, 1)
            raise AssertionError("it left nothing")
        given.index.grow_by(given.give, rows_at_once=lambda: 100)
        changed(given, chance, keys, 1)


def test_what_a_dead_reader_had_seen_is_used_again(given: Given) -> None:
    """Who is killed while it reads must not make the file grow until somebody happens to look."""
    subprocess.run([sys.executable, "-c", DYING_READER, given.file.parent], check=True)
    chance = random.Random(3)
    keys: list[bytes] = []
    for _ in range(1_000):
        changed(given, chance, keys, 1)
    assert given.taken_bytes < limits.MIB
