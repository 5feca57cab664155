"""The closed family of failures that may be told to a peer.

The rule: a message in this family is written for the person at the other end. It names the thing, says what was
expected and, where there is one, the next step; it never quotes a path, a key or an exception of ours. Anything that
is raised and is *not* in the family is a bug: the edge logs it under an incident number and sends only the number.
"""


class MillpondError(Exception):
    """The root of the family. Never raised itself."""


class InvalidRequest(MillpondError):
    """An argument that can never be right, whatever the cache holds."""


class DigestMismatch(InvalidRequest):
    """Bytes that are not what their digest says."""


class OffsetOutOfRange(MillpondError):
    """A read from beyond the end of a blob (bytestream.proto, ``ReadRequest.read_offset``)."""


class BlobNotFound(MillpondError):
    """A blob that is not held, or is held but corrupt."""


class NameNotFound(MillpondError):
    """A name that is not bound, has expired, or is bound to something that is no longer whole."""


class InstanceNotServed(MillpondError):
    """An instance name that this server does not serve."""


class NotAuthenticated(MillpondError):
    """A peer that must say who it is before anything else."""


class NotPermitted(MillpondError):
    """A peer that is known, or need not be, and lacks the right."""


class IncompleteClosure(MillpondError):
    """A name whose blobs are not all held: it is not written."""


class NoSpace(MillpondError):
    """The store is full and nothing can give way."""


class TooMuch(MillpondError):
    """A limit of ``core.limits`` that protects the other clients."""


class Stalled(MillpondError):
    """A peer that stopped sending in the middle of a call."""


class NotServed(MillpondError):
    """A method that exists in the API and is not offered here."""


class NotReady(MillpondError):
    """The server cannot answer now and will soon: starting, rebuilding, stopping."""


class RefusedToStart(MillpondError):
    """A setting, a key file or a repository that cannot be used as it is. Ends the program with exit status 2."""


class WouldBlock(Exception):
    """The answer needs a disk read or a lock that is taken; ask again with ``wait=True`` off the event loop (I11)."""
