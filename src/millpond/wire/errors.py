"""Failures as gRPC statuses: one table, and one place where bugs are kept from the wire."""

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, Protocol

import grpc

from millpond.core import errors

log = logging.getLogger(__name__)

# remote_execution.proto names the codes of the first group call by call; the others are google/rpc/code.proto's own
# definitions: PERMISSION_DENIED "must not be used if the caller cannot be identified (use UNAUTHENTICATED instead)".
CODES: dict[type[errors.MillpondError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DigestMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.OffsetOutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.BlobNotFound: grpc.StatusCode.NOT_FOUND,
    errors.NameNotFound: grpc.StatusCode.NOT_FOUND,
    errors.InstanceNotServed: grpc.StatusCode.NOT_FOUND,
    errors.NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotPermitted: grpc.StatusCode.PERMISSION_DENIED,
    errors.IncompleteClosure: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooMuch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Stalled: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.NotServed: grpc.StatusCode.UNIMPLEMENTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
}


class Context(Protocol):
    """What handlers use of ``grpc.aio.ServicerContext``."""

    def peer(self) -> str:
        """``ipv4:127.0.0.1:40000``."""

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        """Facts of the TLS handshake; ``x509_pem_cert`` is the client's certificate."""

    async def read(self) -> object:
        """The next message of a stream, or ``grpc.aio.EOF``."""

    async def write(self, message: bytes) -> None:
        """Send a message of a stream."""

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call; raises ``grpc.aio.AbortError``."""


Unary = Callable[[bytes, Context], Awaitable[bytes]]
Stream = Callable[[bytes, Context], AsyncIterator[bytes]]


def answering(handler: Unary) -> Unary:
    """Turn the named failures of a call that answers once into statuses; anything unnamed is a bug."""

    @functools.wraps(handler)
    async def answer(request: bytes, context: Context) -> bytes:
        try:
            return await handler(request, context)
        except Exception as failure:
            await _tell(failure, context)

    return answer


def streaming(handler: Stream) -> Unary:
    """The same for a call that answers with a stream.

    The last message is returned instead of written: it then leaves together with the status, in one batch of the gRPC
    core, which makes a stream of one message as cheap as a unary call.
    """

    @functools.wraps(handler)
    async def answer(request: bytes, context: Context) -> bytes:
        last: bytes | None = None
        try:
            async for message in handler(request, context):
                if last is not None:
                    await context.write(last)
                last = message
        except Exception as failure:
            await _tell(failure, context)
        return last or b""

    return answer


async def _tell(failure: Exception, context: Context) -> NoReturn:
    """End the call with the status of ``failure``.

    Left alone, grpcio sends UNKNOWN with the exception's text, which may quote a path or a secret. Here the story
    goes to the log under an incident number, and only the number crosses the wire.
    """
    if isinstance(failure, grpc.aio.AbortError | asyncio.CancelledError):
        raise failure
    if not isinstance(failure, errors.MillpondError):
        incident = secrets.token_hex(4)
        log.error("incident %s: a bug in this server ended a call of %s", incident, context.peer(), exc_info=failure)
        await context.abort(
            grpc.StatusCode.INTERNAL, f"internal error, incident {incident}: the server's log says more"
        )
    await context.abort(CODES[type(failure)], str(failure))


def code_number(failure: errors.MillpondError) -> int:
    """The number of the status of ``failure``, for the items of a batch (google.rpc.Status, ``code``)."""
    number: int = CODES[type(failure)].value[0]
    return number
