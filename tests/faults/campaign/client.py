"""A client that goes on when servers die: it asks again until somebody answers.

The rule: an answer is an answer. What it retries is only what says "try again", and everything else is told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from contract.rpc_client import Client, messages
from faults.campaign.artifacts import STREAMED_BYTES, Artifact, message

from millpond.core.digest import Digest

T = TypeVar("T")
CALL_SECONDS = 60.0
"""A server may wait 30 s for room before it refuses."""
PATIENCE_SECONDS = 90.0
"""A cluster that answers nothing for so long is not coming back by itself."""
_PAUSE_SECONDS = 0.05
_BATCH_BYTES = 3 << 20
_CUT_OFF_MESSAGE_BYTES = 256 << 10
_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 300)]
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


class Ended(Exception):
    """The campaign is over; what was in progress is dropped."""


class NoAnswer(Exception):
    """Nobody answered in time."""


class Refused(Exception):
    """A final answer that is not what was asked for."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code = code


class PatientClient:
    """One connection to one server of the cluster, used by one thread."""

    def __init__(self, port: int, ended: Callable[[], bool]) -> None:
        self._client = Client(f"127.0.0.1:{port}", options=_OPTIONS, seconds=CALL_SECONDS)
        self._ended = ended

    def close(self) -> None:
        self._client.channel.close()

    def find_missing(self, digests: Iterable[Digest]) -> list[Digest]:
        wanted = list(digests)
        return self._patiently(lambda: self._client.find_missing(wanted))

    def update(self, blobs: Sequence[tuple[Digest, bytes]]) -> None:
        """Batches; the first refusal of an item is raised."""
        batch: list[tuple[Digest, bytes]] = []
        for number, blob in enumerate(blobs):
            batch.append(blob)
            if (
                number + 1 == len(blobs)
                or sum(len(data) for _, data in batch) + len(blobs[number + 1][1]) > _BATCH_BYTES
            ):
                self._update(batch)
                batch = []

    def _update(self, batch: list[tuple[Digest, bytes]]) -> None:
        requests = [{"digest": message(digest), "data": data} for digest, data in batch]

        def call() -> None:
            for item in self._client.call("BatchUpdateBlobs", requests=requests).responses:
                if item.status.code == grpc.StatusCode.UNAVAILABLE.value[0]:
                    raise _TryAgain
                if item.status.code:
                    raise Refused(_CODES[item.status.code], item.status.message)

        self._patiently(call)

    def stream(self, digest: Digest, data: bytes, *, cut_at: int | None = None) -> None:
        """Upload by ByteStream; after a failure go on where the server says. ``cut_at``: leave it there, unfinished."""
        name = self._client.write_name(digest, str(uuid4()))
        if cut_at is not None:
            with contextlib.suppress(grpc.RpcError):
                self._client.write(messages(name, data[:cut_at], finish=False, message_bytes=_CUT_OFF_MESSAGE_BYTES))
            return
        tried = False

        def call() -> None:
            nonlocal tried
            offset, complete = self._client.status(name) if tried else (0, False)
            tried = True
            if not complete:  # all bytes may be there, and the upload still unfinished
                committed = self._client.upload(data, name, offset=offset)
                if committed != len(data):
                    raise Refused(grpc.StatusCode.DATA_LOSS, f"{committed} bytes committed of {len(data)}")

        self._patiently(call)

    def push(self, artifact: Artifact, uri: str | None = None) -> None:
        what = "root_directory_digest" if artifact.directory else "blob_digest"
        fields: dict[str, Any] = {
            "uris": [uri or artifact.uri],
            what: message(artifact.digest),
            "references_blobs": list(map(message, artifact.blobs)),
            "references_directories": list(map(message, artifact.directories)),
        }
        self._patiently(lambda: self._client.call("PushDirectory" if artifact.directory else "PushBlob", **fields))

    def fetch(self, artifact: Artifact) -> Digest | None:
        """What the name is bound to; None for a miss."""
        rpc, field = ("FetchDirectory", "root_directory_digest") if artifact.directory else ("FetchBlob", "blob_digest")
        answer = self._patiently(lambda: self._client.call(rpc, uris=[artifact.uri]), misses=True)
        if answer is None:
            return None
        found = getattr(answer, field)
        return Digest.parse(found.hash, found.size_bytes)

    def get(self, digests: Iterable[Digest]) -> dict[Digest, bytes | None]:
        """The bytes of each, read in batches or, when large, as streams; None where it is not held."""
        found: dict[Digest, bytes | None] = {}
        batch: list[Digest] = []
        for digest in digests:
            if digest.size_bytes > STREAMED_BYTES:
                found[digest] = self._read(digest)
                continue
            if batch and sum(one.size_bytes for one in batch) + digest.size_bytes > _BATCH_BYTES:
                found |= self._get(batch)
                batch = []
            batch.append(digest)
        return found | (self._get(batch) if batch else {})

    def _get(self, batch: list[Digest]) -> dict[Digest, bytes | None]:
        def call() -> dict[Digest, bytes | None]:
            items = dict(zip(batch, self._client.get(batch), strict=True))
            if grpc.StatusCode.UNAVAILABLE.value[0] in items.values():
                raise _TryAgain
            for item in items.values():
                if isinstance(item, int) and item != grpc.StatusCode.NOT_FOUND.value[0]:
                    raise Refused(_CODES[item], "an item of BatchReadBlobs")
            return {digest: item if isinstance(item, bytes) else None for digest, item in items.items()}

        return self._patiently(call)

    def _read(self, digest: Digest) -> bytes | None:
        return self._patiently(lambda: self._client.read(self._client.read_name(digest)), misses=True)

    def _patiently(self, call: Callable[[], T], *, misses: bool = False) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            if self._ended():
                raise Ended
            try:
                return call()
            except _TryAgain:
                why = "UNAVAILABLE"
            except grpc.RpcError as error:
                code = error.code()
                if misses and code is grpc.StatusCode.NOT_FOUND:
                    return None
                if code not in _AGAIN:
                    raise Refused(code, error.details() or "") from None
                why = f"{code.name}: {error.details()}"
            if time.monotonic() > deadline:
                raise NoAnswer(f"no answer for {PATIENCE_SECONDS:.0f} s, at last {why}")
            time.sleep(_PAUSE_SECONDS)


class _TryAgain(Exception):
    pass


_CODES = {code.value[0]: code for code in grpc.StatusCode}
