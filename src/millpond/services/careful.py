"""Looking at blobs so that their absence can be believed.

A store answers None for a blob that is not held and for one that could not be read now. Who removes something because a
blob is missing must tell the two apart. The rule: not held is what the index says; everything else is unknown.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, InvalidRequest, MillpondError, TooMuch
from millpond.core.names import Name
from millpond.names.binding import Binding
from millpond.services import closure
from millpond.services.closure import Closure
from millpond.store.interface import BlobStore, Bytes, OpenBlob


class Unknown(Exception):
    """Whether a closure is whole cannot be said now."""


class Careful:
    """Walks closures. ``blobs`` promises nothing and notes no use."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = _Believable(blobs)

    def closure(self, name: Name, binding: Binding) -> Closure | None:
        """All blobs that the binding needs, or None when one of them is not held.

        Raises:
            Unknown: something could not be read.
        """
        try:
            return closure.walk(self._blobs, name.namespace, name.key, binding)  # type: ignore[arg-type]  # reads only
        except (IncompleteClosure, InvalidRequest, TooMuch):
            return None
        except MillpondError as why:
            raise Unknown(str(why)) from why


class _Believable:
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def find_missing(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Digest]:
        return self._blobs.find_missing(digests, wait=wait)

    def open(self, digest: Digest, *, wait: bool = True) -> AbstractContextManager[OpenBlob]:
        return self._blobs.open(digest, wait=wait)

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        contents = self._blobs.read_many(digests, wait=wait)
        unread = [digest for digest, content in zip(digests, contents, strict=True) if content is None]
        if unread and len(self._blobs.find_missing(unread)) < len(unread):
            raise Unknown("a blob that is held could not be read")
        return contents
