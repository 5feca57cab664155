"""How GVariant puts values of no fixed size behind one another: alignment, and offsets at the end of a container."""

from __future__ import annotations


class NotNormal(ValueError):
    """Bytes or values that are not the normal form of their type."""


def deeper(depth: int) -> int:
    """One level further down.

    Raises:
        NotNormal: there is none.
    """
    if depth <= 0:
        raise NotNormal("containers in containers without end")
    return depth - 1


def aligned(data: bytes, origin: int, at: int, alignment: int) -> int:
    """Where the next value begins, after zeros up to its alignment.

    Raises:
        NotNormal: after something else.
    """
    begin = at + (origin - at) % alignment
    if begin != at and any(data[at:begin]):
        raise NotNormal("padding that is not zero")
    return begin


def width_of(size: int) -> int:
    """How many bytes an offset has in a container of this size."""
    if size <= 0xFF:
        return 1
    if size <= 0xFFFF:
        return 2
    return 4 if size <= 0xFFFF_FFFF else 8


def framed_size(body: int, offsets: int) -> int:
    """The least size of a container with this body and so many offsets."""
    for width in (1, 2, 4):
        if width_of(body + offsets * width) == width:
            return body + offsets * width
    return body + offsets * 8


def framed(body: bytearray, ends: list[int]) -> bytes:
    """A container: its body, and where the parts of it end that have no fixed size."""
    if ends:
        width = (framed_size(len(body), len(ends)) - len(body)) // len(ends)
        body += b"".join(end.to_bytes(width, "little") for end in ends)
    return bytes(body)
