"""The gate of the gRPC edge: is the cache open, and what may be asked of it.

The rule (I7): every RPC begins at the gate, before it looks at a single argument. Who is calling was asked even before,
by the connection, for all services, those that come with gRPC as well.
"""

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.errors import InvalidRequest, NotReady
from millpond.services.access import Admission

SHA256 = re_pb2.DigestFunction.SHA256
UNSET = re_pb2.DigestFunction.UNKNOWN


class Gate:
    """Knows the admission once the repository is open; until then everybody is told to come again."""

    def __init__(self) -> None:
        self._admission: Admission | None = None

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


def check_function(number: int) -> None:
    """Refuse a digest function that is not offered; unset means "tell by the length of the hash".

    Raises:
        InvalidRequest: not SHA256 and not unset.
    """
    if number not in (UNSET, SHA256):
        raise InvalidRequest(f"digest function number {number} is not offered here, SHA256 (1) is")
