"""What ArtifactService and SourceService have in common: a message under a key, answered as it was received.

The rule: messages are cut out of requests and never encoded anew, because clients add fields over the years.
"""

from collections.abc import Callable

from google.protobuf.message import DecodeError

from millpond._protos.millpond.v1.keyed_message_pb2 import KeyedMessage
from millpond.core import limits
from millpond.core.errors import InvalidRequest, TooMuch
from millpond.services.assets import PendingPush
from millpond.store.interface import Bytes
from millpond.wire.calling import Caller
from millpond.wire.gate import Gate
from millpond.wire.rpc import Context

_REQUEST_BYTES = limits.ARTIFACT_MESSAGE_BYTES + 4 * limits.URI_CHARS + limits.KIB
"""The longest message, under the longest key."""


class MessageServicer:
    """Gets and updates messages of one kind."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller

    async def _get(self, raw: bytes, context: Context, fetch: Callable[..., Bytes]) -> bytes:
        admission = self._gate.admission()
        principal = context.principal
        request = _read(raw)
        reader = admission.reader(principal, request.instance_name)
        return bytes(await self._caller.briefly(fetch, reader, request.cache_key))

    async def _update(self, raw: bytes, context: Context, begin: Callable[..., PendingPush]) -> bytes:
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        if len(raw) > _REQUEST_BYTES:  # before it is cut into millions of parts
            raise TooMuch(f"a request of this kind has at most {_REQUEST_BYTES} bytes, this one {len(raw)}")
        request = _read(raw)
        writer = admission.writer(principal, request.instance_name)
        if not request.message:
            raise InvalidRequest("the message is missing")
        message = b"".join(request.message)
        await self._caller.pushing(begin, writer, request.cache_key, message)
        return message


def _read(raw: bytes) -> KeyedMessage:
    try:
        return KeyedMessage.FromString(raw)
    except DecodeError:
        raise InvalidRequest("the request is not of this method's type") from None
