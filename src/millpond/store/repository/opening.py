"""Opening a repository: who may, and is its index to be believed.

``start.lock`` is held for the moment of opening; who then gets ``open.lock`` exclusively is alone and may judge or
rebuild the index; everybody holds it shared while they run. The index is written without sync, so it is believed only
after a clean end, or if its state row names this boot and this very file: a killed process does not hurt it, a power
loss or a copy taken while running may.
"""

import contextlib
import logging
import os
import pwd
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from millpond.core.errors import RefusedToStart
from millpond.disk import locks
from millpond.disk.files import sync_directory
from millpond.disk.preallocation import take_no_more_than_is_written
from millpond.store.care.purge import holes
from millpond.store.index import Index
from millpond.store.repository import filesystem
from millpond.store.repository.layout import REPOSITORY_FORMAT, Layout, recognise, write_marker
from millpond.store.repository.trust import believed, made_durable, mark
from millpond.store.room import holders
from millpond.store.room.ballast import Ballast
from millpond.store.room.costs import cost_of
from millpond.store.room.growth import Growth
from millpond.store.room.quota import GIVEN, MEASURED, StoredQuota, quota_in
from millpond.store.room.refusals import FILE_BYTES
from millpond.store.room.space import Space
from millpond.store.room.taken import file_bytes
from millpond.store.segments.files import departed_segments
from millpond.store.segments.rebuild import rebuild, segment_paths

log = logging.getLogger(__name__)
QuotaBytes = Callable[[int], int | None]
_KEPT_TOUCH_LOGS = 1024
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
        return StoredQuota(self.layout).quota_bytes

    def close(self) -> None:
        """Leave. The last to leave makes the index durable and says so."""
        if self.read_only:
            self.index.close()
            os.close(self._open_lock)
            return
        with starting(self.layout):
            locks.unlock(self._open_lock)
            if locks.try_lock(self._open_lock, exclusive=True) and made_durable(self.layout, self.index):
                mark(self.index, clean=True)
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
        with starting(layout):
            return _open(layout, quota_bytes)
    except (OSError, lmdb.Error) as failure:
        why = getattr(failure, "strerror", None) or failure
        raise RefusedToStart(f"{path} cannot be used: {why}") from None


class IndexNotTrusted(RefusedToStart):
    """Nobody vouches for the index: the machine went down, or this is a copy. Whoever opens it next makes it anew."""


def open_existing(path: Path) -> OpenRepository:
    """Open a repository as it is, for a command: nothing is made, tidied or made anew, whether servers run or not.

    Raises:
        IndexNotTrusted: see there. Nobody has it open.
        RefusedToStart: there is none at ``path``, or we cannot share it with those who have it open.
    """
    layout, marker = existing(path)
    if not filesystem.writable(layout.root):
        return _open_read_only(layout, marker)
    filesystem.check_local(path)
    try:
        with starting(layout):
            return _join(layout, marker)
    except (OSError, lmdb.Error) as failure:
        why = getattr(failure, "strerror", None) or failure
        raise RefusedToStart(f"{path} cannot be used: {why}") from None


def existing(path: Path) -> tuple[Layout, dict[str, Any]]:
    """Where the repository at ``path`` lies, and its marker.

    Raises:
        RefusedToStart: there is none, or it is another user's.
    """
    marker = recognise(path)
    if marker is None:
        raise RefusedToStart(f"{path} holds no repository: name the directory that the server was started with")
    owner = os.stat(path).st_uid
    if os.geteuid() == 0 != owner:  # what we made there would be ours, and closed to its server
        raise RefusedToStart(f"{path} belongs to user {_user_name(owner)}: run this as that user, such as with sudo -u")
    return Layout(str(path)), marker


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"{user}"


def _join(layout: Layout, marker: dict[str, Any]) -> OpenRepository:
    descriptor = locks.open_lock_file(layout.open_lock)
    try:
        alone = locks.try_lock(descriptor, exclusive=True)
        if alone:
            filesystem.write_inhabitants(layout.open_lock)
            index = believed(layout)
            if index is None:
                raise IndexNotTrusted(
                    f"the index of {layout.root} is not to be trusted (the machine went down, or this is a copy):"
                    " start a server, which makes it anew, or use millpond check --rebuild"
                )
            mark(index, clean=False)
        else:
            filesystem.check_inhabitants(layout.open_lock, layout.root)
            index = Index(layout.index)
        locks.lock(descriptor, exclusive=False)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenRepository(layout, index, marker, read_only=False, _open_lock=descriptor)


def forget_index(path: Path) -> None:
    """Have the index made anew by whoever opens the repository next.

    Raises:
        RefusedToStart: there is no repository at ``path``, somebody has it open, or it cannot be written.
    """
    layout, _ = existing(path)
    try:
        with starting(layout):
            descriptor = locks.open_lock_file(layout.open_lock)
            try:
                if not locks.try_lock(descriptor, exclusive=True):
                    raise RefusedToStart(f"{path} is in use: stop its servers first")
                os.makedirs(layout.index, exist_ok=True)  # a backup may have left it out
                shutil.rmtree(layout.index)
                os.mkdir(layout.index)
            finally:
                os.close(descriptor)
    except OSError as failure:
        raise RefusedToStart(f"{path} cannot be used: {failure.strerror}") from None


def _make(layout: Layout) -> None:
    try:
        os.makedirs(layout.root, exist_ok=True)
    except OSError as failure:
        raise RefusedToStart(f"{layout.root} cannot be made: {failure.strerror}") from None


@contextlib.contextmanager
def starting(layout: Layout) -> Iterator[None]:
    """Hold ``start.lock``: nobody else opens or leaves."""
    descriptor = locks.open_lock_file(layout.start_lock)
    try:
        locks.lock(descriptor, exclusive=True)
        yield
    finally:
        os.close(descriptor)


def _open(layout: Layout, explicit_quota: QuotaBytes) -> OpenRepository:
    take_no_more_than_is_written(layout.root)
    for directory in layout.directories:
        os.makedirs(directory, exist_ok=True)
        take_no_more_than_is_written(directory)
    if not os.path.exists(layout.refusals) or os.path.getsize(layout.refusals) < FILE_BYTES:
        Path(layout.refusals).write_bytes(bytes(FILE_BYTES))
    descriptor = locks.open_lock_file(layout.open_lock)
    try:
        alone = locks.try_lock(descriptor, exclusive=True)
        if alone:
            filesystem.write_inhabitants(layout.open_lock)
        else:
            filesystem.check_inhabitants(layout.open_lock, layout.root)
        marker = _settled_marker(layout, explicit_quota(filesystem.size_bytes(layout.root)), alone=alone)
        index = _judged(layout) if alone else Index(layout.index)
        Ballast(layout, Growth(index, Space(index, layout, reserve_bytes=0))).run()
        locks.lock(descriptor, exclusive=False)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenRepository(layout, index, marker, read_only=False, _open_lock=descriptor)


def _settled_marker(layout: Layout, quota_bytes: int | None, *, alone: bool) -> dict[str, Any]:
    """The marker, made if it is missing, with a quota: what somebody gave, else what the first to open it measured."""
    marker = recognise(Path(layout.root))
    if marker is None:
        marker = {"format": REPOSITORY_FORMAT, "made_by": "millpond"}
        _sync_parents(layout.root)
    changed = quota_bytes is not None and marker.get(GIVEN) != quota_bytes
    if changed:
        marker[GIVEN] = quota_bytes
    elif quota_in(marker) is None or (alone and GIVEN not in marker):
        changed = True
        marker[MEASURED] = filesystem.default_quota_bytes(layout.root)
    if changed or not os.path.exists(layout.marker):
        write_marker(layout, marker)
    return marker


def _sync_parents(directory: str) -> None:
    """Make a directory that is new, and those that were made on the way to it, durable."""
    device = os.stat(directory).st_dev
    for parent in Path(directory).absolute().parents:
        with contextlib.suppress(OSError):  # not ours to read, then not ours to have made
            if os.stat(parent).st_dev != device:
                return
            sync_directory(str(parent))


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
    index = believed(layout)
    is_new = index is None
    if index is None:
        shutil.rmtree(layout.index)
        os.mkdir(layout.index)
        index = Index(layout.index)
    try:
        if is_new:
            _make_anew(layout, index)
        mark(index, clean=False)
        _tidy(layout, index)
    except BaseException:
        index.close()
        raise
    return index


def _make_anew(layout: Layout, index: Index) -> None:
    begun = time.monotonic()
    rebuild(index, layout.segments, holes=holes(layout.root))
    with index.reading() as txn:
        blobs = txn.stat(index.blobs)["entries"]
    if blobs:
        log.warning("the index was made anew: %d blobs in %.1f s", blobs, time.monotonic() - begun)


def _tidy(layout: Layout, index: Index) -> None:
    """Remove what killed processes left, and count the room anew. Nobody else has the repository open."""
    used: dict[int, int] = {}
    with index.reading() as txn:
        known = dict(index.all_segments(txn))
    for number, path in segment_paths(layout.segments):
        if number in known:
            used[number] = max(file_bytes(path), cost_of(known[number]))
        else:
            os.unlink(path)
    for _, path in departed_segments(layout.segments):
        os.unlink(path)
    logs = sorted(os.scandir(layout.touch), key=lambda entry: entry.name)
    for log_file in logs[:-_KEPT_TOUCH_LOGS]:
        os.unlink(log_file.path)
    kept: dict[str, int] = {}
    for entry in list(os.scandir(layout.uploads)):
        if "-" in entry.name or time.time() - entry.stat().st_mtime > _OLD_UPLOAD_SECONDS:
            os.unlink(entry.path)
        else:
            kept[holders.upload(entry.name, entry.stat().st_ino)] = file_bytes(entry.path)
    space = Space(index, layout, reserve_bytes=0)
    with index.env.begin(write=True) as txn:
        space.count_anew(txn, used, kept)
