"""The gate of the gRPC edge: who is calling, and may they come in at all.

The rule (I7): every RPC begins at the gate, before it looks at a single argument. The :class:`Guard` sees to it for
all services, those that come with gRPC as well; a handler that forgot to ask would still not answer a stranger.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.errors import InvalidRequest, NotReady
from millpond.services.access import Admission, Principal
from millpond.wire.errors import Context, answering

ANYBODY = Principal()
SHA256 = re_pb2.DigestFunction.SHA256
UNSET = re_pb2.DigestFunction.UNKNOWN

_CALLING: ContextVar[Principal | None] = ContextVar("calling", default=None)
"""Who the guard let in. Every RPC is a task, so each has its own; asking the handshake again would cost 7 µs."""


class Gate:
    """Knows the admission once the repository is open; until then everybody is told to come again."""

    def __init__(self, identify: Callable[[bytes], str] | None) -> None:
        """``identify``: the certificates that a peer showed (PEM, its own first; nothing when none) to its identity.

        It raises ``NotAuthenticated`` for whom it does not let in. None: anybody gets in, and nobody's handshake is
        looked at.
        """
        self._admission: Admission | None = None
        self._identify = identify

    @property
    def guards(self) -> "list[Guard]":
        """What the server must call for every RPC."""
        return [] if self._identify is None else [Guard(self)]

    def open(self, admission: Admission) -> None:
        """Let people in."""
        self._admission = admission

    def admission(self) -> Admission:
        """The admission.

        Raises:
            NotReady: the repository is still being opened.
        """
        if self._admission is None:
            raise NotReady("the cache is starting: try again in a few seconds")
        return self._admission

    def principal(self, context: Context) -> Principal:
        """Who is calling.

        Raises:
            NotAuthenticated: somebody who may not come in, or no longer.
        """
        return _CALLING.get() or self.recognise(context)

    def recognise(self, context: Context) -> Principal:
        """Who is calling, by what they showed in the TLS handshake.

        Raises:
            NotAuthenticated: somebody who may not come in, or no longer.
        """
        if self._identify is None:
            return ANYBODY
        facts = context.auth_context()
        shown = facts.get("x509_pem_cert")
        if not shown:
            return Principal(self._identify(b""))
        return Principal(self._identify(b"".join((*shown, *facts.get("x509_pem_cert_chain", ())))))


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Stops whoever may not come in before anything else happens, at every RPC that there is."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._guarded = functools.lru_cache(maxsize=None)(self._guard)  # as many as there are RPCs

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """The handler of the RPC, guarded; None when there is no such RPC."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self._guarded(handler)

    def _guard(self, handler: Any) -> Any:
        shapes = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        (shape,) = (shape for shape in shapes if getattr(handler, shape) is not None)
        return handler._replace(**{shape: self._behind_the_gate(getattr(handler, shape))})

    def _behind_the_gate(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        recognise = self._gate.recognise

        async def call(request: Any, context: Any) -> Any:
            _CALLING.set(recognise(context))
            return await behaviour(request, context)

        async def stream(request: Any, context: Any) -> None:
            _CALLING.set(recognise(context))
            async for message in behaviour(request, context):
                await context.write(message)

        return answering(stream if inspect.isasyncgenfunction(behaviour) else call)  # type: ignore[arg-type]


def check_function(number: int) -> None:
    """Refuse a digest function that is not offered; unset means "tell by the length of the hash".

    Raises:
        InvalidRequest: not SHA256 and not unset.
    """
    if number not in (UNSET, SHA256):
        raise InvalidRequest(f"digest function number {number} is not offered here, SHA256 (1) is")
