"""Files that must be there after a power loss: whole or not at all.

The rule: a new file is written beside its place, synced, and renamed; a name in a directory is durable only after the
directory was synced.
"""

import os

FILE_MODE = 0o640
"""For files that we make: whoever may read the group's files may make a copy of a repository. LMDB's files have it, too."""


def sync_directory(path: str) -> None:
    """Make what was made, renamed or removed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: str, content: bytes) -> None:
    """Replace the file at ``path`` by one with this content."""
    new = path + ".new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(new, path)
    sync_directory(os.path.dirname(path))
