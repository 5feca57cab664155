"""The rows of the index's table ``closures``: of which binding, and where its closure lies.

``Name.row`` -> the binding's stamp (16 bytes), then for each segment in which some of the closure lies its number and its
incarnation (4 bytes each, little endian).
"""

import struct
from collections.abc import Iterable

_PLACE = struct.Struct("<II")
_STAMP_BYTES = 16

Place = tuple[int, int]
"""A segment's number, and which incarnation of it."""


def encoded(stamp: bytes, places: Iterable[Place]) -> bytes:
    """The row of a binding with this stamp."""
    return stamp + b"".join([_PLACE.pack(*place) for place in places])


def is_of(value: bytes, stamp: bytes) -> bool:
    """Whether the row was written for the binding with this stamp."""
    return value[:_STAMP_BYTES] == stamp


def places_of(value: bytes) -> list[Place]:
    """Where the closure lies."""
    return list(_PLACE.iter_unpack(value[_STAMP_BYTES:]))
