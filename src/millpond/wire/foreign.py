"""Services that come with gRPC, health and reflection, behind this edge.

They are written for grpcio's asyncio server; of that they use what is here.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NoReturn

import grpc

from millpond.wire.calling import decode
from millpond.wire.errors import Ended, Status
from millpond.wire.rpc import Access, Context, Rpc


class Registry:
    """Collects what ``add_…Servicer_to_server`` registers, as RPCs of ours."""

    def __init__(self) -> None:
        self.rpcs: list[Rpc] = []

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same again, in a form that cannot be listed."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The methods of a service."""
        for method, handler in handlers.items():
            self.rpcs.append(Rpc(service, method, Access.OPEN, _answer_of(handler), reads=handler.request_streaming))


class _MessageContext:
    """A call in terms of messages instead of bytes."""

    def __init__(self, context: Context, serialize: Callable[[Any], bytes]) -> None:
        self._context = context
        self._serialize = serialize

    async def write(self, message: Any) -> None:
        """Send a message of a stream."""
        await self._context.write((self._serialize(message),))

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        """End the call."""
        raise Ended(Status(code, details))


def _answer_of(handler: Any) -> Callable[[bytes, Context], Any]:
    parse, serialize = _parser(handler.request_deserializer), handler.response_serializer

    async def requests(context: Context) -> AsyncIterator[Any]:
        while (raw := await context.read()) is not None:
            yield parse(raw)

    async def unary(raw: bytes, context: Context) -> bytes:
        told: bytes = serialize(await handler.unary_unary(parse(raw), _MessageContext(context, serialize)))
        return told

    async def watch(raw: bytes, context: Context) -> None:
        await handler.unary_stream(parse(raw), _MessageContext(context, serialize))

    async def converse(_: bytes, context: Context) -> None:
        async for message in handler.stream_stream(requests(context), _MessageContext(context, serialize)):
            await context.write((serialize(message),))

    if handler.unary_unary is not None:
        return unary
    if handler.unary_stream is not None:
        return watch
    assert handler.stream_stream is not None, "no service that comes with gRPC has such a method"
    return converse


def _parser(deserialize: Any) -> Callable[[bytes], Any]:
    """``Message.FromString``, with a failure of ours."""
    return lambda raw: decode(deserialize.__self__, raw)
