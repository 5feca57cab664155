"""Bindings that were read or written lately, as they were decoded.

The rule: nothing here is believed because of its age. What is remembered is what a value means, and the value itself is
read anew for every answer.
"""

from millpond.core.names import Name
from millpond.names import values
from millpond.names.binding import Binding

_MOST = 4096
_LONGEST_BYTES = 1024
"""A longer value is that of an asset with many references; four thousand of these would be gigabytes."""


class Recent:
    """Decodes values. May be used by several threads."""

    def __init__(self) -> None:
        self._bindings: dict[tuple[bytes, bytes], Binding] = {}

    def binding_of(self, row: bytes, value: bytes) -> Binding:
        """The binding in ``value``, which stands in ``row``.

        Raises:
            Damaged: see :func:`millpond.names.values.binding_of`.
        """
        known = self._bindings.get((row, value))
        if known is None:
            known = values.binding_of(row, value)
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
        if len(self._bindings) >= _MOST:
            self._bindings.clear()  # who has thousands of names in use pays a tenth of a second now and then
        self._bindings[row, value] = binding
