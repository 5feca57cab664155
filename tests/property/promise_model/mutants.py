"""The protocol with one rule left out: each of these must break a promise, and the model must find it."""

from __future__ import annotations

from typing import NamedTuple

from . import scenarios
from .explorer import Scenario


class Mutant(NamedTuple):
    """What is left out, where that shows, and the promise that it breaks."""

    rules: tuple[str, ...]
    scenario: Scenario
    breaks: str


MUTANTS = {
    "no promise lock": Mutant(("promise_lock",), scenarios.PUSH_AND_FETCH, "I8"),
    "logs not read again under the exclusive lock": Mutant(("reads_logs_again",), scenarios.PUSH_AND_FETCH, "I8"),
    "marked after the lock was let go": Mutant(("marks_under_lock",), scenarios.PUSH_AND_FETCH, "I8"),
    "answered names protect nothing": Mutant(("counts_names",), scenarios.PUSH_AND_FETCH, "I8"),
    "notes of a former incarnation protect nothing": Mutant(("compares_numbers_only",), scenarios.PUSH_AND_FETCH, "I8"),
    "a replaced note protects nothing": Mutant(("keeps_former_notes",), scenarios.BOUND_ANEW, "I8"),
    "no fdatasync before unlink": Mutant(("syncs_copies",), scenarios.POWER_LOSS, "I2"),
    "directory of the copies not synced": Mutant(("syncs_directory_of_copies",), scenarios.POWER_LOSS, "I2"),
    "moving leaves the incarnation": Mutant(("raises_incarnation",), scenarios.MOVED, "I8"),
    "incarnation not checked": Mutant(("checks_incarnation",), scenarios.MOVED, "I8"),
    "entries deleted wherever they point": Mutant(("compares_before_deleting",), scenarios.TWO_PUSHES, "I2"),
    "sweeping counts as present": Mutant(("sweeping_is_missing",), scenarios.PUSH_AND_FETCH, "I8"),
    "bytes go before entries": Mutant(("entries_before_bytes",), scenarios.PUSH_AND_FETCH, "I3"),
    "successor does not fence": Mutant(("fences",), scenarios.DEATHS, "I8"),
    "successor does not finish": Mutant(("finishes",), scenarios.TWO_DEATHS, "for ever"),
    "successor clears nothing": Mutant(("clears",), scenarios.TWO_DEATHS, "for ever"),
    "successor clears what no lock holds": Mutant(("clears_by_lock_alone",), scenarios.DEATHS, "I3"),
    "successor takes the mark back": Mutant(("finishes", "withdraws"), scenarios.DEATHS, "I8"),
    "open segments are victims": Mutant(("takes_from_open",), scenarios.READ_AND_STORE, "I3"),
    "two upkeepers": Mutant((), scenarios.TWO_UPKEEPERS, "I3"),
    "stored without a look": Mutant(("looks_after_put",), scenarios.SENT_UNASKED, "I8"),
    "sealed and stored without a look": Mutant(("looks_after_put",), scenarios.SEALED_AT_ONCE, "I8"),
    "push does not promise": Mutant(("walks_before_push",), scenarios.SENT_UNASKED, "I8"),
    "name committed before fdatasync": Mutant(("syncs_before_name", "looks_again"), scenarios.POWER_LOSS, "I2"),
    "no fresh look before the name": Mutant(("looks_again",), scenarios.BAD_SYNC, "I2"),
    "synced_to raised before the sync": Mutant(("raises_after_sync",), scenarios.SHARED_SEGMENT, "I2"),
    "synced_to raised to an end of after the sync": Mutant(("reads_end_before_sync",), scenarios.SHARED_SEGMENT, "I2"),
    "footer written before the sync": Mutant(("syncs_before_footer",), scenarios.POWER_LOSS_AND_SEALING, "I1"),
    "a number is used again": Mutant(("new_numbers",), scenarios.READ_AND_STORE, "I9"),
    "one look only": Mutant(("looks_thrice",), scenarios.READ, "I8"),
}
