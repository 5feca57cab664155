"""Failures as gRPC statuses: one table, and one place where bugs are kept from the wire."""

import logging
import secrets
from typing import NamedTuple

import grpc

from millpond.core import errors
from millpond.protocol import grpc_framing

log = logging.getLogger(__name__)

_TEXT_CHARS = 2000
"""The longest text of a status: a client takes 8 KiB of trailers, and what is no ASCII takes thrice its length or more."""

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


class Status(NamedTuple):
    """How a call ends."""

    code: grpc.StatusCode
    text: str = ""

    def trailers(self) -> list[tuple[bytes, bytes]]:
        """The status as header fields (gRPC's ``PROTOCOL-HTTP2.md``, "Status", "Status-Message")."""
        fields = [(b"grpc-status", b"%d" % self.code.value[0])]
        if self.text:
            fields.append((b"grpc-message", grpc_framing.status_message(self.text[:_TEXT_CHARS])))
        return fields


OK = Status(grpc.StatusCode.OK)


class Ended(Exception):
    """A call that its handler ends with a status of its own choice."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


def status_of(failure: Exception, peer: str) -> Status:
    """How a call of ``peer`` ends that failed so.

    What has no name is a bug. Its text may quote a path or a secret, so the story goes to the log under an incident
    number, and only the number crosses the wire.
    """
    if isinstance(failure, errors.MillpondError):
        return Status(CODES[type(failure)], str(failure))
    if isinstance(failure, Ended):
        return failure.status
    incident = secrets.token_hex(4)
    log.error("incident %s: a bug in this server ended a call of %s", incident, peer, exc_info=failure)
    return Status(grpc.StatusCode.INTERNAL, f"internal error, incident {incident}: the server's log says more")


def code_number(failure: errors.MillpondError) -> int:
    """The number of the status of ``failure``, for the items of a batch (google.rpc.Status, ``code``)."""
    number: int = CODES[type(failure)].value[0]
    return number
