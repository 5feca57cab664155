"""The summary: which refs there are, and which commit each stands for.

The rule: it is written as libostree writes it, byte by byte, but for one key: ``ostree.summary.indexed-deltas`` would
send every pull to look for deltas that there are none of. The *size of a commit is in the machine's own order*, little
here, all other numbers are big-endian; libostree is like that.
"""

from __future__ import annotations

from collections import namedtuple

from millpond.core.errors import InvalidRequest
from millpond.protocol.gvariant import NotNormal, Variant, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SUMMARY_TYPE = "(a(s(taya{sv}))a{sv})"

_TIMESTAMP = "ostree.commit.timestamp"
_MODE = "ostree.summary.mode"
_MODIFIED = "ostree.summary.last-modified"
_TOMBSTONES = "ostree.summary.tombstone-commits"


class Listed(namedtuple("Listed", ("commit", "size", "timestamp"))):
    """What the summary says of a ref: its commit, the size of that object, and its time in seconds since 1970."""

    __slots__ = ()
    commit: str
    size: int
    timestamp: int


class Summary(namedtuple("Summary", ("refs", "modified", "has_tombstones"))):
    """All of a summary; ``modified`` in seconds since 1970."""

    __slots__ = ()
    refs: Mapping[str, Listed]
    modified: int
    has_tombstones: bool


def encode_summary(summary: Summary) -> bytes:
    """The file's bytes: refs sorted by theirs."""
    rows = [
        (ref, (listed.size, bytes.fromhex(listed.commit), [(_TIMESTAMP, Variant("t", _swapped(listed.timestamp)))]))
        for ref, listed in sorted(summary.refs.items())  # refs are ASCII: text sorts as bytes do
    ]
    extra = [
        (_MODE, Variant("s", "archive-z2")),
        (_MODIFIED, Variant("t", _swapped(summary.modified))),
        (_TOMBSTONES, Variant("b", summary.has_tombstones)),
    ]
    return encode(SUMMARY_TYPE, (rows, extra))


def decode_summary(data: bytes) -> Summary:
    """What a file says, libostree's or ours.

    Raises:
        InvalidRequest: it is no summary.
    """
    try:
        value = decode(SUMMARY_TYPE, data)
    except NotNormal as failure:
        raise InvalidRequest(f"a damaged summary: {failure}") from None
    assert isinstance(value, tuple)
    rows, extra = value
    refs = {}
    for ref, (size, commit, more) in rows:
        refs[ref] = Listed(commit.hex(), size, _number(dict(more), _TIMESTAMP))
    said = dict(extra)
    tombstones = said.get(_TOMBSTONES)
    return Summary(refs, _number(said, _MODIFIED), tombstones is not None and tombstones.value is True)


def _number(said: dict[str, Variant], key: str) -> int:
    found = said.get(key)
    if found is None or found.type != "t":
        return 0
    assert isinstance(found.value, int)
    return _swapped(found.value)


def _swapped(number: int) -> int:
    return int.from_bytes(number.to_bytes(8, "big"), "little")
