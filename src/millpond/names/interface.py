"""The roles that names play for the rest of Millpond."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding


class NameIndex(Protocol):
    """Name -> binding. Small, transactional, and on disk before a call returns.

    Safe to call from any thread. Every call may block for an fsync except :meth:`resolve` and a step of
    :meth:`names`, so the writing ones are not for an event loop (I11).
    Implementations prove themselves by passing ``tests/conformance/test_name_index.py``, not by inheriting.

    Raises:
        NotReady: from any call after :meth:`close`, or when the disk fails in a way that is not its being full.

    """

    def bind(self, bindings: Sequence[tuple[Name, Binding]]) -> None:
        """Write all of ``bindings`` or none of them, replacing what was there; durable on return (I2).

        Who has resolved one of them resolves all. Of two bindings of one name the last one stays.

        Raises:
            NoSpace: the disk is full, or names hold their share of the quota. Nothing was written.

        """

    def bind_later(self, bindings: Sequence[tuple[Name, Binding]]) -> "Future[None]":
        """As :meth:`bind`, without waiting: the future is done when the bindings are durable, or fails as bind would.

        Raises:
            NotReady: the index is closed.
            InvalidRequest: as :meth:`bind`.
        """

    def resolve(self, name: Name) -> Binding:
        """What ``name`` is bound to. Sees at once what any process of this repository has bound.

        Raises:
            NameNotFound: not bound, or bound to a value that fails its checksum.

        """

    def unbind(self, name: Name, expected: Binding | None = None) -> bool:
        """Remove ``name``, if it is still bound to ``expected`` (when given). Whether anything was removed.

        Of several callers that remove one binding, one is told so.

        Raises:
            NoSpace: even a removal needs room for a moment, and the disk has none. Nothing was removed.

        """

    def names(self, namespace: Namespace | None = None) -> Iterator[tuple[Name, Binding]]:
        """All bindings, or those of one namespace, in no particular order.

        Not one snapshot, so that a slow consumer holds nothing back: what is bound or removed meanwhile is seen or
        is not; every other name is seen exactly once. Values that fail their checksum, and namespaces that only a
        newer Millpond knows, are passed over.
        """

    def close(self) -> None:
        """Finish what was begun, then let go of files and threads. Repeating it is fine."""


class NumberSource(Protocol):
    """Numbers that are never given out twice, by any process, whatever crashes (I9)."""

    def take_numbers(self, count: int) -> range:
        """``count`` fresh numbers, all greater than 0 and than any taken before; durable before they are returned.

        Raises:
            NoSpace: the disk is full. No number was taken.
            NotReady: as for :class:`NameIndex`.

        """
