"""The gate of the gRPC edge: who is calling, and may they come in at all.

The rule (I7): every handler begins with the gate, before it looks at a single argument.
"""

import functools
from collections.abc import Callable

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.errors import InvalidRequest, NotReady
from millpond.services.access import Admission, Principal
from millpond.wire.errors import Context

ANYBODY = Principal()
SHA256 = re_pb2.DigestFunction.SHA256
UNSET = re_pb2.DigestFunction.UNKNOWN


class Gate:
    """Knows the admission once the repository is open; until then everybody is told to come again."""

    def __init__(self, identify: Callable[[bytes], str]) -> None:
        """``identify``: a client certificate (PEM) to the identity of its key."""
        self._admission: Admission | None = None
        self._identify = functools.lru_cache(maxsize=4096)(identify)

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
        """Who is calling. The TLS layer has refused those whose certificate is not authorised."""
        certificate = context.auth_context().get("x509_pem_cert")
        if not certificate:
            return ANYBODY
        return Principal(self._identify(certificate[0]))


def check_function(number: int) -> None:
    """Refuse a digest function that is not offered; unset means "tell by the length of the hash".

    Raises:
        InvalidRequest: not SHA256 and not unset.
    """
    if number not in (UNSET, SHA256):
        raise InvalidRequest(f"digest function number {number} is not offered here, SHA256 (1) is")
