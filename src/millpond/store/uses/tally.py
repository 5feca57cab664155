"""How often the cache had what it was asked for, over all processes and hours.

Each worker counts in memory (``store.uses.counts``); what came since is a line of its touch log now and then, and upkeep's
merge of the logs adds it up: per hour for a week, and in total. The rule: what is added is added once, in the
transaction that notes how far the log was read; what a killed process had not written is not counted.

In the table: ``tally:`` and the hour (4 bytes, big-endian; hours since 1970) to the sums of that hour;
``tally:total`` to the time of the first (ms, 8 bytes) and the sums of all.
"""

import struct

from millpond.disk.group_writer import Transaction
from millpond.store.uses.counts import HOUR_MS, Sums, Tallies
from millpond.store.uses.touch_log import Group

KEPT_HOURS = 7 * 24

_PREFIX = b"tally:"
_TOTAL = b"tally:total"
_HOUR = struct.Struct(">I")
_SINCE = struct.Struct("<Q")


def add(txn: Transaction, db: object, group: Group) -> None:
    """Add a COUNTED group of a touch log, in the write transaction that notes how far that log was read."""
    hour = group.time_ms // HOUR_MS
    key = _PREFIX + _HOUR.pack(hour)
    is_new = txn.get(key, db=db) is None
    for row in group.rows:
        news = Sums.decode(row)
        txn.put(key, Sums.decode(txn.get(key, b"", db=db)).plus(news).encode(), db=db)
        total = txn.get(_TOTAL, _SINCE.pack(group.time_ms), db=db)
        sums = Sums.decode(total[_SINCE.size :]).plus(news)
        txn.put(_TOTAL, total[: _SINCE.size] + sums.encode(), db=db)
    if is_new:
        _forget(txn, db, hour - KEPT_HOURS)


def _forget(txn: Transaction, db: object, last: int) -> None:
    for key in [key for key, _ in _rows(txn, db) if key != _TOTAL and _hour(key) <= last]:
        txn.delete(key, db=db)


def read(txn: Transaction, db: object) -> Tallies:
    """What was added so far."""
    total = txn.get(_TOTAL, bytes(_SINCE.size), db=db)
    hours = {_hour(key): Sums.decode(value) for key, value in _rows(txn, db) if key != _TOTAL}
    return Tallies(_SINCE.unpack_from(total)[0], Sums.decode(total[_SINCE.size :]), hours)


def _rows(txn: Transaction, db: object) -> list[tuple[bytes, bytes]]:
    with txn.cursor(db) as cursor:
        if not cursor.set_range(_PREFIX):
            return []
        rows = []
        for key, value in cursor:
            if not key.startswith(_PREFIX):
                break
            rows.append((key, value))
    return rows


def _hour(key: bytes) -> int:
    hour: int = _HOUR.unpack(key.removeprefix(_PREFIX))[0]
    return hour
