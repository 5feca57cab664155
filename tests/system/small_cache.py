"""What the tests of small caches share: artifacts that are pushed over gRPC, as fast as the server takes them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import grpc
from contract.rpc_client import Client, message_of
from unit.store.repositories import noise

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest

KB, MB = 1000, 1_000_000
_BATCH_BYTES = 3 * MB
_STREAMED_BYTES = 3 * MB
_PATIENCE_SECONDS = 90
"""A server waits 30 s for room."""


class Refused(Exception):
    """A blob found no room; what was said."""


class Artifacts:
    """Pushes artifacts to one server, and remembers what each was made of."""

    def __init__(self, port: int) -> None:
        self.client = Client(f"127.0.0.1:{port}")
        self.made: dict[str, list[Digest]] = {}

    def put(self, sizes: Sequence[int], seed: str) -> list[Digest]:
        """Upload noise as ``bst`` would: large blobs streamed, small ones in batches.

        Raises:
            Refused: no room for one of them.
        """
        digests: list[Digest] = []
        batch: list[tuple[Digest, bytes]] = []
        for number, size in enumerate(sizes):
            data = noise(size, f"{seed}/{number}")
            digests.append(Digest.of(data))
            if size > _STREAMED_BYTES:
                try:
                    self.client.upload(data)
                except grpc.RpcError as why:
                    raise Refused(f"{why.code().name}: {why.details()}") from None
                continue
            if sum(digest.size_bytes for digest, _ in batch) + size > _BATCH_BYTES:
                self._update(batch)
                batch = []
            batch.append((digests[-1], data))
        self._update(batch)
        return digests

    def _update(self, batch: Sequence[tuple[Digest, bytes]]) -> None:
        if not batch:
            return
        request = re_pb2.BatchUpdateBlobsRequest()
        for digest, data in batch:
            request.requests.add(digest=message_of(digest), data=data)
        try:
            answer = self.client.rpc("BatchUpdateBlobs")(request, timeout=_PATIENCE_SECONDS)
        except grpc.RpcError as why:
            raise Refused(f"{why.code().name}: {why.details()}") from None
        for item in answer.responses:
            if item.status.code:
                raise Refused(f"{item.status.code}: {item.status.message}")

    def bind(self, uri: str, digests: Sequence[Digest]) -> None:
        references = [message_of(digest) for digest in digests]
        self.client.call("PushBlob", uris=[uri], blob_digest=references[0], references_blobs=references)
        self.made[uri] = list(digests)

    def push(self, uri: str, sizes: Sequence[int]) -> None:
        self.bind(uri, self.put(sizes, uri))

    def fetch(self, uri: str) -> bool:
        """Whether the name is answered; that is all a client asks before it reads."""
        try:
            self.client.call("FetchBlob", uris=[uri])
        except grpc.RpcError as why:
            if why.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    def is_whole(self, uri: str) -> bool:
        """Whether it is answered; if it is, every byte of it must be there."""
        if not self.fetch(uri):
            return False
        assert not self.client.find_missing(self.made[uri]), f"{uri} was answered with holes"
        for number, digest in enumerate(self.made[uri]):
            data = self.client.read(self.client.read_name(digest))
            assert data == noise(digest.size_bytes, f"{uri}/{number}"), f"blob {number} of {uri} is not what it was"
        return True

    def whole(self) -> list[str]:
        """Those that are still whole, oldest first.

        They are asked for newest first: to ask for one is to use it.
        """
        return [uri for uri in reversed(self.made) if self.is_whole(uri)][::-1]

    def close(self) -> None:
        self.client.channel.close()


def taken_bytes(directory: Path) -> int:
    """What ``du`` says; files may come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in [".", *names]:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
