"""What there is to know of a cache at one moment, in numbers.

The rule: a number that is not known is absent (None), never 0.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from millpond.core.names import KINDS, Name, Namespace, spoken
from millpond.names.binding import Binding
from millpond.names.notes import Pin
from millpond.services.pins import choose
from millpond.store.uses.counts import Sums, Tallies

Entry = tuple[Name, Binding]
_FLAGS = ("broken", "foreign", "expired", "pinned")


def of_names(
    names: Iterable[Entry], *, broken: Collection[bytes], pins: Sequence[Pin], beyond: Collection[bytes], now_ms: int
) -> dict[str, Any]:
    """How many names there are, of which namespace and kind, and what is special about them.

    ``broken``: rows of names that upkeep found incomplete. ``beyond``: rows that match a pin and found no room in the
    share of pins, so that they are not pinned.
    """
    entries = list(names)
    pinned = {one.name.row for one in choose(entries, pins, now_ms)} - set(beyond) if pins else set()
    total: Counter[str] = Counter()
    by_namespace: dict[str, Counter[str]] = {namespace.value: Counter() for namespace in Namespace}
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for name, binding in entries:
        row = name.row
        facts = {
            "broken": row in broken and not binding.foreign,
            "foreign": binding.foreign,
            "expired": binding.expires_at_ms is not None and binding.expires_at_ms <= now_ms,
            "pinned": row in pinned,
        }
        counted = ["total", *(fact for fact, holds in facts.items() if holds)]
        for counter in (total, by_namespace[name.namespace.value], by_kind[spoken(name)[0]]):
            counter.update(counted)
    return {
        **_counted(total),
        "by_namespace": {namespace: _counted(counter) for namespace, counter in by_namespace.items()},
        "by_kind": {kind: _counted(counter) for kind, counter in by_kind.items()},
    }


def _counted(counter: Counter[str]) -> dict[str, int]:
    return {what: counter[what] for what in ("total", *_FLAGS)}


def of_requests(tallies: Tallies | None, now_ms: int) -> dict[str, Any]:
    """Hits and misses of the last 24 hours and ever; None where nobody counted yet."""
    if tallies is None or not tallies.since_ms:
        return {"since_ms": None, "last_24h": None, "ever": None}
    return {
        "since_ms": tallies.since_ms,
        "last_24h": _rates(tallies.of_last(24, now_ms)),
        "ever": _rates(tallies.ever),
    }


def _rates(sums: Sums) -> dict[str, Any]:
    return {
        "names": _rate(sums.names_found, sums.names_missed),
        "blobs": _rate(sums.blobs_read, sums.blobs_missed),
        "blobs_before_upload": _rate(sums.blobs_present, sums.blobs_absent),
        "bytes_read": sums.bytes_read,
        "bytes_written": sums.bytes_written,
        "damaged_blobs": sums.damaged,
    }


def _rate(found: int, missed: int) -> dict[str, Any]:
    """Of what was asked for, what was there; the rate is None where nothing was asked for."""
    asked = found + missed
    return {"found": found, "missed": missed, "hit_rate": round(found / asked, 4) if asked else None}
