"""A database never takes more than it was given, whatever is changed in it and whoever reads."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from millpond.core import limits
from millpond.core.errors import NoSpace
from millpond.disk.blocks import reusable_pages
from millpond.disk.group_writer import Transaction
from millpond.store.index import Index

DYING_READER = """
import os, sys
from millpond.store.index import Index
look = Index(sys.argv[1]).env.begin()
os._exit(0)  # with its place among the readers
"""


class Given:
    """An index, and how long its file may be."""

    def __init__(self, path: Path) -> None:
        self.index = Index(str(path))
        self.file = path / "data.mdb"
        self.allowed_bytes = 0
        self.is_full = False
        self.index.grow_by(self)

    def allowed_within(self, _: Transaction, __: str) -> int:
        return self.allowed_bytes

    def allow_within(self, _: Transaction, __: str, end_bytes: int, ___: int) -> None:
        if self.is_full and end_bytes > self.allowed_bytes:
            raise NoSpace("nothing more")
        self.allowed_bytes = end_bytes

    def rows_at_once(self) -> int:
        return 100

    def step_bytes(self) -> int:
        return 0

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
@pytest.mark.parametrize("look", ["nobody", "somebody all the time", "somebody now and then"])
def test_no_transaction_takes_more_than_was_said(given: Given, blobs: int, rows: int, look: str) -> None:
    chance = random.Random(f"{blobs}/{rows}")
    keys = sorted(chance.randbytes(33) for _ in range(blobs))
    with given.index.env.begin(write=True) as txn, txn.cursor(given.index.blobs) as cursor:
        cursor.putmulti([(key, bytes(24)) for key in keys], append=True)  # full pages: each insertion splits one
    reader = given.index.env.begin() if look == "somebody all the time" else None
    for turn in range(150):
        if look == "somebody now and then" and not turn % 10:
            if reader is not None:
                reader.abort()
            reader = given.index.env.begin() if chance.random() < 0.5 else None
        changed(given, chance, keys, rows)
        assert given.used_bytes <= given.allowed_bytes
        assert given.taken_bytes <= given.allowed_bytes + 4096  # and what the file system needs to remember where
    if reader is not None:
        reader.abort()


@pytest.mark.parametrize(("rows", "pages"), [(1, 24), (20, 64)])
def test_a_file_in_which_enough_is_free_is_allowed_little_more(given: Given, rows: int, pages: int) -> None:
    chance = random.Random(rows)
    keys: list[bytes] = []
    for _ in range(200):
        changed(given, chance, keys, rows)
    for _ in range(200):
        changed(given, chance, keys, rows)
        assert given.allowed_bytes - given.used_bytes <= pages * 4096


def test_free_pages_are_counted_as_they_are(given: Given) -> None:
    """Against LMDB's own book-keeping: all pages that no table has are free."""
    chance = random.Random(4)
    keys: list[bytes] = []
    for rows in (1, 50, 3_000, 10_000, 20):
        changed(given, chance, keys, rows)
        keys = keys[len(keys) // 2 :]
    index, blocks = given.index, given.index._blocks
    assert blocks is not None
    with index.env.begin(write=True) as txn:
        tables = (index.blobs, index.segments, index.closures, index.space, index.refused, index.state)
        stats = [txn.stat(table) for table in tables] + [index.env.stat()]
        held = sum(one["leaf_pages"] + one["branch_pages"] + one["overflow_pages"] for one in stats)
        free = reusable_pages(blocks._descriptor, 4096, 1 << 60, 1 << 60)
        its_own = given.used_bytes // 4096 - 2 - held - free
        assert 1 <= its_own <= 8  # the list of free pages itself
        assert reusable_pages(blocks._descriptor, 4096, 1 << 60, 5) >= 5
        assert reusable_pages(blocks._descriptor, 4096, 0, 5) == 0


def test_what_finds_no_room_is_not_begun(given: Given) -> None:
    chance = random.Random(1)
    keys: list[bytes] = []
    with given.index.env.begin(), suppress(NoSpace):  # whose pages nobody may use again
        for _ in range(20):
            changed(given, chance, keys, 20)
        given.is_full = True
        for _ in range(1_000):
            changed(given, chance, keys, 20)
        raise AssertionError("it went on for ever")
    assert given.taken_bytes <= given.allowed_bytes + 4096
    for _ in range(100):  # nobody reads any more: what was replaced is used again
        changed(given, chance, keys, 1)
    assert given.taken_bytes <= given.allowed_bytes + 4096


def test_what_a_dead_reader_had_seen_is_used_again(given: Given) -> None:
    """Who is killed while it reads must not make the file grow until somebody happens to look."""
    subprocess.run([sys.executable, "-c", DYING_READER, given.file.parent], check=True)
    chance = random.Random(3)
    keys: list[bytes] = []
    for _ in range(1_000):
        changed(given, chance, keys, 1)
    assert given.taken_bytes < limits.MIB


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(0, 2**64 - 1), st.lists(st.binary(max_size=120), min_size=1, max_size=4))
def test_a_list_of_free_pages_that_is_damaged_is_read_to_an_end(root: int, pages: list[bytes]) -> None:
    meta = struct.pack("=16x24x 40xQ 48x QQ", root, 9, 1).ljust(4096, b"\0")
    content = meta + meta + b"".join(page.ljust(4096, b"\0") for page in pages)
    assert read_free(content) >= 0


def test_a_list_of_free_pages_that_leads_in_a_circle_is_read_to_an_end() -> None:
    meta = struct.pack("=16x24x 40xQ 48x QQ", 2, 9, 1).ljust(4096, b"\0")
    branch = struct.pack("=10xHHH", 1, 18, 0) + struct.pack("=H", 24)
    itself = struct.pack("=HHHH", 2, 0, 0, 0)
    assert read_free(meta + meta + branch.ljust(24, b"\0") + itself.ljust(4096 - 24, b"\0")) == 0


def read_free(content: bytes) -> int:
    descriptor = os.memfd_create("data.mdb")
    try:
        os.pwrite(descriptor, content, 0)
        return reusable_pages(descriptor, 4096, 1, 1000)
    finally:
        os.close(descriptor)
