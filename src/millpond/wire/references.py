"""``buildstream.v2.ReferenceStorage``: the names of clients 1.1.4 to 1.6.9.

A ref is the directory asset that clients 1.5.1 to 1.6.9 push where they find the Remote Asset API (ADR 0010): whoever
pushed it, by whichever service, the others find it.
"""

from millpond._protos.buildstream.v2 import buildstream_pb2 as bst_pb2
from millpond.core import limits
from millpond.core.names import REFERENCE_URN, Namespace, uri_of
from millpond.services.assets import AssetPush
from millpond.wire.calling import Caller, decode
from millpond.wire.digests import digest_message, digest_of
from millpond.wire.gate import Gate
from millpond.wire.rpc import Context

SERVICE = bst_pb2.DESCRIPTOR.services_by_name["ReferenceStorage"]


class ReferenceStorageServicer:
    """Refs, and whether one may update them."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller

    async def get_reference(self, raw: bytes, context: Context) -> bytes:
        """``GetReference``."""
        admission = self._gate.admission()
        principal = context.principal
        request = decode(bst_pb2.GetReferenceRequest, raw)
        reader = admission.reader(principal, request.instance_name)
        uris = [uri_of(REFERENCE_URN, request.key)]
        asset = await self._caller.briefly(reader.fetch, Namespace.ASSET_DIRECTORY, uris, ())
        return bst_pb2.GetReferenceResponse(digest=digest_message(asset.binding.digest)).SerializeToString()

    async def update_reference(self, raw: bytes, context: Context) -> bytes:
        """``UpdateReference``. No keys are no mistake: there is nothing to do then."""
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        request = decode(bst_pb2.UpdateReferenceRequest, raw)
        writer = admission.writer(principal, request.instance_name)
        if request.keys:
            # One more than a push may have is enough to be refused.
            uris = [uri_of(REFERENCE_URN, key) for key in request.keys[: limits.URIS + 1]]
            push = AssetPush(uris, digest_of(request.digest), foreign=False)
            await self._caller.pushing(writer.begin_push, Namespace.ASSET_DIRECTORY, push)
        return b""  # UpdateReferenceResponse has no fields

    async def status(self, raw: bytes, context: Context) -> bytes:
        """``Status``."""
        admission = self._gate.admission()
        principal = context.principal
        request = decode(bst_pb2.StatusRequest, raw)
        admission.reader(principal, request.instance_name)
        return bst_pb2.StatusResponse(allow_updates=admission.allows_push(principal)).SerializeToString()
