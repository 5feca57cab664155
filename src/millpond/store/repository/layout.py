"""Where things lie in a repository, and what a directory that is none looks like.

::

    REPO/millpond.json     what this is: format versions, quota
         segments/         blobs                       index/    where they lie (LMDB; may be lost)
         names/            names (LMDB; precious)      uploads/  streamed uploads in progress
         touch/            uses and promises, as they happen
         uses/             the last use of each, merged (LMDB; may be lost)
         backup/           copies of names
         *.lock            who is there                refusals  until when everything counts as refused
         scrub             how far scrubbing came      ballast   blocks to give up when the disk is full

The rule: a directory that is not ours is recognised, named and left untouched.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millpond.core import json_text
from millpond.core.errors import RefusedToStart

REPOSITORY_FORMAT = 1
"""Raised by a change that an older Millpond must not touch. A newer one is refused; an older one is upgraded on open."""

MARKER = "millpond.json"
_CHECK = "check"
# What may be there before the marker: an empty mount point, or a repository that is just being made by another process.
_BEFORE_THE_MARKER = frozenset(
    {
        "lost+found",
        "start.lock",
        "open.lock",
        "segments",
        "index",
        "names",
        "uploads",
        "touch",
        "backup",
        "refusals",
        "uses",
    }
    | {f"{MARKER}.new", "scrub", "ballast"}
)
_OTHERS = (  # how it is recognised, what it is, and which import brings its content
    (("artifacts/refs", "source_protos"), "the store of a BuildStream 1.9x bst-artifact-server", "bst19"),
    (("cas/refs/heads",), "the store of a BuildStream 1.x bst-artifact-server", "bst1"),
    (("cas/objects", "cas/staging", "assets/objects"), "the store of buildbox-casd", "casd"),
    (("refs/tags", "objects/pack"), "a git repository", ""),
    (("refs/heads", "objects"), "an OSTree repository", ""),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of a repository."""

    root: str

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    @property
    def marker(self) -> str:
        """Says what this directory is."""
        return self._path(MARKER)

    @property
    def segments(self) -> str:
        """Segments."""
        return self._path("segments")

    @property
    def index(self) -> str:
        """The index environment."""
        return self._path("index")

    @property
    def names(self) -> str:
        """The names environment."""
        return self._path("names")

    @property
    def uploads(self) -> str:
        """Spool files."""
        return self._path("uploads")

    @property
    def touch(self) -> str:
        """Touch logs."""
        return self._path("touch")

    @property
    def backup(self) -> str:
        """Copies of names."""
        return self._path("backup")

    @property
    def refusals(self) -> str:
        """The overflow of refused digests."""
        return self._path("refusals")

    @property
    def ballast(self) -> str:
        """Blocks that are given up when the disk is full."""
        return self._path("ballast")

    @property
    def scrub(self) -> str:
        """How far scrubbing came."""
        return self._path("scrub")

    @property
    def promise_lock(self) -> str:
        """Shared by promises, taken exclusively by eviction."""
        return self._path("promise.lock")

    @property
    def upkeeper_lock(self) -> str:
        """Held for its life by the one process that does upkeep."""
        return self._path("upkeeper.lock")

    @property
    def upkeep_lock(self) -> str:
        """Held during each round of upkeep, and by commands that need quiet."""
        return self._path("upkeep.lock")

    @property
    def uses(self) -> str:
        """The environment of last uses."""
        return self._path("uses")

    @property
    def start_lock(self) -> str:
        """Held for a moment by whoever opens or leaves."""
        return self._path("start.lock")

    @property
    def open_lock(self) -> str:
        """Held shared by every process that has the repository open."""
        return self._path("open.lock")

    @property
    def directories(self) -> tuple[str, ...]:
        """Every directory of it."""
        return (self.segments, self.index, self.names, self.uploads, self.touch, self.backup, self.uses)


def recognise(repository: Path) -> dict[str, Any] | None:
    """The marker's content, or None for a place where a repository may be made.

    Raises:
        RefusedToStart: it is something else; it was not touched.
    """
    if not repository.exists():
        if repository.is_symlink():
            raise RefusedToStart(f"{repository} is a symbolic link that leads nowhere: make its target first")
        return None
    if not repository.is_dir():
        raise RefusedToStart(f"{repository} is a file: name a directory for the repository")
    try:
        entries = {entry.name for entry in os.scandir(repository)}
    except OSError as failure:
        raise RefusedToStart(f"{repository} cannot be read: {failure.strerror}") from None
    if MARKER in entries:
        return _marker(repository / MARKER)
    if not entries - _BEFORE_THE_MARKER:
        return None
    for signs, what, kind in _OTHERS:
        if any((repository / sign).is_dir() for sign in signs):
            how = f"; millpond import {kind} brings its content there" if kind else ""
            raise RefusedToStart(f"{repository} is {what}: name an empty or new directory for the repository{how}")
    raise RefusedToStart(f"{repository} holds another program's data: name an empty or new directory")


def _marker(path: Path) -> dict[str, Any]:
    try:
        marker = json_text.parse(path.read_bytes())
        version = marker["format"]
        if not isinstance(version, int):
            raise TypeError
        fits = marker.pop(_CHECK, None) in (None, _check(marker))
    except OSError as failure:
        raise RefusedToStart(f"{path} cannot be read: {failure.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise RefusedToStart(f"{path} is damaged: restore it from a backup, or name a new directory") from None
    if not fits:
        raise RefusedToStart(
            f"{path} does not fit its checksum, so that its quota may not be what somebody gave: restore it from a backup,"
            f' or make it right and remove the line "{_CHECK}"'
        )
    if version > REPOSITORY_FORMAT:
        raise RefusedToStart(
            f"{path.parent} was written by a newer Millpond (format {version}, this one knows {REPOSITORY_FORMAT}):"
            " upgrade Millpond"
        )
    return dict(marker)


def _check(fields: dict[str, Any]) -> str:
    """A flipped bit must not make another quota of what somebody gave."""
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=8).hexdigest()


def write_marker(layout: Layout, marker: dict[str, Any]) -> None:
    """Write the marker: new file, sync, rename, sync of the directory."""
    temporary = layout.marker + ".new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, json.dumps({**marker, _CHECK: _check(marker)}, indent=2).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(temporary, layout.marker)
    directory = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
