"""Names in memory: the reference that says what an index of names is, in the fewest lines.

The rule: it keeps every promise that can be kept without a disk. A :class:`Shelf` plays the disk: it outlives the
index that is closed, and several indexes may stand on one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import RLock

from millpond.core.errors import NameNotFound, NotReady
from millpond.core.names import Name, Namespace
from millpond.core.outcome import Outcome
from millpond.names.binding import Binding


@dataclass(slots=True)
class Shelf:
    """Where the names stay: encoded, so that nobody changes a binding that was written."""

    bindings: dict[Name, bytes] = field(default_factory=dict)
    next_number: int = 1
    lock: RLock = field(default_factory=RLock)


class MemoryNames:
    """A NameIndex and a NumberSource on ``shelf``, or on one of its own."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf: Shelf | None = shelf or Shelf()

    def bind(self, bindings: Sequence[tuple[Name, Binding]]) -> None:
        """See :meth:`NameIndex.bind`."""
        shelf = self._open_shelf()
        encoded = {name: binding.encode() for name, binding in bindings}
        with shelf.lock:
            shelf.bindings.update(encoded)

    def bind_later(
        self,
        bindings: Sequence[tuple[Name, Binding]],
        *,
        overwrite: bool = True,
        first: Callable[[], None] | None = None,
    ) -> "Outcome[None]":
        """See :meth:`NameIndex.bind_later`."""
        shelf = self._open_shelf()
        bound: Outcome[None] = Outcome()
        try:
            if first is not None:
                first()
        except Exception as failure:
            bound.set_exception(failure)
            return bound
        with shelf.lock:
            self.bind([one for one in bindings if overwrite or one[0] not in shelf.bindings])
        bound.set_result(None)
        return bound

    def resolve(self, name: Name) -> Binding:
        """See :meth:`NameIndex.resolve`."""
        shelf = self._open_shelf()
        with shelf.lock:
            encoded = shelf.bindings.get(name)
        if encoded is None:
            raise NameNotFound(f"{name.key[:200]!r} is not bound")
        return Binding.decode(encoded)

    def unbind(self, name: Name, expected: Binding | None = None) -> bool:
        """See :meth:`NameIndex.unbind`."""
        shelf = self._open_shelf()
        with shelf.lock:
            encoded = shelf.bindings.get(name)
            if encoded is None or (expected is not None and Binding.decode(encoded) != expected):
                return False
            del shelf.bindings[name]
            return True

    def names(self, namespace: Namespace | None = None) -> Iterator[tuple[Name, Binding]]:
        """See :meth:`NameIndex.names`."""
        for name, encoded in list(self._open_shelf().bindings.items()):
            if namespace in (None, name.namespace):
                yield name, Binding.decode(encoded)

    def take_numbers(self, count: int) -> range:
        """See :meth:`NumberSource.take_numbers`."""
        shelf = self._open_shelf()
        with shelf.lock:
            numbers = range(shelf.next_number, shelf.next_number + count)
            shelf.next_number = numbers.stop
            return numbers

    def close(self) -> None:
        """See :meth:`NameIndex.close`."""
        self._shelf = None

    def _open_shelf(self) -> Shelf:
        if self._shelf is None:
            raise NotReady("the names are closed: the server is stopping")
        return self._shelf
