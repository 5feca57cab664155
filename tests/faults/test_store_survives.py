"""The store and what may happen to the machine: kills at any moment, a disk without a byte left, a power loss."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from unit.store.repositories import MIB, Repository, noise, read, read_chunks

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import MillpondError, NoSpace, RefusedToStart
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.store.repository.opening import open_repository

KILLS = 20
TESTS = str(Path(__file__).parents[1])

PUSHING_IN_A_LOOP = """
import os, sys, threading
from pathlib import Path
from millpond.core.digest import Digest
from faults.test_store_survives import cache_of, content_of, push
from unit.store.repositories import Repository

repository, life = Repository(Path(sys.argv[1])), sys.argv[2]
repository.open()
cache = cache_of(repository)

def push_for_ever(caller):
    for i in range(1_000_000):
        key = f"{life}/{caller}/{i}"
        push(cache, key)
        os.write(1, f"{key}\\n".encode())

os.write(1, b"begun\\n")
callers = [threading.Thread(target=push_for_ever, args=(caller,)) for caller in range(2)]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
"""


def cache_of(repository: Repository) -> Cache:
    return Cache(repository.store, repository.store, repository.names, wall_clock)


def content_of(key: str) -> list[bytes]:
    """What a name of this key refers to: a few small blobs, one that everybody has, one in a segment of its own."""
    chance = random.Random(key.partition("/")[2])  # every life pushes the same blobs again
    return [
        *(noise(chance.randrange(1, 9000), f"{chance.random()}") for _ in range(4)),
        noise(50_000, "shared"),
        noise(300_000, f"{chance.randrange(4)}"),
    ]


def push(cache: Cache, key: str) -> None:
    content = content_of(key)
    digests = [Digest.of(data) for data in content]
    for outcome in cache.blobs.put_many(list(zip(digests[:-1], content[:-1], strict=True))):
        assert outcome is None
    stream = cache.blobs.begin_upload(digests[-1], key, offset=cache.blobs.upload_offset(key))
    stream.write(content[-1][stream.committed_bytes :])
    stream.finish()
    request = assets.AssetPush([key], digests[0], blobs=digests[1:])
    assets.push(cache, "", Namespace.ASSET_BLOB, request, pushed_by="")


def fetch(cache: Cache, key: str) -> assets.Asset:
    return assets.fetch(cache, "", Namespace.ASSET_BLOB, [key], (), oldest_ms=None, wait=True)


def start(path: Path, life: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PUSHING_IN_A_LOOP, str(path), life],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": TESTS},
    )


def end(process: "subprocess.Popen[str]") -> list[str]:
    """Kill it; the keys that it acknowledged."""
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[0]
    return [line.strip() for line in said.splitlines(keepends=True) if line.endswith("\n") and line != "begun\n"]


def await_start(process: "subprocess.Popen[str]") -> None:
    assert process.stdout
    assert process.stdout.readline() == "begun\n"


def check_whole(repository: Repository, keys: Sequence[str]) -> None:
    """All of it is answered and served, right to the byte, read in both ways."""
    cache = cache_of(repository)
    for key in keys:
        assert fetch(cache, key).binding.digest == Digest.of(content_of(key)[0])
        for data in content_of(key):
            assert read(repository.store, Digest.of(data)) == data
            assert read_chunks(repository.store, Digest.of(data)) == data


def check_nothing_unverified(repository: Repository) -> None:
    """Whatever the index lists is what it says it is."""
    assert repository.opened
    index = repository.opened.index
    with index.reading() as txn:
        listed = [Digest(key, int.from_bytes(value[8:16], "little")) for key, value in txn.cursor(index.blobs)]
    for digest in listed:
        data = read(repository.store, digest)
        assert data is not None
        assert digest.matches(data)


def test_a_kill_loses_no_acknowledged_name_and_serves_nothing_unverified(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    acknowledged: list[str] = []
    for life in range(KILLS):
        process = start(repository.path, f"{life}")
        await_start(process)
        time.sleep(random.uniform(0, 0.15))
        fresh = end(process)
        acknowledged += fresh
        repository.open()
        check_whole(repository, fresh + random.sample(acknowledged, min(5, len(acknowledged))))
        repository.close()
    repository.open()
    check_whole(repository, acknowledged)
    check_nothing_unverified(repository)
    push(cache_of(repository), "after/all/that")
    repository.close()
    assert len(acknowledged) > KILLS


def test_two_processes_write_the_same_blobs_and_one_is_killed(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    repository.open()
    acknowledged: list[str] = []
    for life in range(4):
        processes = [start(repository.path, f"{life}.{i}") for i in range(2)]
        for process in processes:
            await_start(process)
        time.sleep(0.3)
        acknowledged += end(processes[0])
        push(cache_of(repository), f"{life}/by/survivor")
        time.sleep(0.2)
        acknowledged += [*end(processes[1]), f"{life}/by/survivor"]
    check_whole(repository, acknowledged)
    check_nothing_unverified(repository)
    repository.open()
    check_whole(repository, acknowledged)
    repository.close()
    assert len(acknowledged) > 10


@pytest.mark.parametrize("torn", [False, True])
def test_a_copy_taken_while_running_is_whole(tmp_path: Path, *, torn: bool) -> None:
    """Names are copied first: a snapshot has them no newer than the rest. Torn: what was never synced is lost."""
    repository = Repository(tmp_path / "repo")
    process = start(repository.path, "life")
    await_start(process)
    time.sleep(0.7)
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("names", "index", "segments", "uploads", "touch", "backup", "refusals", "millpond.json"):
        # What goes away while it is copied (an upload that ends, say) is no part of the copy.
        copying = subprocess.run(["cp", "-r", str(repository.path / part), str(copy / part)], capture_output=True)
        assert all(b"No such file" in line for line in copying.stderr.splitlines()), copying.stderr
    end(process)
    other = Repository(copy)
    if torn:
        repository.open()
        synced = {number: row.synced_to for number, row in repository.rows().items()}
        repository.close()
        for number, end_of_synced in synced.items():
            with suppress(FileNotFoundError):
                size = other.segment(number).stat().st_size
                if end_of_synced < size:
                    with other.segment(number).open("r+b") as segment:
                        segment.seek(max(64, end_of_synced))
                        segment.write(bytes(size - max(64, end_of_synced)))
    other.open()
    held = [name.key for name, _ in other.names.names()]
    assert held
    check_whole(other, held)
    check_nothing_unverified(other)
    push(cache_of(other), "after/all/that")
    other.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs takes root: run this as root, or leave it out with -k 'not disk'")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "millpond-test", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(file: Path) -> None:
    for size in (MIB, 4096):
        with suppress(OSError), file.open("ab", buffering=0) as others:
            while others.write(b"x" * size):
                pass
    assert os.statvfs(file).f_bavail == 0


def push_until_full(cache: Cache, prefix: str) -> tuple[list[str], list[type]]:
    """The keys that were acknowledged, and what was said instead of the rest."""
    done: list[str] = []
    refusals: list[type] = []
    for i in range(400):
        try:
            push_whole(cache, f"{prefix}/{i}")
            done.append(f"{prefix}/{i}")
        except MillpondError as why:
            refusals.append(type(why))
            if len(refusals) >= 20:
                return done, refusals
    raise AssertionError("the disk is larger than it should be")


def push_whole(cache: Cache, key: str) -> None:
    content = [noise(40_000, key), noise(300, key), noise(350_000, key)]
    digests = [Digest.of(data) for data in content]
    for why in cache.blobs.put_many(list(zip(digests, content, strict=True))):
        if why is not None:
            raise why
    stream = cache.blobs.begin_upload(Digest.of(noise(90_000, key)), key, offset=0)
    try:
        stream.write(noise(90_000, key))
    except MillpondError:
        stream.suspend()
        raise
    stream.finish()
    request = assets.AssetPush([key], digests[0], blobs=[*digests[1:], Digest.of(noise(90_000, key))])
    assets.push(cache, "", Namespace.ASSET_BLOB, request, pushed_by="")


def is_whole(cache: Cache, key: str) -> bool:
    fetch(cache, key)
    return all(
        read(cache.blobs, Digest.of(noise(size, key))) == noise(size, key) for size in (40_000, 300, 350_000, 90_000)
    )


def test_a_disk_that_others_fill_is_told_reads_go_on_and_it_recovers(small_disk: Path) -> None:
    repository = Repository(small_disk / "repo", quota_bytes=1 << 30)  # the disk is the limit
    repository.open()
    cache = cache_of(repository)
    push_whole(cache, "early/0")
    fill(small_disk / "others")
    done, refusals = push_until_full(cache, "late")
    assert NoSpace in refusals
    assert all(is_whole(cache, key) for key in ["early/0", *done] for _ in range(3))
    (small_disk / "others").unlink()
    more, refusals = push_until_full(cache, "later")
    assert len(more) > 3
    assert all(is_whole(cache, key) for key in ["early/0", *done, *more])
    repository.close()
    repository.open()
    assert all(is_whole(cache_of(repository), key) for key in ["early/0", *done, *more])
    subprocess.run(["mount", "-o", "remount,size=24M", str(small_disk)], check=True)
    again, _ = push_until_full(cache_of(repository), "last")
    assert len(again) > 3
    assert all(is_whole(cache_of(repository), key) for key in ["early/0", *done, *more, *again])
    repository.close()


def test_a_disk_that_is_full_when_the_server_starts_serves_what_it_has(small_disk: Path) -> None:
    repository = Repository(small_disk / "repo", quota_bytes=1 << 30)
    repository.open()
    done, _ = push_until_full(cache_of(repository), "early")
    repository.close()
    fill(small_disk / "others")
    repository.open()
    cache = cache_of(repository)
    assert all(is_whole(cache, key) for key in done)
    late, refusals = push_until_full(cache, "late")
    assert late == []
    assert NoSpace in refusals
    repository.close()


def test_a_disk_that_fills_during_a_push_never_gets_a_name_without_its_blobs(small_disk: Path) -> None:
    repository = Repository(small_disk / "repo", quota_bytes=1 << 30)
    repository.open()
    cache: Any = cache_of(repository)
    push_until_full(cache, "all")
    for name, _ in repository.names.names():
        assert is_whole(cache, name.key)
    repository.close()


def test_a_disk_without_room_for_a_new_index_is_refused_in_a_sentence(small_disk: Path) -> None:
    repository = Repository(small_disk / "repo", quota_bytes=1 << 30)
    repository.open()
    push_whole(cache_of(repository), "early/0")
    repository.close()
    os.truncate(small_disk / "repo" / "index" / "data.mdb", 4096)
    for _ in range(2):
        fill(small_disk / "others")
        with pytest.raises(RefusedToStart, match="No space left"):
            open_repository(repository.path)
    (small_disk / "others").unlink()
    repository.open()
    assert is_whole(cache_of(repository), "early/0")
    repository.close()
