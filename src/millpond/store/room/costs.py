"""What segments take, before it can be measured."""

from collections.abc import Sequence

from millpond.store.index import SegmentRow, SegmentState
from millpond.store.segments.format import FOOTER_END_BYTES, FOOTER_ENTRY_BYTES, SEGMENT_HEADER_BYTES, record_bytes

CLUSTER_BYTES = 4096
"""Files grow by this much on every file system that we know; a larger cluster is found out when a segment is sealed."""
INDEX_BYTES = 256
"""What the index may grow by for one blob: its entry twice over, for pages are half empty after they were split."""
SEGMENT_EXTRA_BYTES = SEGMENT_HEADER_BYTES + FOOTER_END_BYTES + CLUSTER_BYTES
"""The most that a segment takes beyond its records and their entries in the footer."""


def segment_cost(end: int, records: int) -> int:
    """The most that a segment takes that ends at ``end``, once it has its footer."""
    size_bytes = end + records * FOOTER_ENTRY_BYTES + FOOTER_END_BYTES
    return -(-size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES


def cost_of_blobs(sizes_bytes: Sequence[int], segment_bytes: int) -> int:
    """The most that appending blobs may take: records, footers, new segments, and what the index may grow by."""
    if not sizes_bytes:
        return 0
    sizes = list(map(record_bytes, sizes_bytes))
    own = [size for size in sizes if size * 4 > segment_bytes] if max(sizes) * 4 > segment_bytes else []
    shared_bytes = sum(sizes) - sum(own)
    segments = len(own) + 1 + -(-shared_bytes * 4 // (3 * segment_bytes))  # each is filled to 3/4
    return sum(sizes) + segments * SEGMENT_EXTRA_BYTES + len(sizes) * (FOOTER_ENTRY_BYTES + INDEX_BYTES)


def cost_of(row: SegmentRow) -> int:
    """The most that a segment takes once it has its footer, in which what is dead stands as well; 0: it has one."""
    if row.state is not SegmentState.OPEN:
        return 0
    dead_bytes = max(0, row.end - SEGMENT_HEADER_BYTES - row.live_bytes)
    return segment_cost(row.end, row.live_count + dead_bytes // record_bytes(0))
