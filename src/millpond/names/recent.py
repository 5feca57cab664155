"""Bindings that were read or written lately, as they were decoded.

The rule: nothing here is believed because of its age. What is remembered is what a value means, and the value itself is
read anew for every answer.
"""

from millpond.core.names import Name
from millpond.names import values
from millpond.names.binding import Binding

_MOST = 4096
_LONGEST_BYTES = 1024
"""A longer value is that of an asset with many references; thousands of these would be gigabytes."""


class Recent:
    """Decodes values. May be used by several threads.

    Remembered are the latest ``_MOST`` and those that were the latest before them, from where what is used again comes back.
    So who has a few names more in use does not begin anew each time.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[bytes, bytes], Binding] = {}
        self._before: dict[tuple[bytes, bytes], Binding] = {}

    def binding_of(self, row: bytes, value: bytes) -> Binding:
        """The binding in ``value``, which stands in ``row``.

        Raises:
            Damaged: see :func:`millpond.names.values.binding_of`.
        """
        known = self._latest.get((row, value))
        if known is None:
            known = self._before.get((row, value)) or values.binding_of(row, value)
            self._note(row, value, known)
        return known

    def value_of(self, name: Name, binding: Binding) -> bytes:
        """The value that binds ``name`` so."""
        value = values.value_of(name, binding)
        self._note(name.row, value, binding)
        return value

    def _note(self, row: bytes, value: bytes, binding: Binding) -> None:
        if len(value) > _LONGEST_BYTES or binding.extra:  # all else in a binding cannot change
            return
        if len(self._latest) >= _MOST:
            self._before, self._latest = self._latest, {}
        self._latest[row, value] = binding
