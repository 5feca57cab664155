"""Taking a damaged blob off the index.

The rule (I4): what does not verify is not held. Its entry goes, so that the answer is a miss and the next upload heals
it; its bytes stay as dead space. Its segment's incarnation is raised, so that every closure that lies there is walked
again instead of being believed. Where the segment itself is no more (its header does not verify, or its file is gone)
nothing in it can be verified: it is suspect from then on, all that it held is missing, and nobody appends to it.
"""

import os

from millpond.disk.group_writer import Transaction
from millpond.store.failures import told_of_reading
from millpond.store.index import Entry, Index
from millpond.store.segments.files import SegmentFile, segment_name
from millpond.store.segments.format import Damaged, Newer, record_bytes


def quarantine(index: Index, segments: str, txn: Transaction, key: bytes, entry: Entry) -> int:
    """Delete the blob's entry, if it still points there. How many blobs are no longer held because of it."""
    if txn.get(key, db=index.blobs) != entry.encode():
        return 0
    txn.delete(key, db=index.blobs)
    row = index.segment(txn, entry.segment)
    if row is None or row.suspect:
        return 1
    row = row._replace(
        live_bytes=max(0, row.live_bytes - record_bytes(entry.size_bytes)),
        live_count=max(0, row.live_count - 1),
        incarnation=row.incarnation + 1,
        suspect=_is_lost(segments, entry.segment),
    )
    index.put_segment(txn, entry.segment, row)
    return 1 + row.live_count if row.suspect else 1


def _is_lost(segments: str, number: int) -> bool:
    try:
        SegmentFile(os.path.join(segments, segment_name(number)), number)
    except Newer:
        return False
    except (FileNotFoundError, Damaged):
        return True
    except OSError as failure:
        return isinstance(told_of_reading(failure), Damaged)
    return False
