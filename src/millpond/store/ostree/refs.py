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
    """Refs that are to become these commits, made ready in ``staging``, a directory of the same file system.

    Raises:
        OSError: a file or directory cannot be made.
    """

    def __init__(self, repo: str, commits: dict[str, str], staging: str) -> None:
        self._repo = repo
        self._staging = staging
        self._ready: list[tuple[str, str]] = []
        self._before: dict[str, str | None] = {}
        heads = f"{repo}/{HEADS}"
        for number, (ref, commit) in enumerate(commits.items()):
            new, path = f"{staging}/ref-{number}", f"{heads}/{ref}"
            _remove_empty(path)
            make_directories(os.path.dirname(path), heads)
            write_file(new, f"{commit}\n".encode())
            self._ready.append((new, path))
            self._before[path] = read_ref(path)

    def directories(self) -> set[str]:
        """Those in which something is renamed."""
        return {os.path.dirname(path) for _, path in self._ready}

    def apply(self) -> None:
        """Rename them all; if one cannot be, those before it become what they were.

        Raises:
            OSError: one cannot be.
        """
        changed = []
        try:
            for new, path in self._ready:
                os.rename(new, path)
                changed.append(path)
        except OSError:
            self.revert(changed)
            raise

    def revert(self, paths: list[str] | None = None) -> None:
        """Make them what they were."""
        for path in [path for _, path in self._ready] if paths is None else paths:
            before = self._before[path]
            with suppress(OSError):
                if before is None:
                    os.unlink(path)
                    _remove_parents(path, f"{self._repo}/{HEADS}")
                else:
                    new = f"{self._staging}/ref-before"
                    write_file(new, f"{before}\n".encode())
                    os.rename(new, path)

    def abandon(self) -> None:
        """None of them is to change after all: the directories that were made for them go."""
        for _, path in self._ready:
            _remove_parents(path, f"{self._repo}/{HEADS}")


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
        except OSError:
            return
        parent = os.path.dirname(parent)
