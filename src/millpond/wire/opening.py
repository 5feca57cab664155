"""What the header fields of a request say, and whether its call is let in.

The rule (I7): who calls is asked before what is called.

Source: gRPC's ``PROTOCOL-HTTP2.md``, "Requests", and for what is not gRPC its "HTTP2 Transport Mapping".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import grpc

from millpond.core import limits
from millpond.core.errors import NotAuthenticated
from millpond.protocol.grpc_framing import ENCODINGS, IDENTITY, Deframer, UnknownEncoding, timeout_seconds
from millpond.services.access import Principal
from millpond.wire.errors import CODES, Status
from millpond.wire.rpc import Rpc

Fields = Sequence[tuple[bytes, bytes]]

BEGIN = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", ENCODINGS)]
"""How an answer begins."""

_TOO_MUCH_METADATA = Status(
    grpc.StatusCode.RESOURCE_EXHAUSTED, f"a call has at most {limits.METADATA_BYTES} bytes of metadata"
)
_NO_SUCH_METHOD = Status(grpc.StatusCode.UNIMPLEMENTED, "this method is not served here")
_NO_SUCH_ENCODING = Status(grpc.StatusCode.UNIMPLEMENTED, f"messages may be packed with {ENCODINGS.decode()}")
_NO_TIMEOUT = Status(grpc.StatusCode.INTERNAL, "grpc-timeout is not a time")


class Opening(NamedTuple):
    """A call that is let in. ``timeout_seconds``: what its client gives it, if it says so."""

    rpc: Rpc
    principal: Principal
    deframer: Deframer
    timeout_seconds: float | None


class Refused(Exception):
    """A call that is not. ``fields``: all of its answer."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self.fields = fields

    @classmethod
    def with_status(cls, status: Status) -> "Refused":
        """An answer that is nothing but a status ("Trailers-Only")."""
        return cls(BEGIN + status.trailers())


def opening_of(fields: Fields, rpcs: Mapping[bytes, Rpc], recognise: Callable[[], Principal]) -> Opening:
    """The call that begins with ``fields``.

    Raises:
        Refused: it is not let in.
    """
    if sum([len(name) + len(value) for name, value in fields]) > limits.METADATA_BYTES:
        raise Refused.with_status(_TOO_MUCH_METADATA)
    headers = dict(fields)
    if headers.get(b":method") != b"POST":
        raise Refused([(b":status", b"405")])
    if not headers.get(b"content-type", b"").startswith(b"application/grpc"):
        raise Refused([(b":status", b"415")])
    try:
        principal = recognise()
    except NotAuthenticated as stranger:
        raise Refused.with_status(Status(CODES[NotAuthenticated], str(stranger))) from None
    rpc = rpcs.get(headers.get(b":path", b""))
    if rpc is None:
        raise Refused.with_status(_NO_SUCH_METHOD)
    try:
        deframer = Deframer(limits.RECEIVE_BYTES, headers.get(b"grpc-encoding", IDENTITY))
    except UnknownEncoding:
        raise Refused.with_status(_NO_SUCH_ENCODING) from None
    timeout = headers.get(b"grpc-timeout")
    try:
        return Opening(rpc, principal, deframer, None if timeout is None else timeout_seconds(timeout))
    except ValueError:
        raise Refused.with_status(_NO_TIMEOUT) from None
