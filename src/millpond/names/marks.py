"""What upkeep and people note beside names: pins, and since when a name is broken.

The rule: a mark is believed only with its checksum, like a binding; a pin that is lost must be seen, so it is logged.
Rows in the table ``pins``: the SHA-256 of a pattern, and ``state`` for what upkeep last found. Rows in ``broken``:
``Name.row``. Values: ``values.seal`` of JSON.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import lmdb

from millpond.core import json_text
from millpond.names import values
from millpond.names.changes import Reading
from millpond.names.notes import Broken, Pin, PinState

_Note = TypeVar("_Note", Pin, PinState, Broken)
_log = logging.getLogger(__name__)
_STATE_ROW = b"state"


class Write(Protocol):
    """Runs work in a write transaction; durable on return."""

    def __call__(self, work: Callable[["lmdb.Transaction[bytes]"], Any]) -> Any:
        """What ``work`` returns."""


@dataclass(slots=True)
class _Table:
    table: lmdb._Database | None
    reading: Reading
    write: Write
    _said: set[bytes] = field(default_factory=set)

    def all(self) -> dict[bytes, dict[str, Any]]:
        if self.table is None:
            return {}
        with self.reading() as transaction, transaction.cursor(self.table) as cursor:
            found = [(bytes(row), bytes(value)) for row, value in cursor]
        return {row: fields for row, value in found if (fields := self._fields(row, value)) is not None}

    def _fields(self, row: bytes, value: bytes) -> dict[str, Any] | None:
        try:
            return dict(json_text.parse(values.unseal(row, value)))
        except (values.Damaged, ValueError) as damage:
            if row not in self._said:
                self._said.add(row)
                _log.error("a note beside the names (row %s) counts as absent: %s", row.hex(), damage)
            return None

    def change(self, rows: Mapping[bytes, dict[str, Any] | None]) -> list[bool]:
        """Write rows, or remove those that are None; per row whether it was there before."""

        def work(transaction: "lmdb.Transaction[bytes]") -> list[bool]:
            assert self.table is not None
            before = []
            for row, fields in rows.items():
                before.append(transaction.get(row, db=self.table) is not None)
                if fields is None:
                    transaction.delete(row, db=self.table)
                else:
                    sealed = values.seal(row, json_text.compact(fields).encode())
                    transaction.put(row, sealed, db=self.table)
            return before

        return list(self.write(work)) if rows else []


class Pins:
    """The pins of a repository."""

    def __init__(self, table: lmdb._Database | None, reading: Reading, write: Write) -> None:
        self._table = _Table(table, reading, write)

    def all(self) -> list[Pin]:
        """Every pin, ended ones too, the oldest first."""
        pins = [_made(Pin, fields) for row, fields in self._table.all().items() if row != _STATE_ROW]
        return sorted(pins, key=lambda pin: (pin.made_at_ms, pin.pattern))

    def add(self, pin: Pin) -> bool:
        """Write ``pin``, in place of one with the same pattern; whether there was one."""
        return self._table.change({_pin_row(pin.pattern): asdict(pin)})[0]

    def remove(self, patterns: Iterable[str]) -> list[bool]:
        """Remove pins; per pattern whether there was one."""
        return self._table.change({_pin_row(pattern): None for pattern in patterns})

    def state(self) -> PinState | None:
        """What upkeep last found; None before it looked."""
        fields = self._table.all().get(_STATE_ROW)
        return None if fields is None else _made(PinState, {**fields, "beyond": tuple(fields["beyond"])})

    def set_state(self, state: PinState) -> None:
        """Note what upkeep found."""
        self._table.change({_STATE_ROW: asdict(state)})


class BrokenNames:
    """Since when names are broken."""

    def __init__(self, table: lmdb._Database | None, reading: Reading, write: Write) -> None:
        self._table = _Table(table, reading, write)

    def all(self) -> dict[bytes, Broken]:
        """Every mark by the row of its name."""
        return {row: _made(Broken, fields) for row, fields in self._table.all().items()}

    def change(self, marks: Mapping[bytes, Broken | None]) -> None:
        """Set marks, and remove those that are None."""
        self._table.change({row: None if mark is None else asdict(mark) for row, mark in marks.items()})


def _pin_row(pattern: str) -> bytes:
    return hashlib.sha256(pattern.encode()).digest()


def _made(kind: type[_Note], fields: dict[str, Any]) -> _Note:
    """A note without what only a newer Millpond knows of it."""
    return kind(**{name: value for name, value in fields.items() if name in kind.__slots__})
