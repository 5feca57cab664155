"""What the protocol of promising, pushing and evicting is made of: each rule can be left out, to see what it is for."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Rules:
    """The protocol keeps all of them; a mutant of it lacks one."""

    promise_lock: bool = True
    """Looking up and noting the promise happen under the shared side of the promise lock."""
    reads_logs_again: bool = True
    """Under the exclusive side, the touch logs are read to their ends before a segment is given up."""
    marks_under_lock: bool = True
    """... and the segment is marked before the lock is let go."""
    counts_names: bool = True
    """A name that was answered protects the segments that its note names."""
    compares_numbers_only: bool = True
    """... by number, whatever their incarnation is by now."""
    keeps_former_notes: bool = True
    """A note that another binding replaces protects until the logs have been read.

    The one rule that Millpond does not keep, and says so (docs/explanation/storage.md): a name that is bound to something
    else in the instant of its fetch may lose what it was bound to, as far as that is old enough to go.
    """
    syncs_copies: bool = True
    """A forward segment is synced before entries point to it and its victim is unlinked."""
    syncs_directory_of_copies: bool = True
    raises_incarnation: bool = True
    """When entries move out of a segment, notes that name it no longer count."""
    compares_before_deleting: bool = True
    sweeping_is_missing: bool = True
    entries_before_bytes: bool = True
    fences: bool = True
    """A successor takes the exclusive lock once before it chooses."""
    finishes: bool = True
    """A successor goes on with what is sweeping."""
    clears: bool = True
    """A successor removes forward segments that were never listed."""
    clears_by_lock_alone: bool = False
    """It takes every file without a row and without a lock for one of these."""
    withdraws: bool = False
    """A successor takes the mark of what is sweeping back, instead of finishing it."""
    takes_from_open: bool = False
    """Victims may be segments that are still appended to."""
    looks_after_put: bool = True
    """A stored blob is looked up as it is promised, and stored again when it is gone."""
    syncs_before_name: bool = True
    looks_again: bool = True
    """Before a name is written, one fresh look says that all is there and synced."""
    raises_after_sync: bool = True
    """``synced_to`` is raised after the sync, not before."""
    reads_end_before_sync: bool = True
    """It is raised to the end as of before the sync."""
    walks_before_push: bool = True
    """A push promises its closure itself."""
    checks_incarnation: bool = True
    """A note counts only while its segments are what they were."""
    new_numbers: bool = True
    looks_thrice: bool = True
    """A reader who finds no file looks up again."""
    syncs_before_footer: bool = True

    def without(self, *rules: str) -> Rules:
        """These turned round."""
        return replace(self, **{rule: not getattr(self, rule) for rule in rules})
