"""Writing ``REPO/summary``: always from the refs as they are now, under the repository's lock.

The rule: while refs and summary may differ, ``state/millpond/unfinished`` is there; whoever of us comes by and finds it
writes the summary anew, so that not even a kill leaves a summary that stays wrong. A ref whose commit is gone is not
listed: clients would try to pull it.
"""

from __future__ import annotations

import os
from contextlib import suppress

from millpond.core.errors import InvalidRequest
from millpond.protocol.ostree.names import loose_path
from millpond.protocol.ostree.objects import parse_commit
from millpond.protocol.ostree.summary import Listed, Summary, decode_summary, encode_summary
from millpond.store.ostree.disk import read_file, write_file
from millpond.store.ostree.places import UNFINISHED, make_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NEW = "tmp/millpond-summary"


def current(repo: str) -> Summary | None:
    """What the summary says; None when there is none that can be read."""
    try:
        return decode_summary(read_file(f"{repo}/summary"))
    except (OSError, InvalidRequest):
        return None


def listed(repo: str, refs: Mapping[str, str], staged: Mapping[str, bytes] | None = None) -> dict[str, Listed]:
    """What a summary has to say of these refs; ``staged`` are commits that are about to lie in the repository."""
    before = current(repo)
    known = {one.commit: one for one in before.refs.values()} if before is not None else {}
    found = {}
    for ref, commit in refs.items():
        entry = _entry(repo, commit, known, staged or {}) if commit else None
        if entry is not None:
            found[ref] = entry
    return found


def _entry(repo: str, commit: str, known: Mapping[str, Listed], staged: Mapping[str, bytes]) -> Listed | None:
    if commit in staged:
        return Listed(commit, len(staged[commit]), parse_commit(staged[commit]).timestamp)
    path = f"{repo}/{loose_path(commit, 'commit')}"
    try:
        size = os.stat(path).st_size
        before = known.get(commit)
        if before is not None and before.size == size:
            return before
        return Listed(commit, size, parse_commit(read_file(path)).timestamp)
    except (OSError, InvalidRequest):
        return None


class NewSummary:
    """A summary that lies ready beside the old one; under the repository's lock.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, repo: str, refs: Mapping[str, Listed], now_ms: int, *, has_tombstones: bool) -> None:
        self._repo = repo
        self._new = f"{repo}/{_NEW}"
        with suppress(FileNotFoundError):
            os.unlink(self._new)
        try:
            write_file(self._new, encode_summary(Summary(refs, now_ms // 1000, has_tombstones)))
        except BaseException:
            self.abandon()
            raise

    def apply(self) -> None:
        """From now on it is the summary. A signature was of the old one.

        Raises:
            OSError: it cannot be put there.
        """
        with suppress(FileNotFoundError):
            os.unlink(f"{self._repo}/summary.sig")
        os.rename(self._new, f"{self._repo}/summary")

    def abandon(self) -> None:
        """It is not to be."""
        with suppress(FileNotFoundError):
            os.unlink(self._new)


def begin_change(repo: str) -> None:
    """From now on refs and summary may differ."""
    path = f"{repo}/{UNFINISHED}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
    except FileNotFoundError:
        make_state(repo)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
    os.close(descriptor)


def end_change(repo: str) -> None:
    """They are the same again."""
    with suppress(FileNotFoundError):
        os.unlink(f"{repo}/{UNFINISHED}")
