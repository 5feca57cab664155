"""What the disk and LMDB say, in the words of the closed family."""

import errno
import logging

import lmdb

from millpond.core.errors import MillpondError, NoSpace, NotReady
from millpond.disk import environment
from millpond.store.segment_format import Damaged

log = logging.getLogger(__name__)
_LOST = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA)
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


def told_of_reading(failure: OSError) -> Exception:
    """Whether bytes are lost, or the machine only has no means to read them now."""
    if failure.errno in _LOST:
        return Damaged(f"the disk could not read it: {failure.strerror}")
    log.error("a segment could not be read: %s", failure, exc_info=failure)
    return NotReady("the cache cannot read from its disk now: try again, and tell its maintainer")
