"""gRPC over HTTP/2 without I/O: how messages lie in a stream, and how a call's end is written.

The rule: what is too much is refused when it is announced, not when it has come; and nothing unpacks to more than a
message may have.

Source: gRPC's own ``doc/PROTOCOL-HTTP2.md`` and ``doc/compression.md``.
"""

import re
import zlib
from collections.abc import Sequence
from urllib.parse import quote_from_bytes

PREFIX_BYTES = 5
"""Before each message: a byte that says whether it is packed, and its length (four bytes, big-endian)."""

_PART_BYTES = 4096
"""A part of a message that is shorter is copied to the others: each object of its own takes hundreds of bytes."""

IDENTITY = b"identity"
ENCODINGS = b"identity, deflate, gzip"
"""``grpc-accept-encoding``: what a peer may pack its messages with."""

_WINDOW_BITS = {b"deflate": zlib.MAX_WBITS, b"gzip": zlib.MAX_WBITS | 16}
# "TimeoutValue" has at most 8 digits.
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# "Percent-Encoded": %x20-%x24 / %x26-%x7E stand for themselves.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class MessageTooLarge(Exception):
    """A message that is, or unpacks to, more than is accepted."""


class UnreadableMessage(Exception):
    """A message that is not packed as its call says."""


class UnknownEncoding(Exception):
    """A call whose messages are packed in a way that is not among ``ENCODINGS``."""


class Packed(bytes):
    """A message as it came, that is to be unpacked when somebody takes it: it may be a thousand times as long then."""

    __slots__ = ()

    @property
    def most_bytes(self) -> int:
        """The most that it unpacks to (zlib's technical notes: 1032 to 1)."""
        return 1032 * len(self)


class Deframer:
    """Cuts the data of one stream into messages.

    ``limit_bytes``: the largest message. ``encoding``: the call's ``grpc-encoding``.

    Raises:
        UnknownEncoding: nothing of the call could be read.
    """

    __slots__ = ("_buffer", "_encoding", "_have", "_limit_bytes", "_need", "_packed", "in_progress_bytes")

    in_progress_bytes: int
    """What the message that is coming takes in the stream, its prefix included; 0 before that is known."""

    def __init__(self, limit_bytes: int, encoding: bytes = IDENTITY) -> None:
        if encoding != IDENTITY and encoding not in _WINDOW_BITS:
            raise UnknownEncoding
        self._limit_bytes = limit_bytes
        self._encoding = encoding
        self._buffer: list[bytearray | memoryview] = []
        self._have = 0
        self._need = PREFIX_BYTES
        self._packed = False
        self.in_progress_bytes = 0

    @property
    def pending_bytes(self) -> int:
        """How much of the data so far belongs to a message that has not ended."""
        return self._have + (PREFIX_BYTES if self.in_progress_bytes else 0)

    @property
    def is_empty(self) -> bool:
        """Whether the data so far ends with a message."""
        return not self._have and not self.in_progress_bytes

    def feed(self, data: bytes) -> Sequence[bytes]:
        """The messages that end in ``data``.

        Raises:
            MessageTooLarge: one is announced that is.
            UnreadableMessage: one is packed and must not be.
        """
        # Most messages come alone and whole.
        if self.is_empty and len(data) >= PREFIX_BYTES and not data[0]:
            length = int.from_bytes(data[1:PREFIX_BYTES])
            if length == len(data) - PREFIX_BYTES:
                self._check(length)
                return (data[PREFIX_BYTES:],)
        return self._cut(memoryview(data))

    def _cut(self, rest: memoryview) -> list[bytes]:
        messages: list[bytes] = []
        while True:
            missing = self._need - self._have
            if len(rest) < missing:
                if rest:
                    self._keep(rest)
                return messages
            whole, rest = b"".join((*self._buffer, rest[:missing])), rest[missing:]
            self._buffer, self._have = [], 0
            if self.in_progress_bytes:
                messages.append(Packed(whole) if self._packed else whole)
                self._need, self.in_progress_bytes = PREFIX_BYTES, 0
            else:
                self._begin(whole)

    def _keep(self, part: memoryview) -> None:
        self._have += len(part)
        if len(part) >= _PART_BYTES:
            self._buffer.append(part)
        elif self._buffer and isinstance(self._buffer[-1], bytearray):
            self._buffer[-1] += part
        else:
            self._buffer.append(bytearray(part))

    def _begin(self, prefix: bytes) -> None:
        length = int.from_bytes(prefix[1:])
        self._check(length)
        if prefix[0] > 1 or (prefix[0] and self._encoding == IDENTITY):
            raise UnreadableMessage
        self._packed = bool(prefix[0])
        self._need, self.in_progress_bytes = length, PREFIX_BYTES + length

    def _check(self, length: int) -> None:
        if length > self._limit_bytes:
            raise MessageTooLarge

    def unpacked(self, packed: bytes) -> bytes:
        """A message for whoever takes it.

        Raises:
            MessageTooLarge: it is.
            UnreadableMessage: it cannot be unpacked.
        """
        if not isinstance(packed, Packed):
            return packed
        stream = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        try:
            message = stream.decompress(packed, self._limit_bytes + 1)
        except zlib.error:
            raise UnreadableMessage from None
        if len(message) > self._limit_bytes:
            raise MessageTooLarge
        if not stream.eof or stream.unused_data:
            raise UnreadableMessage
        return message


def prefix_of(length: int) -> bytes:
    """What stands before a message that is not packed."""
    return b"\0" + length.to_bytes(4)


def timeout_seconds(value: bytes) -> float:
    """A ``grpc-timeout``.

    Raises:
        ValueError: it is none.
    """
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        raise ValueError("a grpc-timeout is up to eight digits and a unit")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def status_message(text: str) -> bytes:
    """``text`` as a ``grpc-message``."""
    return quote_from_bytes(text.encode(errors="replace"), safe=_PLAIN).encode("ascii")
