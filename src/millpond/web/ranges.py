"""Which part of a file a request asks for (RFC 9110 §14).

The rule: whatever is not one well-formed range of bytes counts as no range at all, which the RFC allows (§14.2), and
the whole file is the answer. Several ranges are such a case: they may cost a server more than they bring anybody.
"""

import re
from dataclasses import dataclass

_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` bytes from ``offset`` on."""

    offset: int
    count: int


class NotSatisfiable(ValueError):
    """A range that begins beyond the end; answered 416."""


def part_of(header: str | None, size_bytes: int) -> Part | None:
    """The part that ``header`` asks for of so many bytes; None: all of it.

    Raises:
        NotSatisfiable: there is nothing of it.
    """
    match = _ONE_RANGE.fullmatch(header) if header else None
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many bytes (§14.1.2, suffix-range)
        count = min(int(match[2]), size_bytes)
        if count == 0:
            raise NotSatisfiable(header)
        return Part(size_bytes - count, count)
    first = int(match[1])
    last = int(match[2]) if match[2] else size_bytes - 1
    if match[2] and last < first:
        return None  # not valid (§14.1.1)
    if first >= size_bytes:
        raise NotSatisfiable(header)
    return Part(first, min(last, size_bytes - 1) - first + 1)
