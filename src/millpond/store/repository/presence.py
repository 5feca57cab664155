"""Being there without an index: for commands that look at names, or that want to be alone.

The rule: whoever touches a repository holds ``open.lock``, so that who wants it for himself knows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from millpond.core.errors import RefusedToStart
from millpond.disk import locks
from millpond.store.repository import filesystem
from millpond.store.repository.layout import Layout
from millpond.store.repository.opening import existing, starting


@contextmanager
def present(path: Path) -> Iterator[Layout]:
    """Be one of those who have a repository open, without its index: for a look at names.

    Raises:
        RefusedToStart: there is none at ``path``, or we cannot share it with those who have it open.
    """
    layout, _ = existing(path)
    read_only = not filesystem.writable(layout.root)
    try:
        with nullcontext() if read_only else starting(layout):
            descriptor = locks.open_lock_file(layout.open_lock, read_only=read_only)
            if not read_only and locks.try_lock(descriptor, exclusive=True):
                filesystem.write_inhabitants(layout.open_lock)
            else:
                filesystem.check_inhabitants(layout.open_lock, layout.root)
            locks.lock(descriptor, exclusive=False)
    except OSError as failure:
        raise RefusedToStart(f"{path} cannot be used: {failure.strerror}") from None
    try:
        yield layout
    finally:
        os.close(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[Layout]:
    """Keep everybody else out of a repository.

    Raises:
        RefusedToStart: there is none at ``path``, somebody has it open, or it cannot be written.
    """
    layout, _ = existing(path)
    try:
        with starting(layout):
            descriptor = locks.open_lock_file(layout.open_lock)
            try:
                if not locks.try_lock(descriptor, exclusive=True):
                    raise RefusedToStart(f"{path} is in use: stop its servers first")
                filesystem.write_inhabitants(layout.open_lock)
                yield layout
            finally:
                os.close(descriptor)
    except OSError as failure:
        raise RefusedToStart(f"{path} cannot be used: {failure.strerror}") from None
