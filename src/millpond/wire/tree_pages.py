"""GetTree's pages (remote_execution.proto, ``GetTree``).

``page_size`` is a cap on the directories of the whole answer; a ``page_token`` says how many were sent before. A walk's
order never changes, so a number is token enough. Messages within one answer are cut by bytes.
"""

from collections.abc import Iterator

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest
from millpond.services.reading import Reader
from millpond.store.interface import Bytes
from millpond.wire import layout


class TreePages:
    """The encoded ``GetTreeResponse`` messages of one call."""

    def __init__(self, reader: Reader, root: Digest, *, page_size: int, page_token: str) -> None:
        """Take the request's fields.

        Raises:
            InvalidRequest: a negative page size, or a token that this server did not give.
        """
        if page_size < 0:
            raise InvalidRequest("page_size must not be negative")
        if page_token and not (page_token.isascii() and page_token.isdigit() and len(page_token) < 12):
            raise InvalidRequest("page_token is not one that this server gave")
        self._directories = reader.tree(root)
        self._skip = int(page_token or 0)
        self._end = self._skip + page_size if page_size else None
        self._held_back: Bytes | None = None
        self._seen = 0
        self._done = False
        self._first = True

    def next_page(self) -> bytes | None:
        """The next message, or None after the last. Blocks."""
        if self._done:
            return None
        parts: list[bytes] = []
        size = 0
        token = b""
        for content in self._contents():
            if parts and size + len(content) > limits.TREE_PAGE_BYTES:
                self._held_back = content
                break
            self._seen += 1
            if self._seen <= self._skip:
                continue
            parts += (b"\x0a", layout.varint(len(content)), bytes(content))
            size += len(content)
            if self._seen == self._end:
                token = self._token_if_more()
                self._done = True
                break
        else:
            self._done = True
        if not parts and not self._first:
            return None
        self._first = False
        return b"".join(parts) + token

    def _contents(self) -> Iterator[Bytes]:
        if self._held_back is not None:
            held_back, self._held_back = self._held_back, None
            yield held_back
        for _, content in self._directories:
            yield content

    def _token_if_more(self) -> bytes:
        if next(self._directories, None) is None:
            return b""
        token = str(self._end).encode()
        return b"\x12" + layout.varint(len(token)) + token
