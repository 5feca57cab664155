"""The tar stream in which objects are sent: USTAR, GNU or PAX, as Python's and everybody's tar write it.

The rule: only what an object needs is understood: regular files with short names. All else that a tar can hold (links,
directories, devices, long names, sparse files) is refused, and of owners, modes and times nothing is used.
"""

from __future__ import annotations

from collections import namedtuple

from millpond.core.errors import InvalidRequest, TooMuch
from millpond.core.limits import OSTREE_PAX_BYTES

BLOCK_BYTES = 512
RECORD_BYTES = 10_240
"""A tar is padded to a multiple of this (POSIX pax, "-b blocksize": 20 blocks)."""

_MAGICS = (b"ustar\x0000", b"ustar  \x00")
_FORBIDDEN_MODE = 0o7002
"""Set-id, sticky and world-writable: clients send 0644, and who sends these wants something."""
_REGULAR, _PAX = (b"0", b"\0"), b"x"
_IGNORED_KEYS = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}


class Member(namedtuple("Member", ("name", "size", "is_pax"))):
    """A member's header; with ``is_pax`` it is about the next member."""

    __slots__ = ()
    name: str
    size: int
    is_pax: bool


def padding(size: int) -> int:
    """How many bytes follow a member of this size."""
    return -size % BLOCK_BYTES


def parse_member(block: bytes) -> Member | None:
    """A header; None is the first of the two blocks of zeros that end a tar.

    Raises:
        InvalidRequest: it is none, or of something that is no object.
        TooMuch: an extended header that is too long.
    """
    said = block[148:156]
    if not any(block):
        return None
    if _octal(said) != sum(block) - sum(said) + 8 * 0x20:
        raise InvalidRequest("the objects are no tar stream, or a damaged one")
    if block[257:265] not in _MAGICS:
        raise InvalidRequest("the objects are in a tar of an unknown format: USTAR, GNU or PAX was expected")
    kind, size, mode = block[156:157], _number(block[124:136]), _octal(block[100:108])
    if kind == _PAX:
        if size > OSTREE_PAX_BYTES:
            raise TooMuch(f"an extended header of {size} bytes: {OSTREE_PAX_BYTES} are the most")
        return Member("", size, is_pax=True)
    name = _text(block[:100])
    if kind not in _REGULAR:
        raise InvalidRequest(f"{name[:100]!r} in the tar stream is no regular file")
    if _text(block[157:257]) or _text(block[345:500] if block[257:265] == _MAGICS[0] else b""):
        raise InvalidRequest(f"{name[:100]!r} in the tar stream has a name that no object has")
    if mode & _FORBIDDEN_MODE:
        raise InvalidRequest(f"{name[:100]!r} in the tar stream has the mode {mode:04o}: 0644 was expected")
    return Member(name, size, is_pax=False)


def parse_pax(data: bytes) -> int | None:
    """The size that an extended header gives the next member, if it does.

    Raises:
        InvalidRequest: it is damaged, or would make something else of it.
    """
    size, at = None, 0
    while at < len(data):
        digits, _, _ = data[at : at + 6].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if length <= len(digits) + 3 or len(record) != length or not equals or not record.endswith(b"\n"):
            raise InvalidRequest("a damaged extended header in the tar stream")
        name = key.decode("ascii", "replace")
        if name == "size":
            if not value[:-1].isdigit() or len(value) > 20:
                raise InvalidRequest("a damaged size in an extended header of the tar stream")
            size = int(value)
        elif name not in _IGNORED_KEYS:
            raise InvalidRequest(f"an extended header of the tar stream has {name[:100]!r}, which no object needs")
        at += length
    return size


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _octal(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass  # an 8 or a 9
    raise InvalidRequest("a damaged number in the tar stream")


def _number(field: bytes) -> int:
    """Octal, or with the highest bit set in base 256, as GNU tar writes what has more than 33 bits."""
    if field[0] == 0x80:
        number = int.from_bytes(field[1:], "big")
        if number >> 63:
            raise InvalidRequest("a damaged number in the tar stream")
        return number
    return _octal(field)
