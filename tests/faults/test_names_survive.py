"""Names and what may happen to the machine: a kill at any moment, a disk without a byte left."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from millpond.core.digest import Digest
from millpond.core.errors import NoSpace, RefusedToStart
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames

KILLS = 20

BINDING_IN_A_LOOP = """
import sys, threading
from pathlib import Path
from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames

index, life = LmdbNames(Path(sys.argv[1])), sys.argv[2]

def bind(caller):
    for i in range(1_000_000):
        key = f"{life}/{caller}/{i}"
        index.bind([(Name("", Namespace.ASSET_BLOB, key), Binding(Digest.of(key.encode()), i))])
        sys.stdout.write(f"bound {key}\\n")
        sys.stdout.flush()
        number = index.take_numbers(1).start
        sys.stdout.write(f"took {number}\\n")
        sys.stdout.flush()

for caller in range(3):
    threading.Thread(target=bind, args=(caller,)).start()
"""


def name(key: str) -> Name:
    return Name("", Namespace.ASSET_BLOB, key)


def binding(key: str, *, references: int = 0) -> Binding:
    return Binding(Digest.of(key.encode()), 1, blobs=(Digest.of(b""),) * references)


def live_and_die(path: Path, life: int, lifetime_seconds: float) -> list[list[str]]:
    """The whole lines that a binding process wrote before SIGKILL."""
    process = subprocess.Popen(
        [sys.executable, "-c", BINDING_IN_A_LOOP, str(path), str(life)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    first = process.stdout.readline()
    time.sleep(lifetime_seconds)
    process.send_signal(signal.SIGKILL)
    said = first + process.communicate()[0]
    return [line.split() for line in said.splitlines(keepends=True) if line.endswith("\n")]


def test_a_kill_loses_no_acknowledged_name_and_no_number_comes_twice(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    taken: list[int] = []
    for life in range(KILLS):
        for verb, what in live_and_die(tmp_path / "names", life, random.uniform(0, 0.03)):
            acknowledged += [what] if verb == "bound" else []
            taken += [int(what)] if verb == "took" else []
        index = LmdbNames(tmp_path / "names")
        for key in acknowledged:
            assert index.resolve(name(key)).digest == Digest.of(key.encode())
        held = dict(index.names())
        assert len(held) - len(acknowledged) <= 3 * (life + 1)  # at most what each thread had under way
        taken += index.take_numbers(2)
        index.close()
    assert len(acknowledged) > KILLS
    assert len(set(taken)) == len(taken)


def test_a_kill_leaves_reader_slots_that_can_be_freed(tmp_path: Path) -> None:
    index = LmdbNames(tmp_path / "names")
    holding = (
        "import lmdb, sys, time; e = lmdb.open(sys.argv[1]); t = e.begin(); print('in', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "names")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    assert index.free_dead_readers() == 0
    process.kill()
    process.communicate()
    assert index.free_dead_readers() == 1
    index.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs takes root: run this as root, or leave it out with -k 'not disk'")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "millpond-test", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def bind_until_full(index: LmdbNames, prefix: str, *, references: int = 0) -> dict[Name, Binding]:
    bound: dict[Name, Binding] = {}
    for i in range(100_000):
        key = f"{prefix}/{i}"
        try:
            index.bind([(name(key), binding(key, references=references))])
        except NoSpace:
            return bound
        bound[name(key)] = binding(key, references=references)
    raise AssertionError("the disk is larger than it should be")


def fill(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as others:
        while others.write(b"x" * 4096):
            pass
    assert os.statvfs(file).f_bavail == 0


@pytest.mark.parametrize("references", [0, 300], ids=["small", "large"])
def test_a_disk_that_names_fill_is_told_and_loses_none(small_disk: Path, references: int) -> None:
    index = LmdbNames(small_disk / "names")
    bound = bind_until_full(index, "first", references=references)
    assert len(bound) > 10
    for _ in range(3):
        with pytest.raises(NoSpace):
            index.bind([(name(f"huge {i}"), binding("x", references=300)) for i in range(5)])
    assert dict(index.names()) == bound
    index.close()
    index = LmdbNames(small_disk / "names")  # even a restart needs no room
    assert dict(index.names()) == bound
    subprocess.run(["mount", "-o", "remount,size=2M", str(small_disk)], check=True)
    bound |= bind_until_full(index, "second", references=references)
    assert dict(index.names()) == bound
    index.close()


def test_a_disk_that_others_fill_is_told_and_works_again(small_disk: Path) -> None:
    index = LmdbNames(small_disk / "names")
    index.bind([(name("early"), binding("early"))])
    taken = index.take_numbers(64)
    fill(small_disk / "others")
    bound = bind_until_full(index, "late") | {name("early"): binding("early")}
    with pytest.raises(NoSpace):
        index.bind([(name(f"many {i}"), binding("x")) for i in range(500)])
    for key, held in bound.items():
        assert index.resolve(key) == held
    (small_disk / "others").unlink()
    index.bind([(name("later"), binding("later"))])
    assert index.resolve(name("later")) == binding("later")
    assert index.unbind(name("early")) is True
    assert index.take_numbers(1).start >= taken.stop
    del bound[name("early")]
    assert dict(index.names()) == bound | {name("later"): binding("later")}
    index.close()


def test_names_cannot_begin_on_a_full_disk_and_say_so(small_disk: Path) -> None:
    fill(small_disk / "others")
    with pytest.raises(RefusedToStart, match="No space"):
        LmdbNames(small_disk / "names")
    (small_disk / "others").unlink()
    index = LmdbNames(small_disk / "names")
    index.bind([(name("key"), binding("key"))])
    index.close()
