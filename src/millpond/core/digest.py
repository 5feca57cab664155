"""Digests: the only way to speak of a blob.

The rule: a :class:`Digest` that came from outside went through :meth:`Digest.parse`, so its hash is lower-case hex of
the right length and its size is not negative. Nothing from the network ever becomes part of a path, and with a parsed
digest it could not even if somebody tried.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum
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
        joined = "".join([pair[0] for pair in pairs])
        try:
            raw = bytes.fromhex(joined)
        except ValueError:
            raw = b""
        sound = raw.hex() == joined and all(len(pair[0]) == 64 and pair[1] >= 0 for pair in pairs)
        if not sound:
            return [cls.parse(*pair) for pair in pairs]
        return cls.from_hashes(joined, [pair[1] for pair in pairs])

    @classmethod
    def from_hashes(cls, joined_hex: str, sizes: Sequence[int]) -> list["Digest"]:
        """Digests whose hashes, written after each other, were found to be lower-case hex of the right length."""
        raw = bytes.fromhex(joined_hex)
        keys = [_SHA256_PREFIX + raw[at : at + 32] for at in range(0, len(raw), 32)]
        new = tuple.__new__
        return [new(cls, pair) for pair in zip(keys, sizes, strict=True)]

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
