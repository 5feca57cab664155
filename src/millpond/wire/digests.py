"""Digests between messages and the rest of Millpond, one at a time; ``layout.py`` is for lists of them."""

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest


def digest_of(message: re_pb2.Digest) -> Digest:
    """The digest in ``message``.

    Raises:
        InvalidRequest: it is none.
    """
    return Digest.parse(message.hash, message.size_bytes)


def digest_message(digest: Digest) -> re_pb2.Digest:
    """``digest`` as a message."""
    return re_pb2.Digest(hash=digest.hash, size_bytes=digest.size_bytes)
