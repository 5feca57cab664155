"""What a name stands for, and how it is written down.

The rule: a binding that was read and written back keeps what a newer Millpond put into it (``extra``).
"""

import hashlib
import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Any

from millpond.core import json_text
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest

# json.loads() looks for an encoding and for white space first: half of its time on a text as short as a binding.
_read_json = json.JSONDecoder().raw_decode


@dataclass(frozen=True, slots=True)
class Binding:
    """A name's digest and everything that must be held for it.

    Times are milliseconds since 1970 (UTC); sizes are bytes.
    """

    digest: Digest
    pushed_at_ms: int
    pushed_by: str = ""
    """The principal that pushed it; empty when nobody had to say who they are."""
    blobs: tuple[Digest, ...] = ()
    """Blobs that the pusher named as part of it."""
    directories: tuple[Digest, ...] = ()
    """Roots of trees that the pusher named as part of it."""
    expires_at_ms: int | None = None
    closure_bytes: int = 0
    """The size of all blobs that it needs, each counted once."""
    foreign: bool = False
    """Its blobs live in another store; it is answered without looking for them."""
    message: bytes = b""
    """The message that it was pushed as, where that says more than the digest."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields that this version does not know."""
    _stamp: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def stamp(self) -> bytes:
        """16 bytes that tell this binding from an earlier or later one of the same name."""
        if (stamp := self._stamp) is None:
            parts = [self.digest.key, self.pushed_at_ms.to_bytes(8, "little")]
            parts += [digest.key for digest in (*self.blobs, *self.directories)]
            stamp = hashlib.blake2b(b"".join(parts), digest_size=16).digest()
            object.__setattr__(self, "_stamp", stamp)
        return stamp

    def encode(self) -> bytes:
        """UTF-8 JSON. Fields with their default are left out."""
        fields: dict[str, Any] = {**self.extra, "digest": str(self.digest), "pushed_at_ms": self.pushed_at_ms}
        if self.pushed_by:
            fields["pushed_by"] = self.pushed_by
        if self.blobs:
            fields["blobs"] = [str(digest) for digest in self.blobs]
        if self.directories:
            fields["directories"] = [str(digest) for digest in self.directories]
        if self.expires_at_ms is not None:
            fields["expires_at_ms"] = self.expires_at_ms
        if self.closure_bytes:
            fields["closure_bytes"] = self.closure_bytes
        if self.foreign:
            fields["foreign"] = True
        if self.message:
            fields["message"] = b64encode(self.message).decode()
        return json_text.compact(fields).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> "Binding":
        """The inverse of :meth:`encode`.

        Raises:
            ValueError: not a binding (a caller that verified its checksum has found a bug).

        """
        text = encoded.decode()
        try:
            fields, end = _read_json(text)
            if end != len(text):
                raise ValueError("a binding is one JSON object and nothing after it")
            return cls(
                digest=_digest(fields.pop("digest")),
                pushed_at_ms=fields.pop("pushed_at_ms"),
                pushed_by=fields.pop("pushed_by", ""),
                blobs=tuple([_digest(text) for text in fields.pop("blobs", ())]),
                directories=tuple([_digest(text) for text in fields.pop("directories", ())]),
                expires_at_ms=fields.pop("expires_at_ms", None),
                closure_bytes=fields.pop("closure_bytes", 0),
                foreign=fields.pop("foreign", False),
                message=b64decode(fields.pop("message", ""), validate=True),
                extra=fields,
            )
        except (AttributeError, KeyError, TypeError, RecursionError, InvalidRequest) as error:
            raise ValueError(f"not a binding: {error}") from error


def _digest(text: str) -> Digest:
    hash_hex, _, size = text.partition("/")
    return Digest.parse(hash_hex, int(size))
