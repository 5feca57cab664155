"""What the disk and LMDB say, in the words of the closed family."""

import errno
import logging

import lmdb

from millpond.core.errors import MillpondError, NoSpace, NotReady
from millpond.disk import environment

log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def told(failure: Exception, path: str = "/") -> Exception:
    """``failure`` as it may be told; the cause goes to the log. ``path``: where it happened."""
    if isinstance(failure, MillpondError):
        return failure
    full = isinstance(failure, OSError) and failure.errno in _FULL
    if isinstance(failure, lmdb.Error):
        full = isinstance(failure, lmdb.MapFullError) or environment.is_no_space(failure, path)
    if full:
        log.warning("no room on the disk: %s", failure)
        return NoSpace("the cache's disk is full")
    if isinstance(failure, OSError | lmdb.Error):
        log.error("the store could not be written: %s", failure, exc_info=failure)
        return NotReady("the cache could not write to its disk: try again, and tell its maintainer")
    return failure
