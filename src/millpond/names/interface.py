"""The roles that names play for the rest of Millpond."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding


class NameIndex(Protocol):
    """Name -> binding. Small, transactional, and on disk before a call returns.

    Implementations prove themselves by passing ``tests/conformance/test_name_index.py``, not by inheriting.
    """

    def bind(self, bindings: Sequence[tuple[Name, Binding]]) -> None:
        """Write all of ``bindings`` or none of them, replacing what was there; durable on return (I2).

        Raises:
            NoSpace: the disk is full, or names hold their share of the quota. Nothing was written.

        """

    def resolve(self, name: Name) -> Binding:
        """What ``name`` is bound to. Sees at once what any process of this repository has bound.

        Raises:
            NameNotFound: not bound, or bound to a value that fails its checksum.

        """

    def unbind(self, name: Name, expected: Binding | None = None) -> bool:
        """Remove ``name``, if it is still bound to ``expected`` (when given). Whether anything was removed."""

    def names(self, namespace: Namespace | None = None) -> Iterator[tuple[Name, Binding]]:
        """All bindings, or those of one namespace, in no particular order. A snapshot: later changes are not seen."""

    def close(self) -> None:
        """Let go of files and threads. Repeating it is fine."""


class NumberSource(Protocol):
    """Numbers that are never given out twice, by any process, whatever crashes (I9)."""

    def take_numbers(self, count: int) -> range:
        """``count`` fresh numbers; durable before they are returned."""
