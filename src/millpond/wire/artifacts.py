"""``buildstream.v2.ArtifactService``: the artifacts of clients 1.91 to 1.93.4."""

from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.services import messages
from millpond.wire.keyed_messages import MessageServicer
from millpond.wire.rpc import Context

SERVICE = artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"]


class ArtifactServicer(MessageServicer):
    """Gets and updates artifacts."""

    async def get_artifact(self, raw: bytes, context: Context) -> bytes:
        """``GetArtifact``."""
        return await self._get(raw, context, messages.fetch_artifact)

    async def update_artifact(self, raw: bytes, context: Context) -> bytes:
        """``UpdateArtifact``."""
        return await self._update(raw, context, messages.begin_artifact)
