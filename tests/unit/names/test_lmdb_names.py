"""What LmdbNames does beyond the promises of an index: formats, damage, read-only, the writer thread."""

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NameNotFound, NoSpace, NotReady, NotServed, RefusedToStart
from millpond.core.names import Name, Namespace
from millpond.disk.blocks import Governed
from millpond.disk.group_writer import GroupWriter, Work
from millpond.names import changes, environment, room, values, verification
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.names.notes import Broken, Pin, PinState

KEY = Name("main", Namespace.ASSET_BLOB, "key")
A = Binding(Digest.of(b"a"), 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Names that hold KEY, closed."""
    index = LmdbNames(tmp_path / "names")
    index.bind([(KEY, A)])
    index.take_numbers(64)
    index.close()
    return tmp_path / "names"


def overwrite(path: Path, table: bytes, key: bytes, value: bytes) -> None:
    with lmdb.open(str(path), max_dbs=3) as env:
        db, meta = env.open_db(table), env.open_db(b"meta")
        with env.begin(write=True) as transaction:
            transaction.put(key, value, db=db)
            verification.sign(transaction, meta)


def failure(kind: type[lmdb.Error], code: int) -> lmdb.Error:
    """As LMDB raises it: an error that is made in Python has no code."""
    error = kind("mdb_something")
    error.code = code  # type: ignore[misc]
    return error


# -- formats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_format_is_refused_and_left_alone(path: Path, read_only: bool) -> None:
    overwrite(path, b"meta", b"names_format", b"2")
    before = (path / "data.mdb").read_bytes()
    with pytest.raises(RefusedToStart, match="format 2"):
        LmdbNames(path, read_only=read_only)
    assert (path / "data.mdb").read_bytes() == before


def test_an_older_format_is_upgraded_once_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(environment, "NAMES_FORMAT", 3)
    monkeypatch.setattr(environment, "_UPGRADES", {1: lambda *_: steps.append(1), 2: lambda *_: steps.append(2)})
    with pytest.raises(RefusedToStart, match="upgrade"):
        LmdbNames(path, read_only=True)
    for _ in range(2):
        index = LmdbNames(path)
        assert index.resolve(KEY) == A
        index.close()
    assert steps == [1, 2]


def test_an_upgrade_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(transaction: Any, tables: environment.Tables) -> None:
        transaction.drop(tables[b"bindings"])
        raise RefusedToStart("cannot be upgraded")

    with monkeypatch.context() as patch:
        patch.setattr(environment, "NAMES_FORMAT", 2)
        patch.setattr(environment, "_UPGRADES", {1: fails})
        with pytest.raises(RefusedToStart, match="cannot be upgraded"):
            LmdbNames(path)
    index = LmdbNames(path)
    assert index.resolve(KEY) == A
    index.close()


@pytest.mark.parametrize("found", [b"", b"one", b"-1"])
def test_a_format_that_is_no_number_is_refused(path: Path, found: bytes) -> None:
    overwrite(path, b"meta", b"names_format", found)
    with pytest.raises(RefusedToStart, match="does not hold the names"):
        LmdbNames(path)


@pytest.mark.parametrize("read_only", [False, True])
def test_somebody_elses_environment_is_refused(tmp_path: Path, read_only: bool) -> None:
    overwrite(tmp_path, b"stranger", b"key", b"value")
    with pytest.raises(RefusedToStart, match="does not hold the names"):
        LmdbNames(tmp_path, read_only=read_only)


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "harm",
    [
        lambda held: held[:100],
        lambda held: held[: len(held) // 2],
        lambda held: bytes(len(held)),
        lambda held: b"#!/bin/sh\n" * 4096,
        lambda held: held[:8192] + bytes(255 - byte for byte in held[8192:]),
    ],
    ids=["a stub", "half", "zeros", "a script", "noise after the head"],
)
def test_a_damaged_file_is_refused_with_the_next_step(path: Path, harm: Any) -> None:
    held = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(harm(held))
    with pytest.raises(RefusedToStart, match="millpond names restore"):
        LmdbNames(path)
    (path / "data.mdb").write_bytes(held)
    index = LmdbNames(path)
    assert index.resolve(KEY) == A
    index.close()


def test_a_file_that_is_short_by_free_pages_only_is_fine(path: Path) -> None:
    index = LmdbNames(path)
    index._write(
        lambda transaction: [
            transaction.put(b"k" * 32, b"v" * 99_999, db=index._bindings),
            transaction.delete(b"k" * 32, db=index._bindings),
        ]
    )
    index.bind([(KEY, A)])
    index.close()
    index = LmdbNames(path)
    assert index.resolve(KEY) == A
    index.close()


def test_damage_is_logged_once_per_name(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overwrite(path, b"bindings", KEY.row, values.value_of(KEY, A)[:-1])
    index = LmdbNames(path)
    for _ in range(3):
        with pytest.raises(NameNotFound):
            index.resolve(KEY)
        assert list(index.names()) == []
        assert index.unbind(KEY, expected=A) is False
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert KEY.row.hex() in caplog.text
    assert index.unbind(KEY) is True
    index.close()


@pytest.mark.parametrize(
    "payload", [b"", b"no json\n{}", b"1\n{}", b'["","asset-blob"]\n{}', b'["","asset-blob","k"]\n[]']
)
def test_a_sealed_value_that_makes_no_sense_is_an_absent_name(path: Path, payload: bytes) -> None:
    overwrite(path, b"bindings", KEY.row, values.seal(KEY.row, payload))
    index = LmdbNames(path)
    assert list(index.names()) == []
    with pytest.raises(NameNotFound):
        index.resolve(KEY)
    index.close()


def test_a_namespace_of_a_newer_millpond_is_passed_over_in_silence(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = b"r" * 32
    overwrite(path, b"bindings", row, values.seal(row, b'["","from-the-future","k"]\n{"shape":"unknown"}'))
    index = LmdbNames(path)
    assert list(index.names()) == [(KEY, A)]
    assert not caplog.records
    index.close()


def test_a_damaged_counter_gives_no_number_rather_than_one_twice(path: Path) -> None:
    overwrite(path, b"counters", b"segments", b"\x01" + bytes(24))
    index = LmdbNames(path)
    with pytest.raises(NotReady):
        index.take_numbers(1)
    assert index.resolve(KEY) == A
    index.close()


# -- opening ------------------------------------------------------------------------------------------------------


def test_the_lock_file_is_whole_from_the_start_so_that_a_full_disk_cannot_kill_a_reader(path: Path) -> None:
    lock = (path / "lock.mdb").stat()
    assert lock.st_blocks * 512 >= lock.st_size
    assert lock.st_size >= limits.LMDB_READERS * 64


def test_one_process_opens_a_path_once(path: Path) -> None:
    index = LmdbNames(path)
    with pytest.raises(RefusedToStart, match="already open"):
        LmdbNames(path)
    assert index.resolve(KEY) == A
    index.close()


def test_a_refused_start_leaves_no_thread_and_no_open_file_behind(path: Path) -> None:
    overwrite(path, b"meta", b"names_format", b"2")
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(RefusedToStart):
            LmdbNames(path)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)


def test_who_only_reads_writes_nothing(path: Path) -> None:
    index = LmdbNames(path, read_only=True)
    assert index.resolve(KEY) == A
    for call in (lambda: index.bind([(KEY, A)]), lambda: index.unbind(KEY), lambda: index.take_numbers(1)):
        with pytest.raises(NotServed):
            call()
    index.close()
    with pytest.raises(NotReady):
        index.unbind(KEY)


def test_who_only_reads_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RefusedToStart, match="names"):
        LmdbNames(tmp_path / "names", read_only=True)
    assert not (tmp_path / "names").exists()


def test_a_lock_file_that_cannot_be_written_is_done_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[bool] = []
    real = lmdb.open

    def refusing(*args: Any, lock: bool, **options: Any) -> lmdb.Environment:
        locks.append(lock)
        if lock:
            raise failure(lmdb.ReadonlyError, errno.EACCES)
        return real(*args, lock=lock, **options)

    monkeypatch.setattr(lmdb, "open", refusing)
    index = LmdbNames(path, read_only=True)
    assert index.resolve(KEY) == A
    index.close()
    assert locks == [True, False]
    with pytest.raises(RefusedToStart):
        LmdbNames(path)  # a writer never goes without
    assert locks == [True, False, True]


def test_lock_false_is_for_who_only_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[bool] = []
    real = lmdb.open
    monkeypatch.setattr(
        lmdb, "open", lambda *args, lock, **rest: [locks.append(lock), real(*args, lock=lock, **rest)][1]
    )
    for read_only in (False, True):
        LmdbNames(path, read_only=read_only, lock=False).close()
    assert locks == [True, False]


def test_free_dead_readers_finds_none_among_the_living(path: Path) -> None:
    index = LmdbNames(path)
    assert index.free_dead_readers() == 0
    index.close()
    with pytest.raises(NotReady):
        index.free_dead_readers()


# -- writing ------------------------------------------------------------------------------------------------------


def test_names_that_fill_their_map_are_told_no_space(tmp_path: Path) -> None:
    index = LmdbNames(tmp_path / "names", map_bytes=1 << 20)
    with pytest.raises(NoSpace):
        index.bind([(Name("", Namespace.ASSET_BLOB, str(i)), A) for i in range(10_000)])
    assert list(index.names()) == []
    index.bind([(KEY, A)])
    assert index.resolve(KEY) == A
    index.close()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (failure(lmdb.DiskError, errno.ENOSPC), NoSpace),
        (failure(lmdb.Error, errno.EDQUOT), NoSpace),
        (failure(lmdb.Error, errno.EIO), NotReady),
        (failure(lmdb.PanicError, -30795), NotReady),
        (lmdb.Error("Attempt to operate on closed/deleted/dropped object: mdb_something"), NotReady),
    ],
    ids=["ENOSPC", "EDQUOT", "EIO", "panic", "an error without a code"],
)
def test_a_write_that_fails_is_one_sentence_for_the_peer(
    path: Path, error: lmdb.Error, told: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise error

    index = LmdbNames(path)
    with pytest.raises(told) as failure:
        index._write(fail)
    assert "mdb" not in str(failure.value)
    assert str(path) not in str(failure.value)
    assert ("mdb" in caplog.text) == (told is NotReady)  # the cause of what is not the disk's being full is logged
    index.close()


def test_an_io_error_on_a_full_disk_is_no_space(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.disk.environment._FULL_BELOW_BYTES", 1 << 60)
    assert isinstance(environment.unwritten(path, failure(lmdb.Error, errno.EIO)), NoSpace)


@pytest.fixture
def env(path: Path) -> Iterator[lmdb.Environment]:
    with lmdb.open(str(path), max_dbs=3) as env:
        yield env


class Queue:
    """A writer that is busy until it is let go, so that a test decides what waits together."""

    def __init__(self, env: lmdb.Environment) -> None:
        self.writer = GroupWriter(Governed(env, env.path()).writing, "names-writer")
        self.holding, begun = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []
        self.in_thread(lambda: self.writer.run(lambda _: [begun.set(), self.holding.wait(10)]))
        begun.wait(10)

    def in_thread(self, call: Callable[[], object]) -> None:
        self.threads.append(threading.Thread(target=call))
        self.threads[-1].start()

    def add(self, call: Callable[[], object]) -> None:
        waiting = self.writer._waiting.qsize()
        self.in_thread(call)
        while self.writer._waiting.qsize() == waiting:
            pass

    def let_go(self) -> None:
        self.holding.set()
        for thread in self.threads:
            thread.join()


def test_what_waits_is_committed_together(env: lmdb.Environment) -> None:
    queue, transactions = Queue(env), []
    for key in (b"a", b"b", b"c"):
        queue.add(lambda key=key: queue.writer.run(lambda t: [t.put(key, b""), transactions.append(t.id())]))
    queue.let_go()
    assert len(transactions) == 3
    assert len(set(transactions)) == 1
    with env.begin() as transaction:
        assert transaction.get(b"a") == transaction.get(b"c") == b""
    queue.writer.close()


def test_who_fails_in_a_group_fails_alone(env: lmdb.Environment) -> None:
    queue, calls, outcomes = Queue(env), [], {}

    def job(label: str) -> None:
        def work(transaction: "lmdb.Transaction[bytes]") -> str:
            calls.append(label)
            transaction.put(label.encode(), b"")
            if label == "bad":
                raise ValueError(label)
            return label

        try:
            outcomes[label] = queue.writer.run(work)
        except ValueError:
            outcomes[label] = "failed"

    for label in ("a", "b", "bad", "c"):
        queue.add(lambda label=label: job(label))
    queue.let_go()
    assert outcomes == {"a": "a", "b": "b", "bad": "failed", "c": "c"}
    assert calls == ["a", "b", "bad", "a", "b", "bad", "c"]
    with env.begin() as transaction:
        assert [transaction.get(key) for key in (b"a", b"b", b"bad", b"c")] == [b"", b"", None, b""]
    queue.writer.close()


def test_close_first_commits_what_waits(env: lmdb.Environment) -> None:
    queue = Queue(env)
    queue.add(lambda: queue.writer.run(lambda t: t.put(b"late", b"")))
    queue.add(queue.writer.close)
    with pytest.raises(NotReady):
        queue.writer.run(lambda _: None)
    queue.let_go()
    with env.begin() as transaction:
        assert transaction.get(b"late") == b""


def test_those_who_were_committed_together_are_waited_for_and_no_longer(env: lmdb.Environment) -> None:
    queue, transactions = Queue(env), {}
    queue.writer._gather_seconds = 30.0

    def note(label: str) -> None:
        queue.writer.run(lambda t: [t.put(label.encode(), b""), transactions.update({label: t.id()})])

    for label in ("a", "b"):
        queue.add(lambda label=label: note(label))
    queue.let_go()
    while queue.writer._awaited != 2:
        time.sleep(0.001)
    queue.writer._gather_seconds = 0.1  # the next time
    again = [threading.Thread(target=note, args=(label,)) for label in ("c", "d")]
    begun = time.monotonic()
    for thread in again:
        thread.start()
        time.sleep(0.02)
    for thread in again:
        thread.join()
    assert transactions["c"] == transactions["d"] != transactions["a"]
    assert time.monotonic() - begun < 15
    note("alone")  # the other one does not come
    assert transactions["alone"] > transactions["c"]
    assert time.monotonic() - begun < 15
    queue.writer.close()


def test_what_one_of_a_group_would_have_changed_is_not_counted_when_it_fails(path: Path) -> None:
    index = LmdbNames(path)
    assert index._writer is not None
    held_bytes, position = index.held_bytes(), index.changes.position()
    holding, begun = threading.Event(), threading.Event()
    index._writer.submit(Work(lambda _: [begun.set(), holding.wait(10)]))
    begun.wait(10)  # so that what follows waits together

    def fail(_: object) -> None:
        raise ValueError

    names = [Name("main", Namespace.ASSET_BLOB, key) for key in ("one", "two")]
    bound = [index.bind_later([(name, A)]) for name in names]
    failing = index._writer.submit(Work(fail))
    holding.set()
    for future in bound:
        future.result()
    assert isinstance(failing.exception(), ValueError)
    per_name_bytes = room.taken_bytes(values.value_of(names[0], A))
    assert index.held_bytes() == held_bytes + 2 * per_name_bytes
    assert index.changes.since(position) == (position + 2, [name.row for name in names])
    index.close()


def test_of_a_group_that_is_too_much_as_many_are_bound_as_fit(path: Path) -> None:
    index = LmdbNames(path, limit_bytes=lambda: limit_bytes)
    names = [Name("main", Namespace.ASSET_BLOB, key) for key in ("one", "two")]
    limit_bytes = index.held_bytes() + room.taken_bytes(values.value_of(names[0], A))
    assert index._writer is not None
    holding, begun = threading.Event(), threading.Event()
    index._writer.submit(Work(lambda _: [begun.set(), holding.wait(10)]))
    begun.wait(10)
    first, second = (index.bind_later([(name, A)]) for name in names)
    holding.set()
    first.result()
    assert isinstance(second.exception(), NoSpace)
    assert index.resolve(names[0]) == A
    assert index.held_bytes() == limit_bytes
    index.close()


# -- what stands beside names -------------------------------------------------------------------------------------------


def test_pins_outlive_the_index_the_oldest_first_and_a_pattern_has_one(path: Path) -> None:
    index = LmdbNames(path)
    assert index.pins.add(Pin("b/*", 2)) is False
    assert index.pins.add(Pin("a/*", 3, newest=1)) is False
    assert index.pins.add(Pin("a/*", 1, until_ms=9)) is True
    index.pins.set_state(PinState(0.5, 7, ("ab",)))
    index.broken.change({KEY.row: Broken(5, "cd")})
    index.close()
    index = LmdbNames(path, read_only=True)
    assert index.pins.all() == [Pin("a/*", 1, until_ms=9), Pin("b/*", 2)]
    assert index.pins.state() == PinState(0.5, 7, ("ab",))
    assert index.broken.all() == {KEY.row: Broken(5, "cd")}
    index.close()


def test_a_damaged_pin_is_said_and_the_others_hold(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = LmdbNames(path)
    index.pins.add(Pin("a/*", 1))
    index.pins.add(Pin("b/*", 2))
    index.close()
    row = hashlib.sha256(b"a/*").digest()
    overwrite(path, b"pins", row, values.seal(row, b"{}")[:-1] + b"]")
    index = LmdbNames(path)
    for _ in range(2):
        assert index.pins.all() == [Pin("b/*", 2)]
    assert caplog.text.count("counts as absent") == 1
    index.close()


def test_what_a_newer_millpond_notes_beside_a_pin_is_passed_over(path: Path) -> None:
    row = hashlib.sha256(b"a/*").digest()
    LmdbNames(path).close()
    overwrite(path, b"pins", row, values.seal(row, b'{"pattern":"a/*","made_at_ms":1,"colour":"blue"}'))
    index = LmdbNames(path)
    assert index.pins.all() == [Pin("a/*", 1)]
    index.close()


def test_names_of_before_there_were_pins_can_be_read_and_written(path: Path) -> None:
    with lmdb.open(str(path), max_dbs=8) as env:
        meta = env.open_db(b"meta")
        for table in (b"pins", b"changes", b"broken"):
            with env.begin(write=True) as transaction:
                transaction.drop(env.open_db(table, txn=transaction), delete=True)
                verification.sign(transaction, meta)
    index = LmdbNames(path, read_only=True)
    assert (index.resolve(KEY), index.pins.all(), index.broken.all(), index.changes.position()) == (A, [], {}, 0)
    index.close()
    index = LmdbNames(path)
    index.pins.add(Pin("a/*", 1))
    index.bind([(KEY, A)])
    assert index.changes.since(0) == (1, [KEY.row])
    index.close()


def test_changes_are_seen_by_every_process_in_their_order_and_no_more_than_are_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = LmdbNames(path)
    begin = index.changes.position()
    names = [Name("", Namespace.ASSET_BLOB, str(i)) for i in range(5)]
    for one in names:
        index.bind([(one, A)])
    index.unbind(names[0])
    index.unbind(names[0])  # nothing to remove: no change
    position, rows = index.changes.since(begin) or (0, [])
    assert (position, rows) == (begin + 6, [one.row for one in names])
    assert index.changes.since(position) == (position, [])
    assert index.changes.since(position + 1) is None
    monkeypatch.setattr(limits, "CHANGES_KEPT", 3)
    monkeypatch.setattr(changes, "_FORGOTTEN_AT_ONCE", 0)
    index.bind([(names[1], A)])
    assert index.changes.since(begin) is None
    assert index.changes.since(position) == (position + 1, [names[1].row])
    index.close()


def test_one_name_is_found_by_its_row(path: Path) -> None:
    index = LmdbNames(path)
    assert index.entry(KEY.row) == (KEY, A)
    assert index.entry(bytes(32)) is None
    assert index.unbind_many([(KEY, Binding(Digest.of(b"other"), 1)), (KEY, A)]) == [(KEY, A)]
    assert index.entry(KEY.row) is None
    index.close()
    overwrite(path, b"bindings", KEY.row, b"damaged")
    index = LmdbNames(path)
    assert index.entry(KEY.row) is None
    index.close()
