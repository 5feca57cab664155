"""``build.bazel.remote.asset.v1.Fetch`` and ``Push``.

Nothing is ever fetched from an origin: an asset is what somebody pushed. A miss is a NOT_FOUND of the call itself, not
of the message, because BuildStream 1.5–1.6 never looks into the message.
"""

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as ra_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.core.names import Namespace
from millpond.services.assets import Asset, AssetPush, Qualifiers
from millpond.wire.calling import Caller, decode
from millpond.wire.digests import digest_message, digest_of
from millpond.wire.gate import SHA256, Gate, check_function
from millpond.wire.rpc import Context

FETCH = ra_pb2.DESCRIPTOR.services_by_name["Fetch"]
PUSH = ra_pb2.DESCRIPTOR.services_by_name["Push"]


class FetchServicer:
    """Answers what was pushed."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller

    async def fetch_blob(self, raw: bytes, context: Context) -> bytes:
        """``FetchBlob``."""
        asset = await self._fetch(raw, context, ra_pb2.FetchBlobRequest, Namespace.ASSET_BLOB)
        response = ra_pb2.FetchBlobResponse(
            uri=asset.uri, blob_digest=digest_message(asset.binding.digest), digest_function=SHA256
        )
        return _finish(response, asset)

    async def fetch_directory(self, raw: bytes, context: Context) -> bytes:
        """``FetchDirectory``."""
        asset = await self._fetch(raw, context, ra_pb2.FetchDirectoryRequest, Namespace.ASSET_DIRECTORY)
        response = ra_pb2.FetchDirectoryResponse(
            uri=asset.uri, root_directory_digest=digest_message(asset.binding.digest), digest_function=SHA256
        )
        return _finish(response, asset)

    async def _fetch(
        self,
        raw: bytes,
        context: Context,
        kind: type[ra_pb2.FetchBlobRequest] | type[ra_pb2.FetchDirectoryRequest],
        namespace: Namespace,
    ) -> Asset:
        admission = self._gate.admission()
        principal = context.principal
        request: ra_pb2.FetchBlobRequest | ra_pb2.FetchDirectoryRequest = decode(kind, raw)
        reader = admission.reader(principal, request.instance_name)
        check_function(request.digest_function)
        oldest = request.oldest_content_accepted if request.HasField("oldest_content_accepted") else None
        return await self._caller.briefly(
            reader.fetch, namespace, list(request.uris), _qualifiers(request.qualifiers), oldest_ms=_ms(oldest)
        )


class PushServicer:
    """Binds names."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller

    async def push_blob(self, raw: bytes, context: Context) -> bytes:
        """``PushBlob``."""
        return await self._push(raw, context, ra_pb2.PushBlobRequest, "blob_digest", Namespace.ASSET_BLOB)

    async def push_directory(self, raw: bytes, context: Context) -> bytes:
        """``PushDirectory``."""
        return await self._push(
            raw, context, ra_pb2.PushDirectoryRequest, "root_directory_digest", Namespace.ASSET_DIRECTORY
        )

    async def _push(
        self,
        raw: bytes,
        context: Context,
        kind: type[ra_pb2.PushBlobRequest] | type[ra_pb2.PushDirectoryRequest],
        digest_field: str,
        namespace: Namespace,
    ) -> bytes:
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        request: ra_pb2.PushBlobRequest | ra_pb2.PushDirectoryRequest = decode(kind, raw)
        writer = admission.writer(principal, request.instance_name)
        check_function(request.digest_function)
        if not request.HasField(digest_field):
            raise InvalidRequest(f"{digest_field} is missing")
        push = AssetPush(
            uris=list(request.uris),
            digest=digest_of(getattr(request, digest_field)),
            qualifiers=_qualifiers(request.qualifiers),
            blobs=_references(request.references_blobs),
            directories=_references(request.references_directories),
            expires_at_ms=_ms(request.expire_at if request.HasField("expire_at") else None),
        )
        await self._caller.pushing(writer.begin_push, namespace, push)
        return b""  # PushBlobResponse and PushDirectoryResponse have no fields


def _finish(response: ra_pb2.FetchBlobResponse | ra_pb2.FetchDirectoryResponse, asset: Asset) -> bytes:
    response.status.SetInParent()
    if asset.binding.expires_at_ms is not None:
        response.expires_at.FromMilliseconds(asset.binding.expires_at_ms)
    return response.SerializeToString()


def _qualifiers(messages: Sequence[ra_pb2.Qualifier]) -> Qualifiers:
    return [(message.name, message.value) for message in messages]


def _references(messages: Sequence[re_pb2.Digest]) -> list[Digest]:
    # BuildStream lists fields of its artifact that are not set as digests without a hash: they refer to nothing.
    return [digest_of(message) for message in messages if message.hash or message.size_bytes]


def _ms(timestamp: Timestamp | None) -> int | None:
    if timestamp is None:
        return None
    try:
        return timestamp.ToMilliseconds()
    except ValueError:
        raise InvalidRequest("a timestamp is out of range") from None
