"""What the disk and LMDB say, in the words of the closed family."""

import errno
import logging

import lmdb

from millpond.core.errors import MillpondError, NoSpace, NotReady
from millpond.core.seldom import Seldom
from millpond.disk import environment
from millpond.store.segments.format import Damaged

seldom = Seldom(logging.getLogger(__name__))
_LOST = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def told(failure: Exception, path: str = "/") -> Exception:
    """``failure`` as it may be told; the cause goes to the log. ``path``: where it happened."""
    if isinstance(failure, MillpondError):
        return failure
    if is_full(failure, path):
        seldom.say(logging.WARNING, "full", f"no room on the disk: {failure}")
        refusal = NoSpace("the cache's disk is full")
        refusal.__cause__ = failure
        return refusal
    if isinstance(failure, OSError | lmdb.Error):
        seldom.say(logging.ERROR, "write", f"the store could not be written: {failure}")
        return NotReady("the cache could not write to its disk: try again, and tell its maintainer")
    return failure


def is_the_disks(refusal: Exception | None) -> bool:
    """Whether the disk itself said that there is no room, whatever the ledger says (a user's quota on it, say)."""
    return isinstance(refusal, NoSpace) and refusal.__cause__ is not None


def is_full(failure: Exception, path: str) -> bool:
    """Whether it failed for want of room on the disk."""
    if isinstance(failure, lmdb.Error):
        return isinstance(failure, lmdb.MapFullError) or environment.is_no_space(failure, path)
    return isinstance(failure, NoSpace) or (isinstance(failure, OSError) and failure.errno in _FULL)


def told_of_reading(failure: OSError) -> Exception:
    """Whether bytes are lost, or the machine only has no means to read them now."""
    if failure.errno in _LOST:
        return Damaged(f"the disk could not read it: {failure.strerror}")
    seldom.say(logging.ERROR, "read", f"a segment could not be read: {failure}")
    return NotReady("the cache cannot read from its disk now: try again, and tell its maintainer")
