"""A client that says what the test wants said, right or wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import grpc
import pytest

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import Digest
from millpond.wire.artifacts import SERVICE as ARTIFACTS
from millpond.wire.bytestream import SERVICE as BYTESTREAM
from millpond.wire.capabilities import BST_SERVICE as BST_CAPABILITIES
from millpond.wire.capabilities import SERVICE as CAPABILITIES
from millpond.wire.cas import SERVICE as CAS
from millpond.wire.references import SERVICE as REFERENCES
from millpond.wire.remote_asset import FETCH, PUSH
from millpond.wire.sources import SERVICE as SOURCES

SECONDS = 30
MESSAGE_BYTES = 2 << 20
"""What casd puts into one WriteRequest."""
DEFAULT_RECEIVE_BYTES = 4 << 20
"""What a gRPC client accepts that nobody configured; the answers that tests ask for come through it unless they say so."""

_SERVICES = (CAPABILITIES, CAS, BYTESTREAM, FETCH, PUSH, REFERENCES, ARTIFACTS, SOURCES)
_METHODS = {method.name: method for service in _SERVICES for method in service.methods}
_METHODS["buildstream.v2.Capabilities"] = BST_CAPABILITIES.methods_by_name["GetCapabilities"]


class Client:
    """One connection of its own, and one instance name."""

    def __init__(
        self, target: str, *, instance: str = "", options: Sequence[tuple[str, Any]] = (), seconds: float = SECONDS
    ) -> None:
        self.instance = instance
        self.seconds = seconds
        self.channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1), *options])

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.channel.close()

    def rpc(self, name: str) -> Any:
        """The callable of one RPC; its messages are encoded and decoded.

        Methods go by their own names, but for the second GetCapabilities, which goes by its service's.
        """
        method = _METHODS[name]
        shape = f"{'stream' if name == 'Write' else 'unary'}_{'stream' if name in ('Read', 'GetTree') else 'unary'}"
        return getattr(self.channel, shape)(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
            response_deserializer=method.output_type._concrete_class.FromString,
        )

    def call(self, name: str, /, **fields: Any) -> Any:
        """One unary RPC in our instance."""
        fields.setdefault("instance_name", self.instance)
        return self.rpc(name)(_METHODS[name].input_type._concrete_class(**fields), timeout=self.seconds)

    # -- ContentAddressableStorage ----------------------------------------------------------------------------------

    def find_missing(self, digests: Iterable[Digest], **fields: Any) -> list[Digest]:
        answer = self.call("FindMissingBlobs", blob_digests=map(message_of, digests), **fields)
        return list(map(digest_of, answer.missing_blob_digests))

    def update(self, blobs: Iterable[tuple[Digest, bytes]], **fields: Any) -> list[int]:
        """The status codes of a BatchUpdateBlobs, in order."""
        requests = [{"digest": message_of(digest), "data": data} for digest, data in blobs]
        answer = self.call("BatchUpdateBlobs", requests=requests, **fields)
        assert [item.digest for item in answer.responses] == [item["digest"] for item in requests]
        return [item.status.code for item in answer.responses]

    def put(self, *contents: bytes) -> list[Digest]:
        """Store small blobs, whatever it takes."""
        digests = list(map(Digest.of, contents))
        assert set(self.update(zip(digests, contents, strict=True))) <= {0}
        return digests

    def get(self, digests: Iterable[Digest], **fields: Any) -> list[bytes | int]:
        """The bytes or the status code of each item of a BatchReadBlobs."""
        answer = self.call("BatchReadBlobs", digests=map(message_of, digests), **fields)
        return [item.status.code or item.data for item in answer.responses]

    def tree(self, root: Digest, **fields: Any) -> list[re_pb2.GetTreeResponse]:
        request = re_pb2.GetTreeRequest(instance_name=self.instance, root_digest=message_of(root), **fields)
        return list(self.rpc("GetTree")(request, timeout=self.seconds))

    # -- ByteStream -------------------------------------------------------------------------------------------------

    def read_name(self, digest: Digest) -> str:
        return f"{self.instance}/blobs/{digest}".removeprefix("/")

    def write_name(self, digest: Digest, upload: str | None = None) -> str:
        return f"{self.instance}/uploads/{upload or uuid4()}/blobs/{digest}".removeprefix("/")

    def read(self, name: str, *, offset: int = 0, limit: int = 0) -> bytes:
        request = bytestream_pb2.ReadRequest(resource_name=name, read_offset=offset, read_limit=limit)
        return b"".join(answer.data for answer in self.rpc("Read")(request, timeout=self.seconds))

    def write(self, messages: Iterable[bytestream_pb2.WriteRequest]) -> int:
        """The committed size that the server answers."""
        return int(self.rpc("Write")(iter(messages), timeout=self.seconds).committed_size)

    def upload(self, data: bytes, name: str | None = None, *, offset: int = 0) -> int:
        """A whole upload, or the rest of one from ``offset``."""
        return self.write(messages(name or self.write_name(Digest.of(data)), data, offset=offset))

    def status(self, name: str) -> tuple[int, bool]:
        request = bytestream_pb2.QueryWriteStatusRequest(resource_name=name)
        answer = self.rpc("QueryWriteStatus")(request, timeout=self.seconds)
        return answer.committed_size, answer.complete


def messages(
    name: str, data: bytes, *, offset: int = 0, finish: bool = True, message_bytes: int = MESSAGE_BYTES
) -> Iterator[bytestream_pb2.WriteRequest]:
    """The WriteRequests that bring ``data[offset:]``, as casd cuts and names them."""
    at = offset
    while True:
        end = min(len(data), at + message_bytes)
        last = end == len(data)
        yield bytestream_pb2.WriteRequest(
            resource_name=name if at == offset else "",
            write_offset=at,
            data=data[at:end],
            finish_write=last and finish,
        )
        if last:
            return
        at = end


def message_of(digest: Digest) -> re_pb2.Digest:
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)


def digest_of(message: re_pb2.Digest) -> Digest:
    return Digest.parse(message.hash, message.size_bytes)


@contextmanager
def refused(code: str, text: str = "") -> Iterator[None]:
    """The call inside ends with this status, whose sentence contains ``text``."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    outcome = caught.value
    assert (outcome.code().name, text in outcome.details()) == (code, True), f"{outcome.code()}: {outcome.details()}"
