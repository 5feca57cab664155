"""What ArtifactService and SourceService have in common: a message under a key, answered as it was received.

The rule: messages are cut out of requests and never encoded anew, because clients add fields over the years.
"""

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core.errors import InvalidRequest
from millpond.services.assets import PendingPush
from millpond.services.writing import Writer
from millpond.store.interface import Bytes
from millpond.wire.calling import Caller, committed, decode
from millpond.wire.errors import Context
from millpond.wire.gate import Gate

Get = artifact_pb2.GetArtifactRequest | source_pb2.GetSourceRequest
Update = artifact_pb2.UpdateArtifactRequest | source_pb2.UpdateSourceRequest
_LENGTH_DELIMITED = 2


class MessageServicer:
    """Gets and updates messages of one kind."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller

    async def _get(self, raw: bytes, context: Context, kind: type[Get], fetch: Callable[..., Bytes]) -> bytes:
        admission = self._gate.admission()
        principal = self._gate.principal(context)
        request = decode(kind, raw)
        reader = admission.reader(principal, request.instance_name)
        return bytes(await self._caller.briefly(fetch, reader, request.cache_key))

    async def _update(
        self,
        raw: bytes,
        context: Context,
        kind: type[Update],
        field: str,
        begin: Callable[[Writer, str, bytes], PendingPush],
    ) -> bytes:
        admission = self._gate.admission()
        principal = self._gate.principal(context)
        admission.check_push(principal)
        request = decode(kind, raw)
        writer = admission.writer(principal, request.instance_name)
        if not request.HasField(field):
            raise InvalidRequest(f"the {field} is missing")
        message = as_received(raw, kind.DESCRIPTOR.fields_by_name[field].number)
        await committed(await self._caller.writing(begin, writer, request.cache_key, message))
        return message


def as_received(raw: bytes, number: int) -> bytes:
    """The bytes of the embedded message with field ``number`` in ``raw``, which is sound.

    One that comes in several parts is their concatenation (Protocol Buffers, "Last One Wins").
    """
    found = UnknownFieldSet(Empty.FromString(raw))
    fields = [found[at] for at in range(len(found))]
    parts = [one.data for one in fields if one.field_number == number and one.wire_type == _LENGTH_DELIMITED]
    return b"".join(parts)
