"""What a store holds, from what the index knows: no file is opened, so it takes milliseconds.

The rule: it is one moment. All numbers come from one read transaction.
"""

from typing import NamedTuple

from millpond.store.index import Index, SegmentState
from millpond.store.segments.format import SEGMENT_HEADER_BYTES


class Inventory(NamedTuple):
    """Sizes in bytes, records' headers and checksums included."""

    blobs: int
    live_bytes: int
    """What is listed and held."""
    dead_bytes: int
    """What lies in segments and is not: what eviction can free without a miss."""
    segments: dict[str, int]
    """How many are open, sealed, sweeping (being evicted), or given up (damaged: what they held is missing)."""


def take(index: Index) -> Inventory:
    """Count."""
    segments = {**{state.name.lower(): 0 for state in SegmentState}, "given_up": 0}
    live_bytes = dead_bytes = blobs = 0
    with index.reading() as txn:
        for _, row in index.all_segments(txn):
            segments["given_up" if row.suspect else row.state.name.lower()] += 1
            held = row.live_bytes if row.holds else 0
            live_bytes += held
            blobs += row.live_count if row.holds else 0
            dead_bytes += max(0, row.end - SEGMENT_HEADER_BYTES - held)
    return Inventory(blobs, live_bytes, dead_bytes, segments)
