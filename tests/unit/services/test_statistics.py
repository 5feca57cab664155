"""Numbers about names and requests."""

from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.names.notes import Pin
from millpond.services import statistics
from millpond.store.uses.counts import HOUR_MS, Sums, Tallies

NOW_MS = 1_700_000_000_000
URN = "urn:fdc:buildstream.build:2020:"
NONE = {"total": 0, "broken": 0, "foreign": 0, "expired": 0, "pinned": 0}


def entry(key: str, namespace: Namespace = Namespace.ASSET_BLOB, **fields: object) -> tuple[Name, Binding]:
    return Name("", namespace, key), Binding(Digest.of(key.encode()), NOW_MS, **fields)  # type: ignore[arg-type]


def test_names_are_counted_by_namespace_kind_and_what_is_special_about_them() -> None:
    names = [
        entry(f"{URN}artifact:p/e/1"),
        entry(f"{URN}artifact:p/e/2"),
        entry(f"{URN}artifact:p/f/1", foreign=True),
        entry(f"{URN}source:s/1", Namespace.ASSET_DIRECTORY),
        entry("https://example.org/x", expires_at_ms=NOW_MS),
    ]
    counted = statistics.of_names(
        names,
        broken={names[0][0].row, names[2][0].row},  # a foreign one is not broken, whatever was noted once
        pins=[Pin("p/e/*", NOW_MS)],
        beyond={names[1][0].row},
        now_ms=NOW_MS,
    )
    by_namespace, by_kind = counted.pop("by_namespace"), counted.pop("by_kind")
    assert counted == {"total": 5, "broken": 1, "foreign": 1, "expired": 1, "pinned": 1}
    assert by_namespace["asset-directory"] == {**NONE, "total": 1}
    assert by_namespace["asset-blob"] == {"total": 4, "broken": 1, "foreign": 1, "expired": 1, "pinned": 1}
    assert by_kind["artifact"] == {**NONE, "total": 3, "broken": 1, "foreign": 1, "pinned": 1}
    assert by_kind["source"] == {**NONE, "total": 1}
    assert by_kind["asset"] == {**NONE, "total": 1, "expired": 1}


def test_rates_are_of_what_was_asked_for() -> None:
    tallies = Tallies(
        NOW_MS - 100 * HOUR_MS,
        Sums(names_found=9, names_missed=3, blobs_read=5, bytes_read=7),
        {NOW_MS // HOUR_MS: Sums(names_found=2, names_missed=1), NOW_MS // HOUR_MS - 24: Sums(names_found=7)},
    )
    requests = statistics.of_requests(tallies, NOW_MS)
    assert requests["since_ms"] == NOW_MS - 100 * HOUR_MS
    assert requests["last_24h"]["names"] == {"found": 2, "missed": 1, "hit_rate": 0.6667}
    assert requests["last_24h"]["blobs"]["hit_rate"] is None
    assert requests["ever"]["names"] == {"found": 9, "missed": 3, "hit_rate": 0.75}
    assert requests["ever"]["blobs"] == {"found": 5, "missed": 0, "hit_rate": 1.0}
    assert requests["ever"]["bytes_read"] == 7


def test_what_nobody_counted_is_not_nought() -> None:
    for tallies in (None, Tallies(0, Sums(), {})):
        assert statistics.of_requests(tallies, NOW_MS) == {"since_ms": None, "last_24h": None, "ever": None}
