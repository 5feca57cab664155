"""What a power loss may leave, and what opening the repository afterwards makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

from .world import OPEN, SEALED, File, Index, Row, at, changed

LOST = "?"
"""A record of which not all bytes reached the disk."""


@cache
def outcomes(files: tuple[File, ...]) -> tuple[tuple[File, ...], ...]:
    """All that may be left of ``files``: what was not synced is there or not, each by itself."""
    return tuple({tuple(file for file in left if file is not None) for left in product(*map(_left, files))})


def _left(file: File) -> Iterator[File | None]:
    if not file.linked or not file.entered:
        yield None  # an unlinked file may come back; a new one may never have been
    for unsynced in {file.records[file.synced :], LOST * (len(file.records) - file.synced)}:
        for footer in {file.footer, file.footer if file.footer_synced else ""}:
            records = file.records[: file.synced] + unsynced
            yield File(file.number, records, len(records), entered=True, footer=footer, footer_synced=bool(footer))


@cache
def rebuilt(files: tuple[File, ...], blobs: int, names: int) -> tuple[tuple[File, ...], Index]:
    """The index made anew (``store.segments.rebuild``): a footer is believed, anything else is read, verified and synced.

    Of two copies the later one is listed.
    """
    index = Index((None,) * blobs, (), (None,) * names)
    kept = []
    for file in sorted(files, key=lambda file: file.number):
        listed = file.footer or file.records.partition(LOST)[0]
        for offset, blob in enumerate(listed):
            index = index._replace(entries=changed(index.entries, at(blob), (file.number, offset)))
        end = len(listed)
        index = index.with_row(file.number, Row(SEALED if file.footer else OPEN, end, end))
        kept.append(file._replace(records=file.records[:end], synced=end))
    return tuple(kept), index
