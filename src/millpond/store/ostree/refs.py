"""The refs of a repository: files below ``refs/``, each with a commit in it.

The rule: a ref changes by a rename, so it always is one commit or the other. Several are made ready first and then renamed
together, so that what can fail has failed before the first one changes.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.errors import InvalidRequest
from millpond.protocol.ostree.names import is_checksum, is_ref
from millpond.store.ostree.disk import make_directories, read_file, write_file

HEADS = "refs/heads"
ALL = "refs"
"""With ``remotes`` and ``mirrors``, which an administrator's ``ostree pull`` makes: what they name stays, too."""

_MOST_BYTES = 4096


def read_ref(path: str) -> str | None:
    """The commit in a ref's file; empty when it is damaged, None when there is no such ref."""
    try:
        text = read_file(path, _MOST_BYTES).decode("ascii", "replace").strip()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return text if is_checksum(text) else ""


def list_refs(repo: str, below: str = HEADS) -> dict[str, str]:
    """Each ref below this directory and its commit; an empty commit is a damaged ref."""
    found: dict[str, str] = {}
    _list(f"{repo}/{below}", "", found)
    return found


def _list(directory: str, prefix: str, found: dict[str, str]) -> None:
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _list(entry.path, f"{prefix}{entry.name}/", found)
        else:
            commit = read_ref(entry.path)
            if commit is not None and is_ref(prefix + entry.name):
                found[prefix + entry.name] = commit


def check_room_for(repo: str, refs: list[str]) -> None:
    """Whether these refs can all be files: none of them a directory of another.

    Raises:
        InvalidRequest: one cannot.
    """
    names = set(refs)
    for ref in refs:
        parents = [ref[:at] for at, char in enumerate(ref) if char == "/"]
        for parent in parents:
            if parent in names or os.path.isfile(f"{repo}/{HEADS}/{parent}"):
                raise InvalidRequest(f"the ref {ref!r} cannot be beside the ref {parent!r}")
        if os.path.isdir(f"{repo}/{HEADS}/{ref}") and _has_file(f"{repo}/{HEADS}/{ref}"):
            raise InvalidRequest(f"the ref {ref!r} cannot be beside those that begin with {ref + '/'!r}")


def _has_file(directory: str) -> bool:
    return any(files for _, _, files in os.walk(directory))


class Change:
    """Refs that are to become these commits, made ready in ``staging``, a directory of the same file system."""

    def __init__(self, repo: str, commits: dict[str, str], staging: str) -> None:
        self._heads = f"{repo}/{HEADS}"
        self._staging = staging
        self._commits = {f"{self._heads}/{ref}": commit for ref, commit in commits.items()}
        self._changed: list[tuple[str, str | None]] = []

    def prepare(self) -> None:
        """Write what is to be renamed, and keep what is there now.

        Raises:
            OSError: a file or directory cannot be made.
        """
        for number, (path, commit) in enumerate(self._commits.items()):
            _remove_empty(path)
            make_directories(os.path.dirname(path), self._heads)
            write_file(f"{self._staging}/ref-{number}", f"{commit}\n".encode())
            with suppress(FileNotFoundError):
                os.link(path, f"{self._staging}/ref-{number}-before")

    def directories(self) -> set[str]:
        """Those in which something is renamed."""
        return {os.path.dirname(path) for path in self._commits}

    def apply(self) -> None:
        """Rename them all; what was done before a failure is for :meth:`revert`.

        Raises:
            OSError: one cannot be renamed.
        """
        for number, path in enumerate(self._commits):
            before = f"{self._staging}/ref-{number}-before"
            known = before if os.path.exists(before) else None
            os.rename(f"{self._staging}/ref-{number}", path)
            self._changed.append((path, known))

    def revert(self) -> bool:
        """Make them what they were, even when the disk is full; whether that could be done."""
        reverted = True
        for path, before in self._changed:
            try:
                if before is None:
                    os.unlink(path)
                else:
                    os.rename(before, path)
            except OSError:
                reverted = False
        for path in self._commits:  # and the directories that were made for them
            _remove_parents(path, self._heads)
        return reverted


def _remove_empty(path: str) -> None:
    """Directories without a ref in them may stand where a ref is to be: libostree leaves them."""
    if os.path.isdir(path) and not os.path.islink(path):
        for directory, _, _ in os.walk(path, topdown=False):
            os.rmdir(directory)


def remove_ref(repo: str, ref: str) -> None:
    """The ref is no more; directories that nothing is in any more go, too.

    Raises:
        OSError: it cannot be removed.
    """
    path = f"{repo}/{HEADS}/{ref}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    _remove_parents(path, f"{repo}/{HEADS}")


def _remove_parents(path: str, top: str) -> None:
    parent = os.path.dirname(path)
    while parent != top:
        try:
            os.rmdir(parent)
        except FileNotFoundError:
            pass  # those above it may be there
        except OSError:
            return
        parent = os.path.dirname(parent)
