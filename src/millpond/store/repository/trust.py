"""Whether an index may be believed, and who vouches for it.

It is written without sync. A killed process does not hurt it; a power loss may, and so may a copy taken while it was
written. The rule: it is believed only after a clean end, when all that it lists was on disk, or if its state row names
this boot and this very file.
"""

import json
import logging
import os
from typing import Any

import lmdb

from millpond.core import json_text
from millpond.core.errors import NotReady
from millpond.disk.files import sync_directory
from millpond.store.index import INDEX_FORMAT, Index
from millpond.store.repository import filesystem
from millpond.store.repository.distrust import is_distrusted, is_vouched, vouch
from millpond.store.repository.layout import Layout
from millpond.store.segments.files import segment_name

log = logging.getLogger(__name__)
_STATE = b"trust"


def believed(layout: Layout) -> Index | None:
    """The index that is there, if it may be believed. Nobody else has the repository open."""
    if is_distrusted(layout.index) or not is_vouched(layout.index):
        return None
    index = None
    try:
        index = Index(layout.index)
        with index.reading() as txn:
            value = txn.get(_STATE, db=index.state)
        state = json_text.parse(value) if value else {}
        here = _here(index)
        if state.get("format") == INDEX_FORMAT and (state["clean"] or all(state[fact] == here[fact] for fact in here)):
            return index
    except (lmdb.Error, NotReady, ValueError, LookupError, TypeError, AttributeError) as failure:
        log.warning("the index is damaged: %s", failure)
    if index is not None:
        index.close()
    return None


def _here(index: Index) -> dict[str, Any]:
    file = os.stat(os.path.join(index.path, "data.mdb"))
    return {"boot": filesystem.boot_id(), "device": file.st_dev, "inode": file.st_ino, "format": INDEX_FORMAT}


def mark(index: Index, *, clean: bool) -> None:
    """Say whether the index may be believed by whoever comes next. Durable, in this order."""
    if clean:
        _sync(index)  # all that the mark will vouch for
    else:
        vouch(index.path, clean=False)  # before anything is written that a power loss may take
    with index.writing() as txn:
        txn.put(_STATE, json.dumps({**_here(index), "clean": clean}).encode(), db=index.state)
    _sync(index)  # "not clean" too: an old "clean" must not outlive the writes that follow
    if clean:
        vouch(index.path, clean=True)


def made_durable(layout: Layout, index: Index) -> bool:
    """Sync whatever the index lists and no push has needed yet, so that it stays true whatever becomes of the machine.

    Whether all of it is on disk. Nobody else has the repository open.
    """
    with index.reading() as txn:
        behind = {number: row for number, row in index.all_segments(txn) if row.holds and row.synced_to < row.end}
    try:
        for number in behind:
            descriptor = os.open(os.path.join(layout.segments, segment_name(number)), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(layout.segments)
    except OSError as failure:
        log.warning("a segment could not be synced, so that the index may have to be made anew: %s", failure)
        return False
    with index.writing(rows=len(behind)) as txn:
        for number, row in behind.items():
            index.put_segment(txn, number, row._replace(synced_to=row.end))
    return True


def _sync(index: Index) -> None:
    force = True  # the environment is opened without sync
    index.env.sync(force)
