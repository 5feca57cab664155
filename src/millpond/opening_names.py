"""How the names of a repository are opened, by servers, by upkeep and by commands alike.

The rule: where there must be names, none at all is damage, and nobody begins anew with an empty index in silence.
"""

from pathlib import Path

from millpond.core import limits
from millpond.names.backups import copies
from millpond.names.lmdb_names import LmdbNames
from millpond.store.repository.layout import Layout
from millpond.store.room.quota import StoredQuota
from millpond.store.segments.rebuild import segment_paths


def open_names(layout: Layout, *, read_only: bool = False) -> LmdbNames:
    """The names of a repository. There must be some where there are segments, whose numbers come from them, or copies.

    Raises:
        RefusedToStart: they are missing, damaged, or cannot be used.
    """
    quota = StoredQuota(layout)
    return LmdbNames(
        Path(layout.names),
        read_only=read_only,
        must_exist=any(True for _ in segment_paths(layout.segments)) or bool(copies(Path(layout.backup))),
        limit_bytes=lambda: limits.names_bytes(quota.quota_bytes),
    )
