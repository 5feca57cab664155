"""What segments take, before it can be measured."""

from millpond.store.segments.format import FOOTER_END_BYTES, FOOTER_ENTRY_BYTES, SEGMENT_HEADER_BYTES

CLUSTER_BYTES = 4096
"""Files grow by this much on every file system that we know; a larger cluster is found out when a segment is sealed."""
SEGMENT_EXTRA_BYTES = SEGMENT_HEADER_BYTES + FOOTER_END_BYTES + CLUSTER_BYTES
"""The most that a segment takes beyond its records and their entries in the footer."""


def segment_cost(end: int, records: int) -> int:
    """The most that a segment takes that ends at ``end``, once it has its footer."""
    size_bytes = end + records * FOOTER_ENTRY_BYTES + FOOTER_END_BYTES
    return -(-size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES
