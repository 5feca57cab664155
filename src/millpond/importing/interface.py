"""What an old store is to those who bring its content here.

The rule: an old store is only read. Nothing in it is followed out of it, and whatever is found there is a claim: its
times are believed, its bytes never before they were verified.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from millpond.core.digest import Digest
from millpond.core.names import Namespace


class Reason(StrEnum):
    """Why something was left where it was. The values are part of what ``millpond import --json`` prints."""

    DAMAGED = "damaged"
    """Something that it needs is there and is not what its digest says."""
    INCOMPLETE = "incomplete"
    """Something that it needs is not there."""
    GARBAGE = "garbage"
    """Its file holds no reference."""
    ODD = "odd-file"
    """It is no plain file with a name of text: a symbolic link, a pipe, a tree that is too deep."""
    UNREADABLE = "unreadable"
    """The file system refused to read it."""
    UNUSABLE = "unusable-name"
    """No client could ask for a name like this."""
    NO_ROOM = "no-room"
    """The quota is reached by what was used later."""
    EXPIRED = "expired"
    """Its time was over before."""
    BOUND = "bound-here"
    """The name stands for something else here."""
    VANISHED = "vanished"
    """The old server removed it meanwhile."""

    @property
    def is_loss(self) -> bool:
        """Whether somebody may miss what was left behind."""
        return self not in (Reason.EXPIRED, Reason.BOUND, Reason.VANISHED)


class Left(Exception):
    """Something cannot be had from the old store."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail


class Entry(NamedTuple):
    """A name that was listed and not read yet."""

    path: str
    """Where it lies, below the old store's directory."""
    used_ms: int
    """When it was last used or pushed, as the old server kept it; ms since 1970."""
    trouble: Reason | None = None
    """Why it need not be read."""


@dataclass(frozen=True, slots=True)
class OldName:
    """What a name stands for in the old store."""

    uri: str
    namespace: Namespace
    digest: Digest
    qualifiers: tuple[tuple[str, str], ...] = ()
    expires_at_ms: int | None = None
    message: bytes | None = None
    """The blob of ``digest`` where the old store keeps it with its names and not with its blobs."""


class OldStore(Protocol):
    """One old store. For one thread. It may be in use by its server all the while.

    Implementations prove themselves by passing ``tests/conformance/test_old_store.py``, not by inheriting.
    """

    def entries(self) -> Iterator[Entry]:
        """Every name, in no particular order, with the time of its last use."""

    def read(self, entry: Entry) -> OldName:
        """What it stands for.

        Raises:
            Left: it cannot be told.
        """

    def size_bytes(self, digest: Digest) -> int | None:
        """The size of what lies in the place of a blob, or None where nothing does, or no plain file."""

    def chunks(self, digest: Digest) -> Iterator[bytes]:
        """What lies in the place of a blob, in pieces of at most ``limits.CHUNK_BYTES``. Not verified.

        It is never more than ``digest.size_bytes``.

        Raises:
            Left: it is not there, its size is another, or it cannot be read.
        """

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Every blob and when it was last used (ms since 1970), whether a name needs it or not, in no particular order."""

    def close(self) -> None:
        """Let go of files. Repeating it is fine."""
