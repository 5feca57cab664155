"""What of ours lies in an OSTree repository, and where: all of it below ``state/millpond`` and ``tmp``.

Nothing of it is served, and all of it can be done without: a repository that lacks it is as good.
"""

from __future__ import annotations

import os

STATE = "state/millpond"
TMP = "tmp"
USES = f"{STATE}/uses"
"""When which commit was pulled (``uses.py``)."""
PUSHES = f"{STATE}/pushes"
"""A line for every push (``pushes.py``)."""
LEDGER = f"{STATE}/sizes"
"""How much lies in each directory of objects (``room.py``)."""
UNFINISHED = f"{STATE}/unfinished"
"""Is there while refs and summary may differ (``summary.py``)."""
BALLAST = f"{STATE}/ballast"
"""Disk space to give up when the disk is full (``ballast.py``)."""

STAGING_PREFIX = "millpond-push-"
"""Directories in ``tmp`` into which pushes are received."""
OLD_STAGING_PREFIX = "bst-push-"
"""Those of the receiver that was here before."""

_STATE_MODE = 0o770
"""Who pushed from where is not for all. Receiver and server may be two users of one group."""


def make_state(repo: str) -> None:
    """Make the directory for our own files, where it is missing."""
    path = f"{repo}/{STATE}"
    if not os.path.isdir(path):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, _STATE_MODE)
