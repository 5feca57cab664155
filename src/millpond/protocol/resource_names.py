"""ByteStream resource names (remote_execution.proto, comments of ``ContentAddressableStorage``).

Reads:  ``[INSTANCE/]blobs/[DF/]HASH/SIZE`` and ``[INSTANCE/]compressed-blobs/COMPRESSOR/[DF/]HASH/SIZE``.
Writes: ``[INSTANCE/]uploads/UUID/`` before the same, and ``/ANYTHING`` after it.
BuildStream 1.1 reads and writes ``HASH/SIZE``, without an instance name.

The rule: a name is taken apart here, once, into validated values; no part of it is used as it came.
"""

from dataclasses import dataclass

from millpond.core import limits
from millpond.core.digest import Digest, DigestFunction
from millpond.core.errors import InvalidRequest
from millpond.core.names import check_instance

IDENTITY = "identity"
"""The compressor of ``blobs/…`` names."""

# remote_execution.proto: "a digest function … in its lower case form" stands in a name only where it cannot be told by
# the length of the hash; every known name is recognised, so that one that is not offered is refused by name.
_FUNCTIONS = frozenset(
    {"sha256", "sha1", "md5", "vso", "sha384", "sha512", "murmur3", "sha256tree", "blake3", "gitsha1"}
)
_READ_MARKERS = frozenset({"blobs", "compressed-blobs"})
_MARKERS = _READ_MARKERS | {"uploads"}


@dataclass(frozen=True, slots=True)
class ReadName:
    """What to read."""

    instance: str
    digest: Digest
    compressor: str


@dataclass(frozen=True, slots=True)
class WriteName:
    """What is written. ``upload`` is the client's id of the upload, which clients use for many blobs."""

    instance: str
    upload: str
    digest: Digest
    compressor: str


def instance_of(name: str) -> str:
    """The instance name in a resource name, as it came: for admission, which comes before all other checks (I7).

    Raises:
        InvalidRequest: it is no resource name at all.
    """
    parts = _split(name)
    if _is_bare(parts):
        return ""
    at = next((i for i, part in enumerate(parts) if part in _MARKERS), None)
    if at is None:
        raise _malformed(name, "[INSTANCE/]blobs/HASH/SIZE")
    return "/".join(parts[:at])


def parse_read(name: str) -> ReadName:
    """Take a read's resource name apart.

    Raises:
        InvalidRequest: it is none.
    """
    parts = _split(name)
    if _is_bare(parts):
        return ReadName("", _digest(name, parts), IDENTITY)
    at = next((i for i, part in enumerate(parts) if part in _READ_MARKERS), None)
    if at is None:
        raise _malformed(name, "[INSTANCE/]blobs/HASH/SIZE")
    compressor, digest, rest = _blob(name, parts[at:])
    if rest:
        raise _malformed(name, "[INSTANCE/]blobs/HASH/SIZE")
    return ReadName(_instance(parts[:at]), digest, compressor)


def parse_write(name: str) -> WriteName:
    """Take a write's resource name apart; what follows the size is the client's own and ignored.

    Raises:
        InvalidRequest: it is none.
    """
    parts = _split(name)
    if _is_bare(parts):
        return WriteName("", "", _digest(name, parts), IDENTITY)
    if "uploads" not in parts:
        raise _malformed(name, "[INSTANCE/]uploads/UUID/blobs/HASH/SIZE")
    at = parts.index("uploads")
    if len(parts) < at + 3 or not parts[at + 1] or parts[at + 2] not in _READ_MARKERS:
        raise _malformed(name, "[INSTANCE/]uploads/UUID/blobs/HASH/SIZE")
    compressor, digest, _ = _blob(name, parts[at + 2 :])
    return WriteName(_instance(parts[:at]), parts[at + 1], digest, compressor)


def _split(name: str) -> list[str]:
    if len(name) > limits.RESOURCE_NAME_CHARS:
        raise InvalidRequest(f"a resource name has at most {limits.RESOURCE_NAME_CHARS} characters")
    if "\0" in name:
        raise InvalidRequest("a resource name must not contain NUL")
    # moon sends "/blobs/…" for the empty instance name.
    return name.removeprefix("/").split("/")


def _is_bare(parts: list[str]) -> bool:
    """Whether these are the parts of ``HASH/SIZE``: two, of which the first could be no other."""
    return len(parts) == 2 and len(parts[0]) == 2 * DigestFunction.SHA256.hash_bytes and not _MARKERS & {*parts}


def _instance(parts: list[str]) -> str:
    return check_instance("/".join(parts))


def _blob(name: str, parts: list[str]) -> tuple[str, Digest, list[str]]:
    marker, *parts = parts
    compressor = IDENTITY
    if marker == "compressed-blobs":
        if not parts or not parts[0]:
            raise _malformed(name, "[INSTANCE/]compressed-blobs/COMPRESSOR/HASH/SIZE")
        compressor, *parts = parts
    if parts and parts[0] in _FUNCTIONS:
        if parts[0] != DigestFunction.SHA256.name.lower():
            raise InvalidRequest(f"digest function {parts[0]} is not offered here, sha256 is")
        parts = parts[1:]
    return compressor, _digest(name, parts), parts[2:]


def _digest(name: str, parts: list[str]) -> Digest:
    if len(parts) < 2 or not (parts[1].isascii() and parts[1].isdigit() and len(parts[1]) < 20):
        raise _malformed(name, "…/HASH/SIZE")
    return Digest.parse(parts[0], int(parts[1]))


def _malformed(name: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"resource name {name[:200]!r} is not of the form {expected}")
