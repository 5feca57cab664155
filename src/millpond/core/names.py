"""Names: what is mutable, small and precious.

A name is (instance, namespace, key). Each protocol generation is an adapter that picks a namespace and spells a key;
none has storage of its own. The rule: a name's parts are compared and hashed, never pasted into a path.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from millpond.core import limits
from millpond.core.errors import InvalidRequest

# remote_execution.proto, "resource names": a segment of an instance name must not be one of these.
RESERVED_SEGMENTS = frozenset(
    {"blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"}
)


_URN = "urn:fdc:buildstream.build:2020:"
ARTIFACT_URN, SOURCE_URN, REFERENCE_URN = f"{_URN}artifact:", f"{_URN}source:", f"{_URN}v1:"
"""How the URIs of BuildStream's artifacts and sources, and of BuildStream 1's refs, begin."""
_KINDS = {ARTIFACT_URN: "artifact", SOURCE_URN: "source", REFERENCE_URN: "ref"}
KINDS = (*_KINDS.values(), "asset")
"""What names are to people: BuildStream 2's artifacts and sources, BuildStream 1's refs, and all other assets."""


class Namespace(StrEnum):
    """Which kind of name. The value is part of the names format: never change one, only add."""

    ASSET_BLOB = "asset-blob"
    ASSET_DIRECTORY = "asset-directory"


@dataclass(frozen=True, slots=True)
class Name:
    """One name: ``instance`` (possibly empty), ``namespace``, ``key`` (any text)."""

    instance: str
    namespace: Namespace
    key: str
    _row: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def row(self) -> bytes:
        """32 bytes that stand for this name in every table; names may be far longer than a table's keys."""
        if (row := self._row) is None:
            parts = [part.encode() for part in (self.instance, self.namespace, self.key)]
            row = hashlib.sha256(b"".join([len(part).to_bytes(4, "little") + part for part in parts])).digest()
            object.__setattr__(self, "_row", row)
        return row


def check_instance(name: str) -> str:
    """``name``, if it can be an instance name.

    Raises:
        InvalidRequest: too long, an empty or reserved segment, or a control character.

    """
    if not name:
        return name
    if len(name) > limits.INSTANCE_CHARS:
        raise InvalidRequest(f"an instance name has at most {limits.INSTANCE_CHARS} characters")
    if not name.isprintable():
        raise InvalidRequest("an instance name must not contain control characters")
    for segment in name.split("/"):
        if not segment:
            raise InvalidRequest(f"instance name {name!r} has an empty segment: drop the extra '/'")
        if segment in RESERVED_SEGMENTS:
            raise InvalidRequest(f"instance name {name!r} contains {segment!r}, which resource names reserve")
    return name


def asset_key(uri: str, qualifiers: Iterable[tuple[str, str]] = ()) -> str:
    """The key of a remote asset: its URI and its qualifiers, whatever their order (remote_asset.proto).

    Without qualifiers the key is the URI itself, so that a listing reads well.
    """
    ordered = sorted(qualifiers)
    if not ordered:
        return uri
    return "\0".join([uri, *(f"{len(name)}:{name}={value}" for name, value in ordered)])


def uri_of(urn: str, key: str) -> str:
    """The URI of what an older protocol calls ``key``: both stand for one name (ADR 0010).

    ``urn`` is one of the three above.

    Raises:
        InvalidRequest: such a key cannot be.
    """
    longest = limits.URI_CHARS - len(urn)
    if not 0 < len(key) <= longest or "\0" in key:
        raise InvalidRequest(f"a key has 1 to {longest} characters, none of them NUL")
    return urn + key


def spoken(name: Name) -> tuple[str, str]:
    """The kind of ``name`` (one of ``KINDS``) and how people call it: ``("artifact", "project/element/key")``.

    A name that is none of BuildStream's is called by its URI, with its qualifiers behind it: ``URI [name=value]``.
    """
    for prefix, kind in _KINDS.items():
        if name.key.startswith(prefix) and "\0" not in name.key:
            return kind, name.key.removeprefix(prefix)
    uri, *qualifiers = name.key.split("\0")
    if not qualifiers:
        return "asset", uri
    return "asset", f"{uri} [{', '.join(qualifier.partition(':')[2] for qualifier in qualifiers)}]"


def element_of(name: Name) -> tuple[str, str, str, str]:
    """What ``name`` is one version of: instance, namespace, kind, and all of what it is called but the last part."""
    kind, text = spoken(name)
    return name.instance, name.namespace, kind, text.rpartition("/")[0]
