"""Digests: the only way to speak of a blob.

The rule: a :class:`Digest` that came from outside went through :meth:`Digest.parse`, so its hash is lower-case hex of
the right length and its size is not negative. Nothing from the network ever becomes part of a path, and with a parsed
digest it could not even if somebody tried.
"""

import hashlib
import struct
from collections.abc import Sequence
from enum import IntEnum
from itertools import repeat
from typing import Any, NamedTuple

from millpond.core.errors import InvalidRequest

_MAX_SIZE_BYTES = 2**63 - 1  # remote_execution.proto: Digest.size_bytes is an int64


class DigestFunction(IntEnum):
    """The functions Millpond offers, numbered as remote_execution.proto, ``DigestFunction.Value``."""

    SHA256 = 1

    @property
    def hash_bytes(self) -> int:
        """Length of a raw hash, in bytes."""
        return 32

    def hasher(self) -> "hashlib._Hash":
        """A running hash of this function."""
        return hashlib.sha256()

    def hash_of(self, data: Any) -> bytes:
        """The raw hash of ``data`` (any bytes-like object)."""
        return hashlib.sha256(data).digest()


_SHA256_PREFIX = bytes([DigestFunction.SHA256])
_SHA256_HEX = _SHA256_PREFIX.hex().encode()
_SHA256_KEY = struct.Struct("33s")


class Digest(NamedTuple):
    """A blob's hash and size.

    A tuple and not a dataclass: batches of tens of thousands are made per call, and a tuple costs a third.
    ``key`` is what indexes use: one byte for the digest function, then the raw hash.
    """

    key: bytes
    size_bytes: int

    @classmethod
    def parse(cls, hash_hex: str, size_bytes: int, function: DigestFunction = DigestFunction.SHA256) -> "Digest":
        """A digest as it arrives in a message or a resource name.

        Raises:
            InvalidRequest: the hash is not lower-case hex of the function's length, or the size is negative.

        """
        try:
            raw = bytes.fromhex(hash_hex)
        except ValueError:
            raw = b""
        # fromhex() forgives upper case and white space; hex() is the one true spelling.
        if len(raw) != function.hash_bytes or raw.hex() != hash_hex:
            raise InvalidRequest(
                f"a {function.name} hash must be {2 * function.hash_bytes} lower-case hex digits, got {hash_hex[:80]!r}"
            )
        if not 0 <= size_bytes <= _MAX_SIZE_BYTES:
            raise InvalidRequest(f"the size of blob {hash_hex} must not be negative, got {size_bytes}")
        return cls(_SHA256_PREFIX + raw, size_bytes)

    @classmethod
    def parse_many(cls, pairs: Sequence[tuple[str, int]]) -> list["Digest"]:
        """The digests of (hash, size) pairs; what :meth:`parse` would say of each, at a quarter of the cost.

        Raises:
            InvalidRequest: as :meth:`parse`, about the first bad one.
        """
        try:
            return cls.from_hashes([pair[0].encode() for pair in pairs], [pair[1] for pair in pairs])
        except ValueError:
            return [cls.parse(*pair) for pair in pairs]

    @classmethod
    def from_hashes(cls, hashes: Sequence[bytes], sizes: Sequence[int]) -> list["Digest"]:
        """The digests of SHA256 hashes in hex and their sizes, at the cost of a few passes over all of them.

        Raises:
            ValueError: one of them is not lower-case hex of 64 digits, or a size is none. Which, :meth:`parse` says.
        """
        if not hashes:
            return []
        # The key's first byte goes before each hash, so that a key is one slice of the whole.
        joined = (_SHA256_HEX + _SHA256_HEX.join(hashes)).decode()
        raw = bytes.fromhex(joined)
        if raw.hex() != joined or set(map(len, hashes)) != {64} or not 0 <= min(sizes) <= max(sizes) <= _MAX_SIZE_BYTES:
            raise ValueError("not the hashes and sizes of digests")
        keys = [key for (key,) in _SHA256_KEY.iter_unpack(raw)]
        return list(map(tuple.__new__, repeat(cls), zip(keys, sizes, strict=True)))

    @classmethod
    def of(cls, data: Any, function: DigestFunction = DigestFunction.SHA256) -> "Digest":
        """The digest of ``data`` (any bytes-like object)."""
        return cls(bytes([function]) + function.hash_of(data), len(data))

    @property
    def function(self) -> DigestFunction:
        """The digest function."""
        return DigestFunction(self.key[0])

    @property
    def hash(self) -> str:
        """The hash in lower-case hex."""
        return self.key[1:].hex()

    def matches(self, data: Any) -> bool:
        """Whether ``data`` is the blob of this digest."""
        return len(data) == self.size_bytes and self.function.hash_of(data) == self.key[1:]

    def __str__(self) -> str:
        """``HASH/SIZE``, as in a resource name."""
        return f"{self.hash}/{self.size_bytes}"


EMPTY = Digest.of(b"")
"""The empty blob is always present and never stored (remote_execution.proto, ``Digest``)."""
