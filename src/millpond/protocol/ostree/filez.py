"""A stored file, checked while it comes: header, content, size and name.

The rule: content is inflated in bounded steps and never kept, so a file that claims to be small and is not costs a step
of memory and is refused where it passes its claim.
"""

from __future__ import annotations

import zlib
from hashlib import sha256

from millpond.core import limits
from millpond.core.errors import DigestMismatch, InvalidRequest, TooMuch
from millpond.protocol.ostree.objects import HEAD_BYTES, FileHeader, file_header_bytes, parse_file_header

_PIECE_BYTES = 64 * limits.KIB
"""Given to zlib at once: it copies what it has not used yet, in every step anew."""
_STEP_BYTES = 256 * limits.KIB
"""Inflated at once."""


class FilezCheck:
    """One ``.filez`` under this checksum, fed in pieces of any size.

    Both methods raise the same:

    Raises:
        DigestMismatch: it is another object's bytes.
        InvalidRequest: it is no stored file, or not whole.
        TooMuch: larger than any that is taken.
    """

    def __init__(self, checksum: str) -> None:
        self._checksum = checksum
        self._head = bytearray()
        self._header: FileHeader | None = None
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._hash = sha256()
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """The next bytes of it."""
        if self._header is None:
            self._head += piece
            if len(self._head) < HEAD_BYTES:
                return
            begin = HEAD_BYTES + file_header_bytes(bytes(self._head[:HEAD_BYTES]))
            if len(self._head) < begin:
                return
            self._begin(bytes(self._head[HEAD_BYTES:begin]))
            piece = bytes(self._head[begin:])
            self._head.clear()
        for at in range(0, len(piece), _PIECE_BYTES):
            self._inflate(piece[at : at + _PIECE_BYTES])

    def _begin(self, header: bytes) -> None:
        try:
            self._header = parse_file_header(header)
        except InvalidRequest as why:
            raise InvalidRequest(f"{self._checksum}.filez: {why}") from None
        if self._header.size > limits.OSTREE_CONTENT_BYTES:
            raise TooMuch(f"{self._checksum}.filez is too large: {limits.OSTREE_CONTENT_BYTES} bytes are the most")
        self._hash.update(self._header.hashed())

    def _inflate(self, piece: bytes) -> None:
        assert self._header is not None
        if self._header.is_symlink or self._inflater.eof:
            raise InvalidRequest(f"{self._checksum}.filez goes on after its end")
        while True:
            try:
                content = self._inflater.decompress(piece, _STEP_BYTES)
            except zlib.error:
                raise InvalidRequest(f"{self._checksum}.filez cannot be inflated") from None
            self._size += len(content)
            if self._size > self._header.size:
                raise InvalidRequest(
                    f"{self._checksum}.filez holds more than the {self._header.size} bytes that it says"
                )
            self._hash.update(content)
            if self._inflater.unused_data:
                raise InvalidRequest(f"{self._checksum}.filez goes on after its end")
            piece = self._inflater.unconsumed_tail
            if not piece and len(content) < _STEP_BYTES:
                return

    def finish(self) -> FileHeader:
        """All of it was fed; its header."""
        if self._header is None:
            raise InvalidRequest(f"{self._checksum}.filez ends within its header")
        if not self._header.is_symlink and not self._inflater.eof:
            raise InvalidRequest(f"{self._checksum}.filez ends within its content")
        if self._size != self._header.size:
            raise InvalidRequest(f"{self._checksum}.filez holds {self._size} bytes and says {self._header.size}")
        if self._hash.hexdigest() != self._checksum:
            raise DigestMismatch(f"{self._checksum}.filez is not what its name says")
        return self._header


def stored_file(header: FileHeader, content: bytes) -> tuple[str, bytes]:
    """A small file as an object: its checksum and its bytes."""
    checksum = sha256(header.hashed() + content).hexdigest()
    if header.is_symlink:
        return checksum, header.encode()
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return checksum, header.encode() + deflate.compress(content) + deflate.flush()
