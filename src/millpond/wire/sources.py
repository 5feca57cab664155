"""``buildstream.v2.SourceService``: the sources of clients 1.91 to 1.93.4."""

from millpond._protos.buildstream.v2 import source_pb2
from millpond.services import messages
from millpond.wire.keyed_messages import MessageServicer
from millpond.wire.rpc import Context

SERVICE = source_pb2.DESCRIPTOR.services_by_name["SourceService"]


class SourceServicer(MessageServicer):
    """Gets and updates sources."""

    async def get_source(self, raw: bytes, context: Context) -> bytes:
        """``GetSource``."""
        return await self._get(raw, context, messages.fetch_source)

    async def update_source(self, raw: bytes, context: Context) -> bytes:
        """``UpdateSource``."""
        return await self._update(raw, context, messages.begin_source)
