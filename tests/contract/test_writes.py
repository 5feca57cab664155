"""``google.bytestream.ByteStream``: Write and QueryWriteStatus, and how an interrupted upload goes on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, messages, refused

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core import limits
from millpond.core.digest import Digest

SMALL_BYTES = 10_000
LARGE_BYTES = 5 * limits.MIB + 17
SIZES = pytest.mark.parametrize("size_bytes", [SMALL_BYTES, LARGE_BYTES], ids=["in memory", "spooled"])


def fresh(size_bytes: int) -> tuple[bytes, Digest]:
    data = os.urandom(size_bytes)
    return data, Digest.of(data)


class OpenStream:
    """A Write that goes on for as long as the test likes."""

    def __init__(self, client: Client) -> None:
        self._requests: queue.SimpleQueue[bytestream_pb2.WriteRequest | None] = queue.SimpleQueue()
        self.call: Any = client.rpc("Write").future(self._sent(), timeout=60)

    def _sent(self) -> Iterator[bytestream_pb2.WriteRequest]:
        while (request := self._requests.get()) is not None:
            yield request

    def send(self, **fields: Any) -> OpenStream:
        self._requests.put(bytestream_pb2.WriteRequest(**fields))
        return self

    def send_all(self, requests: Iterator[bytestream_pb2.WriteRequest]) -> OpenStream:
        for request in requests:
            self._requests.put(request)
        return self

    def end(self) -> int:
        self._requests.put(None)
        return int(self.call.result().committed_size)

    def break_off(self) -> None:
        """As a broken connection looks to the server."""
        self.call.cancel()
        self._requests.put(None)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def interrupt(client: WatchingClient, name: str, data: bytes, at: int) -> None:
    """Bring ``data[:at]`` and lose the connection; returns when the server has noticed."""
    stream = OpenStream(client).send_all(messages(name, data[:at], finish=False, message_bytes=limits.MIB))
    eventually(lambda: client.spooled(name) == [at], "nothing was spooled")
    stream.break_off()
    eventually(lambda: client.status(name) == (at, False), "the upload was not suspended")


class WatchingClient(Client):
    """With a look into the server's spool."""

    def __init__(self, server: LoopbackServer) -> None:
        super().__init__(server.target)
        self._uploads = server.repo / "uploads"

    def spooled(self, name: str) -> list[int]:
        """How many bytes of data each file of this upload has, behind 128 bytes of headers."""
        files = self._uploads.glob(hashlib.sha256(name.encode()).hexdigest() + "*")
        return sorted(max(0, file.stat().st_size - 128) for file in files)


@pytest.fixture
def client(server: LoopbackServer) -> Iterator[WatchingClient]:
    with WatchingClient(server) as connected:
        yield connected


# -- whole uploads ----------------------------------------------------------------------------------------------------


@pytest.mark.row("Write")
@SIZES
@pytest.mark.parametrize("instance", ["", INSTANCE], ids=repr)
def test_an_upload_is_committed_whole_and_read_back(server: LoopbackServer, size_bytes: int, instance: str) -> None:
    data, digest = fresh(size_bytes)
    with Client(server.target, instance=instance) as client:
        assert client.upload(data) == size_bytes
        assert client.read(client.read_name(digest)) == data


@pytest.mark.row("Write")
@SIZES
@pytest.mark.parametrize("message_bytes", [1_000, 65_536, limits.MIB, 3_000_000])
def test_messages_may_be_of_any_size_and_empty(client: WatchingClient, size_bytes: int, message_bytes: int) -> None:
    data, digest = fresh(min(size_bytes, 500 * message_bytes))
    name = client.write_name(digest)
    requests = list(messages(name, data, message_bytes=message_bytes))
    idle = bytestream_pb2.WriteRequest(write_offset=len(requests[0].data))
    if len(requests) > 1:
        requests.insert(1, idle)
    assert client.write([bytestream_pb2.WriteRequest(resource_name=name), *requests]) == len(data)
    assert client.read(client.read_name(digest)) == data


@pytest.mark.row("Write")
@SIZES
def test_the_finish_may_come_in_a_message_of_its_own(client: WatchingClient, size_bytes: int) -> None:
    data, digest = fresh(size_bytes)
    name = client.write_name(digest)
    finish = bytestream_pb2.WriteRequest(write_offset=size_bytes, finish_write=True)
    assert client.write([*messages(name, data, finish=False), finish]) == size_bytes
    assert client.find_missing([digest]) == []


@pytest.mark.row("Write")
def test_a_blob_that_exists_ends_a_write_at_once_without_its_data(client: WatchingClient) -> None:
    data, digest = fresh(LARGE_BYTES)
    client.upload(data)
    stream = OpenStream(client).send(resource_name=client.write_name(digest))
    assert stream.call.result(timeout=10).committed_size == LARGE_BYTES
    stream.end()
    # Wherever the client believes to be, there is nothing left to do.
    for offset in (0, 5, LARGE_BYTES):
        stream = OpenStream(client).send(resource_name=client.write_name(digest), write_offset=offset, data=b"?")
        assert stream.call.result(timeout=10).committed_size == LARGE_BYTES
        stream.end()


@pytest.mark.row("Write")
def test_a_blob_that_somebody_else_brings_ends_a_running_write(server: LoopbackServer, client: WatchingClient) -> None:
    data, digest = fresh(48 * limits.MIB)
    name = client.write_name(digest)
    stream = OpenStream(client).send_all(messages(name, data[: 4 * limits.MIB], finish=False))
    eventually(lambda: client.spooled(name) == [4 * limits.MIB], "nothing was spooled")
    with Client(server.target) as other:
        assert other.upload(data) == len(data)
    at = 4 * limits.MIB
    while not stream.call.done() and at < len(data):
        stream.send(write_offset=at, data=data[at : at + 2 * limits.MIB])
        at += 2 * limits.MIB
        time.sleep(0.01)
    assert stream.call.result(timeout=10).committed_size == len(data)
    stream.end()
    assert client.spooled(name) == []


# -- lies -------------------------------------------------------------------------------------------------------------

LIES: dict[str, Callable[[bytes], bytes]] = {
    "too little": lambda data: data[:-1],
    "nothing": lambda _: b"",
    "too much": lambda data: data + b"!",
    "another blob": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "twice": lambda data: data + data,
}


@pytest.mark.row("Write")
@SIZES
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_is_not_the_blob_is_refused_and_leaves_nothing_behind(
    client: WatchingClient, size_bytes: int, lie: Callable[[bytes], bytes]
) -> None:
    data, digest = fresh(size_bytes)
    name = client.write_name(digest)
    with refused("INVALID_ARGUMENT", str(digest)):
        client.upload(lie(data), name)
    assert client.status(name) == (0, False)
    assert client.find_missing([digest]) == [digest]
    assert client.spooled(name) == []
    assert client.upload(data, name) == size_bytes  # the name is not poisoned


@pytest.mark.row("Write")
@SIZES
@pytest.mark.parametrize("gap", [1, -1, 10**9, -(2**63)])
def test_an_offset_that_does_not_follow_is_refused(client: WatchingClient, size_bytes: int, gap: int) -> None:
    data, digest = fresh(size_bytes)
    half = size_bytes // 2
    first = bytestream_pb2.WriteRequest(resource_name=client.write_name(digest), data=data[:half])
    with refused("INVALID_ARGUMENT", "write_offset"):
        client.write([first, bytestream_pb2.WriteRequest(write_offset=half + gap, data=data[half:], finish_write=True)])
    assert client.find_missing([digest]) == [digest]


@pytest.mark.row("Write")
@SIZES
@pytest.mark.parametrize("offset", [1, -1, 2**62, -(2**63)])
def test_a_fresh_upload_begins_at_0(client: WatchingClient, size_bytes: int, offset: int) -> None:
    data, digest = fresh(size_bytes)
    message = bytestream_pb2.WriteRequest(
        resource_name=client.write_name(digest), write_offset=offset, data=data[: limits.MIB], finish_write=True
    )
    with refused("INVALID_ARGUMENT"):
        client.write([message])
    assert client.status(message.resource_name) == (0, False)
    assert client.find_missing([digest]) == [digest]


@pytest.mark.row("Write")
@SIZES
def test_later_messages_repeat_the_name_or_leave_it_out(client: WatchingClient, size_bytes: int) -> None:
    data, digest = fresh(size_bytes)
    name, half = client.write_name(digest), size_bytes // 2
    first = bytestream_pb2.WriteRequest(resource_name=name, data=data[:half])
    for other in (client.write_name(digest), client.write_name(Digest.of(b"another")), "nonsense"):
        second = bytestream_pb2.WriteRequest(
            resource_name=other, write_offset=half, data=data[half:], finish_write=True
        )
        with refused("INVALID_ARGUMENT", "resource_name"):
            client.write([first, second])
    second = bytestream_pb2.WriteRequest(resource_name=name, write_offset=half, data=data[half:], finish_write=True)
    assert client.write([first, second]) == size_bytes


@pytest.mark.row("Write")
@SIZES
def test_data_after_the_finish_changes_nothing(client: WatchingClient, size_bytes: int) -> None:
    data, digest = fresh(size_bytes)
    after = bytestream_pb2.WriteRequest(write_offset=size_bytes, data=b"more", finish_write=True)
    assert client.write([*messages(client.write_name(digest), data), after]) == size_bytes
    assert client.read(client.read_name(digest)) == data


@pytest.mark.row("Write")
@SIZES
def test_a_stream_that_ends_without_finish_is_refused_and_can_be_resumed(
    client: WatchingClient, size_bytes: int
) -> None:
    data, digest = fresh(size_bytes)
    name = client.write_name(digest)
    with refused("INVALID_ARGUMENT", "finish_write"):
        client.write(messages(name, data, finish=False))
    assert client.find_missing([digest]) == [digest]
    committed, complete = client.status(name)
    assert (committed in (0, size_bytes), complete) == (True, False)
    assert client.upload(data, name, offset=committed) == size_bytes


@pytest.mark.row("Write")
def test_a_stream_without_any_message_and_a_message_without_a_name_are_refused(client: WatchingClient) -> None:
    with refused("INVALID_ARGUMENT"):
        client.write([])
    with refused("INVALID_ARGUMENT"):
        client.write([bytestream_pb2.WriteRequest(data=b"whose?", finish_write=True)])
    with refused("INVALID_ARGUMENT", "WriteRequest"):
        client.write([b"\xff\xff"])  # type: ignore[list-item]


# -- interrupted uploads ----------------------------------------------------------------------------------------------


@pytest.mark.row("QueryWriteStatus")
def test_a_broken_upload_goes_on_where_it_ended(client: WatchingClient, server: LoopbackServer) -> None:
    data, digest = fresh(LARGE_BYTES)
    name = client.write_name(digest)
    interrupt(client, name, data, at=3 * limits.MIB)
    with Client(server.target) as again:  # a new connection
        assert again.upload(data, name, offset=3 * limits.MIB) == LARGE_BYTES
        assert again.status(name) == (LARGE_BYTES, True)
        assert again.read(again.read_name(digest)) == data
    assert client.spooled(name) == []


@pytest.mark.row("QueryWriteStatus")
def test_a_broken_upload_may_break_again_and_begin_anew(client: WatchingClient) -> None:
    data, digest = fresh(LARGE_BYTES)
    name = client.write_name(digest)
    interrupt(client, name, data, at=2 * limits.MIB)
    stream = OpenStream(client)
    stream.send(resource_name=name, write_offset=2 * limits.MIB, data=data[2 * limits.MIB : 2 * limits.MIB + 100])
    eventually(lambda: client.spooled(name) == [2 * limits.MIB + 100], "it did not go on")
    stream.break_off()
    eventually(lambda: client.status(name) == (2 * limits.MIB + 100, False), "it was not suspended")
    assert client.upload(data, name) == LARGE_BYTES
    assert client.read(client.read_name(digest)) == data


@pytest.mark.row("QueryWriteStatus")
def test_streams_that_break_at_any_moment_leave_no_open_file_and_can_be_resumed(client: WatchingClient) -> None:
    data, digest = fresh(LARGE_BYTES)
    names = [client.write_name(digest) for _ in range(40)]
    for turn, name in enumerate(names):
        stream = OpenStream(client).send_all(messages(name, data, finish=False, message_bytes=limits.MIB // 2))
        time.sleep(turn * 0.0005)
        stream.break_off()
    eventually(lambda: open_spool_files(client) == 0, "files were left open")
    for name in names:
        committed, complete = client.status(name)
        assert ([committed] if committed else [], complete) == (client.spooled(name), False)
    assert client.upload(data, names[-1], offset=client.status(names[-1])[0]) == LARGE_BYTES


def open_spool_files(client: WatchingClient) -> int:
    directory = f"/proc/{os.getpid()}/fd"  # the server is this process
    links = []
    for descriptor in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"{directory}/{descriptor}"))
    return sum("/uploads/" in link for link in links)


@pytest.mark.row("QueryWriteStatus")
def test_an_offset_other_than_where_it_ended_is_refused_and_costs_nothing(client: WatchingClient) -> None:
    data, digest = fresh(LARGE_BYTES)
    name, ended = client.write_name(digest), 2 * limits.MIB
    interrupt(client, name, data, at=ended)
    for offset in (ended - 1, ended + 1, 1, LARGE_BYTES):
        with refused("INVALID_ARGUMENT", "begin again at 0"):
            client.upload(data, name, offset=offset)
        assert client.status(name) == (ended, False)
    assert client.upload(data, name, offset=ended) == LARGE_BYTES


@pytest.mark.row("QueryWriteStatus")
def test_what_went_on_with_wrong_bytes_is_refused_and_forgotten(client: WatchingClient) -> None:
    data, digest = fresh(LARGE_BYTES)
    name = client.write_name(digest)
    interrupt(client, name, bytes(limits.MIB) + data, at=2 * limits.MIB)
    with refused("INVALID_ARGUMENT", str(digest)):
        client.upload(data, name, offset=2 * limits.MIB)
    assert client.status(name) == (0, False)
    assert client.upload(data, name) == LARGE_BYTES


@pytest.mark.row("QueryWriteStatus")
def test_while_the_old_stream_is_half_open_the_upload_begins_anew(
    client: WatchingClient, server: LoopbackServer
) -> None:
    data, digest = fresh(LARGE_BYTES)
    name = client.write_name(digest)
    old = OpenStream(client).send_all(messages(name, data[: 2 * limits.MIB], finish=False))
    eventually(lambda: client.spooled(name) == [2 * limits.MIB], "nothing was spooled")
    with Client(server.target) as again:
        # The old stream holds what came, so nobody can go on with it: 0 is the truth, and 0 works.
        assert again.status(name) == (0, False)
        with refused("INVALID_ARGUMENT", "begin again at 0"):
            again.upload(data, name, offset=2 * limits.MIB)
        assert again.upload(data, name) == LARGE_BYTES
        assert again.status(name) == (LARGE_BYTES, True)
        assert again.read(again.read_name(digest)) == data
    # Should the old one wake up, it finds that all is done.
    assert old.send_all(messages(name, data, offset=2 * limits.MIB)).end() == LARGE_BYTES
    assert client.spooled(name) == []


@pytest.mark.row("QueryWriteStatus")
def test_one_upload_id_serves_for_many_blobs(client: WatchingClient) -> None:
    upload = str(uuid4())
    broken, broken_digest = fresh(LARGE_BYTES)
    interrupt(client, client.write_name(broken_digest, upload), broken, at=limits.MIB)
    for size_bytes in (SMALL_BYTES, LARGE_BYTES, 2 * LARGE_BYTES):
        data, digest = fresh(size_bytes)
        assert client.status(client.write_name(digest, upload)) == (0, False)
        assert client.upload(data, client.write_name(digest, upload)) == size_bytes
        assert client.read(client.read_name(digest)) == data
    name = client.write_name(broken_digest, upload)
    assert client.status(name) == (limits.MIB, False)
    assert client.upload(broken, name, offset=limits.MIB) == LARGE_BYTES


@pytest.mark.row("QueryWriteStatus")
def test_two_streams_of_one_name_at_once_both_succeed(client: WatchingClient) -> None:
    data, digest = fresh(LARGE_BYTES)
    name = client.write_name(digest)
    streams = [OpenStream(client).send_all(messages(name, data[: 2 * limits.MIB], finish=False)) for _ in range(2)]
    for stream in streams:
        stream.send_all(messages(name, data, offset=2 * limits.MIB))
    assert [stream.end() for stream in streams] == [LARGE_BYTES, LARGE_BYTES]
    assert client.read(client.read_name(digest)) == data


@pytest.mark.row("QueryWriteStatus")
def test_status_of_finished_and_of_unknown_uploads(client: WatchingClient) -> None:
    for size_bytes in (SMALL_BYTES, LARGE_BYTES):
        data, digest = fresh(size_bytes)
        name = client.write_name(digest)
        assert client.status(name) == (0, False)
        client.upload(data, name)
        assert client.status(name) == (size_bytes, True)
        assert client.status(client.write_name(digest)) == (size_bytes, True)  # whoever asks under whatever id


@pytest.mark.row("QueryWriteStatus")
def test_a_small_upload_that_broke_begins_again_at_0(client: WatchingClient) -> None:
    data, digest = fresh(SMALL_BYTES)
    name = client.write_name(digest)
    stream = OpenStream(client).send(resource_name=name, data=data[:100])
    time.sleep(0.2)
    stream.break_off()
    assert client.status(name) == (0, False)
    with refused("INVALID_ARGUMENT", "begin again at 0"):
        client.upload(data, name, offset=100)
    assert client.upload(data, name) == SMALL_BYTES


@pytest.mark.row("Write")
def test_an_upload_that_stalls_is_ended_and_can_be_resumed(
    client: WatchingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOAD_STALL_SECONDS", 0.3)
    data, digest = fresh(LARGE_BYTES)
    name = client.write_name(digest)
    stream = OpenStream(client).send_all(messages(name, data[: 2 * limits.MIB], finish=False))
    with refused("DEADLINE_EXCEEDED", "resume"):
        stream.call.result(timeout=10)
    stream.break_off()
    assert client.status(name) == (2 * limits.MIB, False)
    assert client.upload(data, name, offset=2 * limits.MIB) == LARGE_BYTES
    silent = OpenStream(client)  # not even a first message
    with refused("DEADLINE_EXCEEDED"):
        silent.call.result(timeout=10)
    silent.break_off()


@pytest.mark.row("load")
def test_more_uploads_than_the_limit_are_told_to_come_again(
    client: WatchingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPLOADS", 3)
    data, digest = fresh(LARGE_BYTES)
    names = [client.write_name(digest) for _ in range(3)]
    streams = [OpenStream(client).send(resource_name=name, data=b"x") for name in names]
    eventually(lambda: [client.spooled(name) for name in names] == [[1], [1], [1]], "they did not begin")
    with refused("UNAVAILABLE", "try again"):
        client.upload(data)
    for stream in streams:
        stream.break_off()

    def works() -> bool:
        try:
            return client.upload(data) == LARGE_BYTES
        except grpc.RpcError:
            return False

    eventually(works, "ended uploads still count")
