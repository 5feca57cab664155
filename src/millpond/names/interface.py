"""The roles that names play for the rest of Millpond."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from millpond.core.names import Name, Namespace
from millpond.core.outcome import Outcome
from millpond.names.binding import Binding
from millpond.names.notes import Broken, Pin, PinState


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

    def bind_later(
        self,
        bindings: Sequence[tuple[Name, Binding]],
        *,
        overwrite: bool = True,
        first: Callable[[], None] | None = None,
    ) -> "Outcome[None]":
        """As :meth:`bind`, without waiting: the outcome is there when the bindings are durable, or fails as bind would.

        Without ``overwrite`` a name that is bound stays as it is, whoever bound it in this very moment. ``first`` is called
        once, before they are written, perhaps by another thread, and must not wait for long. What it raises is the
        outcome, and nothing is written then.

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


class ChangedNames(Protocol):
    """Which names changed of late. A *position* is that of the last change that was seen."""

    def position(self) -> int:
        """That of the last change, 0 before the first."""

    def since(self, position: int) -> tuple[int, list[bytes]] | None:
        """The position now and the rows that changed after ``position``, each once; None when nobody knows any more."""


class PinTable(Protocol):
    """The pins of a repository; durable when a call returns."""

    def all(self) -> list[Pin]:
        """Every pin, ended ones too, the oldest first."""

    def add(self, pin: Pin) -> bool:
        """Write ``pin``, in place of one with the same pattern; whether there was one."""

    def remove(self, patterns: Iterable[str]) -> list[bool]:
        """Remove pins; per pattern whether there was one."""

    def state(self) -> PinState | None:
        """What upkeep last found; None before it looked."""

    def set_state(self, state: PinState) -> None:
        """Note what upkeep found."""


class BrokenTable(Protocol):
    """Since when names are broken; durable when a call returns."""

    def all(self) -> dict[bytes, Broken]:
        """Every mark by the row of its name."""

    def change(self, marks: Mapping[bytes, Broken | None]) -> None:
        """Set marks, and remove those that are None."""


class KeptNames(NameIndex, Protocol):
    """Names as upkeep and commands see them."""

    @property
    def changes(self) -> ChangedNames:
        """Which changed of late."""

    @property
    def pins(self) -> PinTable:
        """What is to be kept."""

    @property
    def broken(self) -> BrokenTable:
        """What is not whole."""

    def version(self) -> int:
        """A number that grows with every change by any process, of whatever is kept here."""

    def entry(self, row: bytes) -> tuple[Name, Binding] | None:
        """The name whose ``Name.row`` this is and what it is bound to; None when it is not bound, or damaged."""

    def unbind_many(self, bindings: Sequence[tuple[Name, Binding]]) -> list[tuple[Name, Binding]]:
        """Remove those of ``bindings`` that are still bound so, in one transaction; which they were.

        Raises:
            NoSpace: as :meth:`NameIndex.unbind`.
        """

    def held_bytes(self) -> int:
        """What names take of what they may."""
