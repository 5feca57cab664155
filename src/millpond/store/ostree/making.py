"""Making a repository, or taking over one that is there already.

The rule: what is there stays. Making a repository twice is making it once.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.errors import MillpondError, RefusedToStart
from millpond.store.ostree import config
from millpond.store.ostree.ballast import take_ballast
from millpond.store.ostree.disk import read_file, sync_repository, write_file
from millpond.store.ostree.places import TMP, make_state
from millpond.store.ostree.repository import DIRECTORIES, Repository, open_repository


def make_repository(path: str, *, quota_bytes: int | None, reserve_bytes: int | None) -> tuple[Repository, bool]:
    """The repository at ``path`` with its summary, and whether it was made just now.

    A quota or a reserve of None stays what it was.

    Raises:
        RefusedToStart: something else is there, or it cannot be written.
    """
    is_new = not os.path.exists(f"{path}/config")
    try:
        if is_new:
            _check_empty(path)
        os.makedirs(path, exist_ok=True)
        for name in DIRECTORIES:
            os.makedirs(f"{path}/{name}", exist_ok=True)
        make_state(path)
        if is_new:
            write_file(f"{path}/config", config.NEW.encode())
        repository = open_repository(path)
        with repository.lock():
            configure(repository, quota_bytes=quota_bytes, reserve_bytes=reserve_bytes)
            repository.rewrite_summary()
            take_ballast(path)
            sync_repository(path)
    except OSError as failure:
        raise RefusedToStart(f"{path} cannot be written: {os.strerror(failure.errno or 0)}") from None
    except RefusedToStart:
        raise
    except MillpondError as failure:
        raise RefusedToStart(f"{path}: {failure}") from None
    return open_repository(path), is_new


def configure(repository: Repository, *, quota_bytes: int | None = None, reserve_bytes: int | None = None) -> None:
    """Write what is to be kept into the config; and that libostree is to write the summary, too, unless it says otherwise.

    Raises:
        OSError: it cannot be written.
    """
    path = f"{repository.path}/config"
    before = read_file(path).decode("utf-8", "surrogateescape")
    text = before
    if config.says_nothing_of_updates(text):
        text = config.with_keys(text, "core", {config.AUTO_UPDATE: "true"})
    keys = {"quota-bytes": quota_bytes, "reserve-bytes": reserve_bytes}
    ours = {key: str(value) for key, value in keys.items() if value is not None}
    if ours:
        text = config.with_keys(text, config.SECTION, ours)
    if text == before:
        return
    new = f"{repository.path}/{TMP}/millpond-config"
    with suppress(FileNotFoundError):
        os.unlink(new)
    write_file(new, text.encode("utf-8", "surrogateescape"), mode=os.stat(path).st_mode & 0o7777)
    os.rename(new, path)


def _check_empty(path: str) -> None:
    if os.path.isdir(path) and os.listdir(path):
        raise RefusedToStart(f"{path} is not empty and no OSTree repository: name another directory")
    if os.path.exists(path) and not os.path.isdir(path):
        raise RefusedToStart(f"{path} is no directory")
