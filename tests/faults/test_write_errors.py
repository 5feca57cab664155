"""A disk that refuses to write: a clear answer at once, reads that go on, nothing acknowledged that is not there.

The errors come from outside: ``strace`` makes system calls of the running workers fail.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.rpc_client import Client, message_of
from system.build_site import BuildSite
from system.parts import require
from system.server_process import Millpond
from unit.store.repositories import noise

from millpond.core.digest import Digest

WRITING = "pwrite64,pwritev,pwritev2,writev,ftruncate"
SYNCING = "fdatasync,fsync"
REFUSALS = {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
SECONDS = 20
"""A refusal comes sooner; a server that waits for room on a disk that refuses everything would take 30."""
HELD = [noise(3000 + i, "held") for i in range(10)]
URI = "urn:held"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[BuildSite]:
    site = BuildSite(tmp_path)
    yield site
    site.close()


class Scene:
    """A server that holds a name and its blobs, and a client."""

    def __init__(self, site: BuildSite) -> None:
        require("tracing")
        self.repo = site.root / "repo"
        self.server = site.server("--enable-push", "--quota", "200M", repo=self.repo)
        self.client = Client(f"127.0.0.1:{self.server.port}")
        first, *others = self.client.put(*HELD)
        self.push(URI, first, references_blobs=map(message_of, others))
        self.fetch(URI)
        self.client.put(b"with this, the note of where the name's blobs lie is written, too")

    def push(self, uri: str, digest: Digest, **fields: Any) -> None:
        self.client.call("PushBlob", uris=[uri], blob_digest=message_of(digest), **fields)

    def fetch(self, uri: str) -> str:
        hash_hex: str = self.client.call("FetchBlob", uris=[uri]).blob_digest.hash
        return hash_hex

    def reads_go_on(self) -> None:
        digests = [Digest.of(data) for data in HELD]
        assert self.client.get(digests) == HELD
        assert self.client.read(self.client.read_name(digests[0])) == HELD[0]
        assert self.fetch(URI) == digests[0].hash


def status_of(call: Any, *arguments: Any, **fields: Any) -> str:
    """The name of the status with which a call ends, within a time in which no client gives up."""
    begun, status, details = time.monotonic(), "OK", ""
    try:
        call(*arguments, **fields)
    except grpc.RpcError as failure:
        status, details = failure.code().name, failure.details()
    assert time.monotonic() - begun < SECONDS
    assert "incident" not in details
    return status


@contextmanager
def failing(server: Millpond, calls: str, error: str, *, first: int = 1) -> Iterator[None]:
    """These system calls of all workers fail, of each thread the ``first`` one and all after it."""
    pids = workers(server)
    inject = f"inject={calls}:error={error}:when={first}+"
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
    tracer = subprocess.Popen([*command, *(word for pid in pids for word in ("-p", str(pid)))])
    try:
        assert until(lambda: all(is_traced(pid) for pid in pids))
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        assert until(lambda: not any(is_traced(pid) for pid in pids))


def workers(server: Millpond) -> list[int]:
    supervisor = server._process.pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [pid for pid in map(int, children) if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_traced(pid: int) -> bool:
    """Every thread of it, if it lives."""
    try:
        states = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # it, or a thread of it, ended just now
        return Path(f"/proc/{pid}").exists() and is_traced(pid)
    return all("TracerPid:\t0\n" not in state for state in states)


def until(question: Any) -> bool:
    deadline = time.monotonic() + SECONDS
    while not (answer := question()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(answer)


def is_sound(repo: Path) -> None:
    """After the server's end: every byte."""
    checked = subprocess.run(
        [sys.executable, "-m", "millpond", "check", "--deep", str(repo)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("error", ["EIO", "EROFS", "EDQUOT", "ENOSPC"])
def test_a_write_error_is_told_at_once_and_reads_go_on(site: BuildSite, error: str) -> None:
    scene = Scene(site)
    client = scene.client
    small, large = noise(5000, "small"), noise(3_000_000, "large")
    with failing(scene.server, WRITING, error):
        assert status_of(client.update, [(Digest.of(small), small)]) in REFUSALS
        assert status_of(client.upload, large) in REFUSALS
        assert status_of(scene.push, "urn:new", Digest.of(HELD[1])) in REFUSALS
        asked = status_of(client.find_missing, [Digest.of(data) for data in HELD])
        assert asked == "OK" if error in ("EIO", "EROFS") else asked in ("OK", "UNAVAILABLE")
        scene.reads_go_on()
    scene.reads_go_on()
    assert status_of(scene.fetch, "urn:new") == "NOT_FOUND"
    assert client.update([(Digest.of(small), small)]) == [0]
    assert client.upload(large) == len(large)
    scene.push("urn:new", Digest.of(small), references_blobs=[message_of(Digest.of(large))])
    assert scene.fetch("urn:new") == Digest.of(small).hash
    assert client.get([Digest.of(small)]) == [small]
    client.channel.close()
    scene.server.stop()
    assert "Traceback" not in scene.server.stderr
    is_sound(scene.repo)


def test_a_name_is_refused_while_its_blobs_cannot_be_made_durable(site: BuildSite) -> None:
    scene = Scene(site)
    client = scene.client
    data = noise(5000, "never synced")
    digest = Digest.of(data)
    with failing(scene.server, SYNCING, "EIO"):
        assert client.update([(digest, data)]) == [0]  # a blob is promised nothing about power losses
        assert status_of(scene.push, "urn:new", digest) in {*REFUSALS, "FAILED_PRECONDITION"}
        assert status_of(scene.push, "urn:new", digest) in {*REFUSALS, "FAILED_PRECONDITION"}
        assert status_of(scene.fetch, "urn:new") == "NOT_FOUND"
    # What the disk has refused to keep once is never called durable: it is brought again.
    client.update([(digest, data)])
    scene.push("urn:new", digest)
    assert scene.fetch("urn:new") == digest.hash
    assert client.get([digest]) == [data]
    client.channel.close()
    scene.server.kill()
    again = site.server(repo=scene.repo)
    with Client(f"127.0.0.1:{again.port}") as late:
        assert late.get([digest]) == [data]
    assert "Traceback" not in scene.server.stderr


def test_a_database_whose_first_page_could_not_be_written_costs_its_process_and_nothing_else(site: BuildSite) -> None:
    """LMDB gives up for good then, for reading too: only another process can open it again."""
    scene = Scene(site)
    before = set(workers(scene.server))
    # As a copy-on-write file system without room does it. How many other pages are written one by one before the first
    # one depends on which are free; when one of those fails, nothing has happened.
    for first in range(1, 20):
        with failing(scene.server, "pwrite64", "EIO", first=first):
            answer = status_of(scene.push, f"urn:new {first}", Digest.of(HELD[1]))
            lost = status_of(scene.fetch, URI) != "OK"  # by now it is noticed
        if lost:
            break
    assert lost
    assert answer in REFUSALS
    scene.client.channel.close()
    assert until(lambda: len(set(workers(scene.server)) - before) == 1)
    assert until(lambda: "serves again" in scene.server.stderr)
    scene.client = Client(f"127.0.0.1:{scene.server.port}")
    scene.reads_go_on()
    scene.push(f"urn:new {first}", Digest.of(HELD[1]))
    scene.client.channel.close()
    scene.server.stop()
    assert "Traceback" not in scene.server.stderr
    is_sound(scene.repo)


def test_damaged_pages_of_the_index_end_in_an_index_that_is_made_anew(site: BuildSite) -> None:
    scene = Scene(site)
    data = scene.repo / "index" / "data.mdb"
    size = data.stat().st_size
    with data.open("r+b") as pages:  # all but the two first ones
        pages.seek(8192)
        pages.write(b"\xa5" * (size - 8192))

    def serves_everything() -> bool:
        try:
            with Client(f"127.0.0.1:{scene.server.port}") as client:
                return client.get(list(map(Digest.of, HELD))) == HELD
        except (grpc.RpcError, AssertionError):
            return False

    assert until(serves_everything)
    assert "the index was made anew" in scene.server.stderr
    scene.client.channel.close()
    scene.client = Client(f"127.0.0.1:{scene.server.port}")
    scene.reads_go_on()
    scene.client.channel.close()
    scene.server.stop()
    is_sound(scene.repo)
