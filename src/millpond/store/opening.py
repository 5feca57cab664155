"""Opening a repository: who may, and is its index to be believed.

``start.lock`` is held for the moment of opening; who then gets ``open.lock`` exclusively is alone and may judge or
rebuild the index; everybody holds it shared while they run. The index is written without sync, so it is believed only
after a clean end, or if its state row names this boot and this very file: a killed process does not hurt it, a power
loss or a copy taken while running may.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from millpond.core import limits
from millpond.core.errors import RefusedToStart
from millpond.disk import locks
from millpond.store import filesystem
from millpond.store.index import INDEX_FORMAT, Index
from millpond.store.layout import REPOSITORY_FORMAT, Layout, recognise, write_marker
from millpond.store.rebuild import rebuild, segment_paths
from millpond.store.refusals import FILE_BYTES
from millpond.store.space import Space

log = logging.getLogger(__name__)
QuotaBytes = Callable[[int], int | None]
_STATE = b"trust"
_KEPT_TOUCH_LOGS = 64
_OLD_UPLOAD_SECONDS = 86_400


@dataclass(slots=True)
class OpenRepository:
    """A repository that this process has open."""

    layout: Layout
    index: Index
    marker: dict[str, Any]
    read_only: bool
    _open_lock: int

    @property
    def quota_bytes(self) -> int:
        """The repository's own quota, or what it may take of its disk when it has none."""
        stored: int | None = self.marker.get("quota_bytes")
        return stored if stored is not None else filesystem.default_quota_bytes(self.layout.root)

    def close(self) -> None:
        """Leave. The last to leave makes the index durable and says so."""
        if self.read_only:
            self.index.close()
            os.close(self._open_lock)
            return
        with _starting(self.layout):
            locks.unlock(self._open_lock)
            if locks.try_lock(self._open_lock, exclusive=True):
                _mark(self.index, clean=True)
            self.index.close()
            os.close(self._open_lock)


def open_repository(path: Path, *, quota_bytes: QuotaBytes = lambda _: None) -> OpenRepository:
    """Open the repository at ``path``, making it where there is none.

    ``quota_bytes`` tells an explicit quota, given the size of the file system, which is then stored in the repository;
    or None: adopt the stored one.

    Raises:
        RefusedToStart: it is not ours, too new, in use by somebody we cannot share it with, or not to be used.
    """
    marker = recognise(path)
    layout = Layout(str(path))
    if marker is None:
        filesystem.check_local(next(place for place in (path, *path.absolute().parents) if place.exists()))
        _make(layout)
    elif not filesystem.writable(layout.root):
        return _open_read_only(layout, marker)
    filesystem.check_local(path)
    try:
        with _starting(layout):
            return _open(layout, quota_bytes)
    except (OSError, lmdb.Error) as failure:
        why = getattr(failure, "strerror", None) or failure
        raise RefusedToStart(f"{path} cannot be used: {why}") from None


def _make(layout: Layout) -> None:
    try:
        os.makedirs(layout.root, exist_ok=True)
    except OSError as failure:
        raise RefusedToStart(f"{layout.root} cannot be made: {failure.strerror}") from None


@contextlib.contextmanager
def _starting(layout: Layout) -> Iterator[None]:
    descriptor = locks.open_lock_file(layout.start_lock)
    try:
        locks.lock(descriptor, exclusive=True)
        yield
    finally:
        os.close(descriptor)


def _open(layout: Layout, explicit_quota: QuotaBytes) -> OpenRepository:
    for directory in layout.directories:
        os.makedirs(directory, exist_ok=True)
    if not os.path.exists(layout.refusals) or os.path.getsize(layout.refusals) < FILE_BYTES:
        Path(layout.refusals).write_bytes(bytes(FILE_BYTES))
    descriptor = locks.open_lock_file(layout.open_lock)
    try:
        alone = locks.try_lock(descriptor, exclusive=True)
        if alone:
            filesystem.write_inhabitants(layout.open_lock)
        else:
            filesystem.check_inhabitants(layout.open_lock, layout.root)
        marker = _settled_marker(layout, explicit_quota(filesystem.size_bytes(layout.root)))
        index = _judged(layout) if alone else Index(layout.index)
        locks.lock(descriptor, exclusive=False)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenRepository(layout, index, marker, read_only=False, _open_lock=descriptor)


def _settled_marker(layout: Layout, quota_bytes: int | None) -> dict[str, Any]:
    """The marker, made if it is missing, with an explicit quota stored in it."""
    marker = recognise(Path(layout.root)) or {"format": REPOSITORY_FORMAT, "made_by": "millpond"}
    changed = quota_bytes is not None and marker.get("quota_bytes") != quota_bytes
    if changed:
        marker["quota_bytes"] = quota_bytes
    if changed or not os.path.exists(layout.marker):
        write_marker(layout, marker)
    return marker


def _open_read_only(layout: Layout, marker: dict[str, Any]) -> OpenRepository:
    """A repository that we may only read: serve it, touch nothing."""
    try:
        descriptor = locks.open_lock_file(layout.open_lock, read_only=True)
        if not locks.try_lock(descriptor, exclusive=False):
            raise RefusedToStart(f"{layout.root} is being opened by somebody else: try again")
        filesystem.check_inhabitants(layout.open_lock, layout.root)
        index = Index(layout.index, read_only=True, lock=False)
    except OSError as failure:
        raise RefusedToStart(f"{layout.root} cannot be read: {failure.strerror}") from None
    except lmdb.Error:
        raise RefusedToStart(f"{layout.root} has no readable index: start it once where it can be written") from None
    return OpenRepository(layout, index, marker, read_only=True, _open_lock=descriptor)


def _judged(layout: Layout) -> Index:
    """The index, believed or made anew. Nobody else has the repository open."""
    index = _believed(layout)
    if index is None:
        begun = time.monotonic()
        shutil.rmtree(layout.index)
        os.mkdir(layout.index)
        index = Index(layout.index)
        rebuild(index, layout.segments)
        with index.reading() as txn:
            blobs = txn.stat(index.blobs)["entries"]
        if blobs:
            log.warning("the index was made anew: %d blobs in %.1f s", blobs, time.monotonic() - begun)
    _mark(index, clean=False)
    _tidy(layout, index)
    return index


def _believed(layout: Layout) -> Index | None:
    if not os.path.exists(os.path.join(layout.index, "data.mdb")):
        return None
    index = None
    try:
        index = Index(layout.index)
        with index.reading() as txn:
            value = txn.get(_STATE, db=index.state)
        state = json.loads(value) if value else {}
        here = _here(index)
        if state.get("format") == INDEX_FORMAT and (state["clean"] or all(state[fact] == here[fact] for fact in here)):
            return index
    except (lmdb.Error, ValueError, LookupError, TypeError, AttributeError) as failure:
        log.warning("the index is damaged: %s", failure)
    if index is not None:
        index.close()
    return None


def _here(index: Index) -> dict[str, Any]:
    file = os.stat(os.path.join(index.path, "data.mdb"))
    return {"boot": filesystem.boot_id(), "device": file.st_dev, "inode": file.st_ino, "format": INDEX_FORMAT}


def _mark(index: Index, *, clean: bool) -> None:
    """Say whether the index may be believed by whoever comes next. Durable, in this order."""
    if clean:
        _sync(index)  # all that the mark will vouch for
    with index.env.begin(write=True) as txn:
        txn.put(_STATE, json.dumps({**_here(index), "clean": clean}).encode(), db=index.state)
    _sync(index)  # "not clean" too: an old "clean" must not outlive the writes that follow


def _sync(index: Index) -> None:
    force = True  # the environment is opened without sync
    index.env.sync(force)


def _tidy(layout: Layout, index: Index) -> None:
    """Remove what killed processes left, and count the room anew. Nobody else has the repository open."""
    used = 0
    with index.reading() as txn:
        known = {number for number, _ in index.all_segments(txn)}
    for number, path in segment_paths(layout.segments):
        if number in known:
            used += os.stat(path).st_blocks * 512
        else:
            os.unlink(path)
    logs = sorted(os.scandir(layout.touch), key=lambda entry: entry.name)
    for log_file in logs[:-_KEPT_TOUCH_LOGS]:
        os.unlink(log_file.path)
    kept: dict[str, int] = {}
    for entry in list(os.scandir(layout.uploads)):
        if "-" in entry.name or time.time() - entry.stat().st_mtime > _OLD_UPLOAD_SECONDS:
            os.unlink(entry.path)
        else:
            kept[entry.name] = entry.stat().st_blocks * 512
    space = Space(index, layout.root, quota_bytes=limits.SEGMENT_MIN_BYTES, reserve_bytes=0)
    with index.env.begin(write=True) as txn:
        space.count_anew(txn, used, kept)
