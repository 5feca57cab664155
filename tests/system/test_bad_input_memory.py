"""Large uploads do not sit in memory, however many come at once."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from system.build_site import BuildSite

from millpond._protos.google.bytestream import bytestream_pb2

UPLOADS = 100
UPLOAD_BYTES = 16_000_000
MESSAGE_BYTES = 2 << 20
"""What casd puts into one message."""
CONNECTIONS = 20
MOST_ANONYMOUS_BYTES = 150_000_000
"""Per worker."""


class AnonymousMemory(threading.Thread):
    """Watches the workers: the most ``RssAnon`` (proc(5)) that one of them had, in bytes."""

    def __init__(self, workers: list[int]) -> None:
        super().__init__()
        self._statuses = [Path(f"/proc/{pid}/status") for pid in workers]
        self._over = threading.Event()
        self.most = dict.fromkeys(workers, 0)
        self.start()

    def run(self) -> None:
        while not self._over.wait(0.02):
            for pid, status in zip(self.most, self._statuses, strict=True):
                (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon:"))
                self.most[pid] = max(self.most[pid], int(line.split()[1]) * 1024)

    def stop(self) -> int:
        self._over.set()
        self.join()
        return max(self.most.values())


def workers_of(supervisor: int) -> list[int]:
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    # … -m millpond.worker ROLE NUMBER …: upkeep is one of them, too
    return [int(pid) for pid in children if b"\0worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def upload(channel: grpc.Channel, number: int, noise: bytes) -> int:
    """One blob unlike the others, message by message; nothing of it is kept here."""
    unlike = number.to_bytes(8)
    whole = hashlib.sha256(unlike)
    whole.update(noise)
    name = f"uploads/{number}/blobs/{whole.hexdigest()}/{len(unlike) + len(noise)}"

    def messages() -> Iterator[bytestream_pb2.WriteRequest]:
        yield bytestream_pb2.WriteRequest(resource_name=name, data=unlike)
        for at in range(0, len(noise), MESSAGE_BYTES):
            part = noise[at : at + MESSAGE_BYTES]
            last = at + MESSAGE_BYTES >= len(noise)
            yield bytestream_pb2.WriteRequest(write_offset=len(unlike) + at, data=part, finish_write=last)

    write = channel.stream_unary(
        "/google.bytestream.ByteStream/Write",
        request_serializer=bytestream_pb2.WriteRequest.SerializeToString,
        response_deserializer=bytestream_pb2.WriteResponse.FromString,
    )
    return int(write(messages(), timeout=120).committed_size)


def test_a_hundred_parallel_uploads_stay_out_of_memory(site: BuildSite) -> None:
    server = site.server("--enable-push", "--quota", "10G")
    memory = AnonymousMemory(workers_of(server._process.pid))
    noise = os.urandom(UPLOAD_BYTES - 8)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{server.port}", options) for _ in range(CONNECTIONS)]
    with ThreadPoolExecutor(UPLOADS) as pool:
        sizes = list(pool.map(lambda number: upload(channels[number % CONNECTIONS], number, noise), range(UPLOADS)))
    for channel in channels:
        channel.close()
    most = memory.stop()
    print(f"RssAnon: at most {most / 1e6:.0f} MB, per worker {[round(one / 1e6) for one in memory.most.values()]} MB")
    assert sizes == [UPLOAD_BYTES] * UPLOADS
    assert len(memory.most) == 2
    assert most <= MOST_ANONYMOUS_BYTES
