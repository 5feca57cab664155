"""Names in an OSTree repository: refs, checksums, and where objects lie.

The rule: what is not certainly a name is refused, whoever says it; a name never leads out of the repository.
"""

from __future__ import annotations

from millpond.core.errors import InvalidRequest
from millpond.core.limits import OSTREE_REF_CHARS, OSTREE_REF_PART_CHARS

NOTHING = "0" * 64
"""In place of a commit that there is none of."""

METADATA_TYPES = ("commit", "dirtree", "dirmeta")
"""Objects whose name is the SHA-256 of their file."""
OBJECT_TYPES = (*METADATA_TYPES, "filez")
"""Objects that can be verified."""
UNVERIFIED_TYPES = ("commitmeta", "sig", "sizes2")
"""What stands beside a commit and is in no hash. Old clients send the last two; nobody asks for them."""

_HEX = frozenset("0123456789abcdef")
_FIRST = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_LATER = _FIRST | frozenset("-.")


def is_checksum(text: str) -> bool:
    """Whether it is a SHA-256 in lower-case hexadecimal."""
    return len(text) == 64 and _HEX.issuperset(text)


def check_checksum(text: str) -> str:
    """The checksum as it is.

    Raises:
        InvalidRequest: it is none.
    """
    if not is_checksum(text):
        raise InvalidRequest(f"{_shown(text)} is no checksum: 64 digits 0-9a-f were expected")
    return text


def is_ref(text: str) -> bool:
    """Whether libostree would take it for a ref, and a file system for a path."""
    return 0 < len(text) <= OSTREE_REF_CHARS and all(
        0 < len(part) <= OSTREE_REF_PART_CHARS and part[0] in _FIRST and _LATER.issuperset(part)
        for part in text.split("/")
    )


def check_ref(text: str) -> str:
    """The ref as it is.

    Raises:
        InvalidRequest: it is none.
    """
    if not is_ref(text):
        raise InvalidRequest(
            f"{_shown(text)} is no ref: parts of letters, digits, '_', '-' and '.' joined by '/' were expected, none"
            f" beginning with '-' or '.' or longer than {OSTREE_REF_PART_CHARS}, and {OSTREE_REF_CHARS} characters in all"
        )
    return text


def parse_object(name: str) -> tuple[str, str]:
    """``<checksum>.<type>``, as a tar member is named, in its two halves.

    Raises:
        InvalidRequest: it names no object.
    """
    checksum, _, kind = name.partition(".")
    if not is_checksum(checksum) or kind not in OBJECT_TYPES + UNVERIFIED_TYPES:
        raise InvalidRequest(f"{_shown(name)} names no object: a checksum, a dot and a type were expected")
    return checksum, kind


def loose_path(checksum: str, kind: str) -> str:
    """Where an object lies, from the root of its repository."""
    return f"objects/{checksum[:2]}/{checksum[2:]}.{kind}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:97] + "...")
