"""Notes beside an environment that say whether it may be opened at all, whatever it says itself.

LMDB dies of damaged pages, even of looking at them. So what may be damaged is not asked: a note beside the environment
*vouches* for its file, by the boot of the machine and the very file while it is written, or for good after a clean end.
What nobody vouches for (after a power loss, or in a copy that was taken while it was written) is made anew unopened.

Processes that die of signals again and again may be dying of damaged pages, which nobody can look at without dying too.
So the supervisor, which opens no environment, leaves a note beside it; whoever next has the repository alone makes the
index and the table of uses anew, and the note goes with what it was about.
"""

import os
from contextlib import suppress

from millpond.disk.files import FILE_MODE, sync_directory
from millpond.store.repository import filesystem
from millpond.store.repository.layout import Layout

_NOTE = "distrusted"
_VOUCHED = "vouched"
_CLEAN = "clean"
_VOUCHED_BYTES = 128


def distrust(layout: Layout) -> None:
    """Note that what can be made anew is to be made anew. A disk that does not take the note is no reason to fail."""
    for environment in (layout.index, layout.uses):
        with suppress(OSError):
            os.close(os.open(os.path.join(environment, _NOTE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))


def is_distrusted(environment: str) -> bool:
    """Whether there is such a note about the environment in this directory."""
    return os.path.exists(os.path.join(environment, _NOTE))


def vouch(environment: str, *, clean: bool) -> None:
    """Vouch for the file in this directory: before the first write of this boot, and again when all of it is synced.

    Written in place, in one sector: that is whole or not at all, and needs no room on a disk that is full.
    """
    word = (_CLEAN if clean else _file(environment)).encode().ljust(_VOUCHED_BYTES)
    descriptor = os.open(os.path.join(environment, _VOUCHED), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        is_new = os.fstat(descriptor).st_size < len(word)
        os.pwrite(descriptor, word, 0)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        sync_directory(environment)


def is_vouched(environment: str) -> bool:
    """Whether the file in this directory may be opened."""
    try:
        with open(os.path.join(environment, _VOUCHED), encoding="utf-8", errors="replace") as note:
            word = note.read().rstrip()
        return word in (_CLEAN, _file(environment))
    except OSError:
        return False  # there is none, or the disk has lost it


def _file(environment: str) -> str:
    file = os.stat(os.path.join(environment, "data.mdb"))
    return f"{filesystem.boot_id()} {file.st_dev} {file.st_ino}"
