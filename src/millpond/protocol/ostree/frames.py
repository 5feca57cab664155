"""Frames of the push protocol: five bytes of header, and one GVariant of type ``a{sv}``.

The rule: what arrives is a message of its command, with all its keys, their types and nothing doubled, or it is refused
as a whole. The sender's byte order is the sender's choice, in every frame anew.

========== ===========================================================================
command    keys
========== ===========================================================================
info       ``mode`` i, ``refs`` a{ss} (ref to commit); the receiver adds ``pull_url`` s
update     for each ref: (ss), the old commit or 64 zeros, and the new one
putobjects none; a tar stream follows
status     ``result`` b, ``message`` s
done       none
========== ===========================================================================
"""

from __future__ import annotations

from millpond.core.errors import InvalidRequest
from millpond.protocol.gvariant import NotNormal, Variant, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeVar

    T = TypeVar("T")

INFO, UPDATE, PUTOBJECTS, STATUS, DONE = range(5)
COMMANDS = ("info", "update", "putobjects", "status", "done")

HEADER_BYTES = 5
VERSION = 1
BODY_BYTES = 0xFFFF
"""The header counts the body in 16 bits."""

ARCHIVE_MODE = 1
"""``OSTREE_REPO_MODE_ARCHIVE``; a client gives up when it is told another."""

_ORDERS = {b"l": "little", b"B": "big"}
_KEYS: dict[int, dict[str, str]] = {
    INFO: {"mode": "i", "refs": "a{ss}", "pull_url": "s"},
    STATUS: {"result": "b", "message": "s"},
    PUTOBJECTS: {},
    DONE: {},
}


def parse_header(header: bytes) -> tuple[str, int, int]:
    """Byte order, command, and how many bytes of body follow.

    Raises:
        InvalidRequest: no header of this protocol.
    """
    order = _ORDERS.get(header[:1])
    if len(header) != HEADER_BYTES or order is None:
        raise InvalidRequest("this is no push: a message beginning with 'l' or 'B' was expected")
    version, command = header[1], header[2]
    if version != VERSION:
        raise InvalidRequest(f"version {version} of the protocol is not spoken here: {VERSION} was expected")
    if command >= len(COMMANDS):
        raise InvalidRequest(f"there is no command {command}")
    return order, command, int.from_bytes(header[3:], "big" if order == "big" else "little")


def parse_body(command: int, body: bytes, order: str) -> dict[str, object]:
    """The keys of a message and their values; ``refs`` is a dictionary, too.

    Raises:
        InvalidRequest: not what this command carries.
    """
    name = COMMANDS[command]
    try:
        pairs = decode("a{sv}", body, order=order)
    except NotNormal as failure:
        raise InvalidRequest(f"a damaged message {name!r}: {failure}") from None
    assert isinstance(pairs, list)
    message = _unique(name, pairs)
    for key, variant in message.items():
        expected = "(ss)" if command == UPDATE else _KEYS[command].get(key)
        if variant.type != expected:
            raise InvalidRequest(f"a message {name!r} does not carry {key!r} as {variant.type!r}")
    if command in (INFO, STATUS):
        for key in _KEYS[command].keys() - message.keys() - {"pull_url"}:
            raise InvalidRequest(f"a message {name!r} lacks {key!r}")
    values = {key: variant.value for key, variant in message.items()}
    if command == INFO:
        assert isinstance(values["refs"], list)
        values["refs"] = _unique(name, values["refs"])
    return values


def _unique(name: str, pairs: list[tuple[str, T]]) -> dict[str, T]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest(f"a message {name!r} says the same twice")
    return found


# -- what is sent -----------------------------------------------------------------------------------------------------


def encode_message(command: int, pairs: list[tuple[str, Variant]], *, order: str = "little") -> bytes:
    """A message with its header.

    Raises:
        InvalidRequest: it is too long for the protocol, or a value has another type than its variant says.
    """
    try:
        body = encode("a{sv}", pairs, order=order)
    except NotNormal as failure:
        raise InvalidRequest(f"a message {COMMANDS[command]!r} cannot be made of this: {failure}") from None
    if len(body) > BODY_BYTES:
        raise InvalidRequest(f"a message {COMMANDS[command]!r} of {len(body)} bytes: {BODY_BYTES} are the most")
    mark = b"B" if order == "big" else b"l"
    return mark + bytes((VERSION, command)) + len(body).to_bytes(2, "big" if order == "big" else "little") + body


def info(mode: int, refs: Mapping[str, str], pull_url: str | None = None, *, order: str = "little") -> bytes:
    """Who one is: a client with the refs it asks for, or a receiver with those of them that it has."""
    pairs = [("mode", Variant("i", mode)), ("refs", Variant("a{ss}", list(refs.items())))]
    if pull_url is not None:
        pairs.append(("pull_url", Variant("s", pull_url)))
    return encode_message(INFO, pairs, order=order)


def update(commits: Mapping[str, tuple[str, str]], *, order: str = "little") -> bytes:
    """What is to change: for each ref the old commit and the new one."""
    return encode_message(UPDATE, [(ref, Variant("(ss)", pair)) for ref, pair in commits.items()], order=order)


def putobjects(*, order: str = "little") -> bytes:
    """A tar stream follows."""
    return encode_message(PUTOBJECTS, [], order=order)


def status(result: bool, message: str, *, order: str = "little") -> bytes:  # noqa: FBT001 — the two keys, in their order
    """Whether the update is welcome, and why not."""
    return encode_message(STATUS, [("result", Variant("b", result)), ("message", Variant("s", message))], order=order)


def done(*, order: str = "little") -> bytes:
    """The end, of either side."""
    return encode_message(DONE, [], order=order)
