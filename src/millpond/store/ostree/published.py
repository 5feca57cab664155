"""What of an OSTree repository is for everybody to read, and nothing else.

The rule: a path from the network is first compared with the shapes that OSTree gives its files, and only then opened,
part by part, following no symbolic link. So it leads to a regular file below the repository or to nothing, whatever it
is made of. The descriptor that comes out is the only thing that is used afterwards.
"""

import errno
import os
import re
import stat
from dataclasses import dataclass

from millpond.core import limits

_KINDS = "commit|commitmeta|dirtree|dirmeta|filez|sig|sizes2|tombstone-commit"
_CHECKSUM_AS_TEXT = "[A-Za-z0-9+_]{2}/[A-Za-z0-9+_]{41}"  # base64 with _ for /, cut into two
_PART = r"[A-Za-z0-9_][-._A-Za-z0-9]*"
_PUBLISHED = re.compile(
    r"config|summary|summary\.sig"
    rf"|objects/[0-9a-f]{{2}}/[0-9a-f]{{62}}\.(?:{_KINDS})"
    rf"|refs/heads/{_PART}(?:/{_PART})*"
    rf"|delta-indexes/{_CHECKSUM_AS_TEXT}\.index"
    rf"|deltas/{_CHECKSUM_AS_TEXT}(?:-[A-Za-z0-9+_]{{43}})?/(?:superblock|meta|[0-9]{{1,6}})",
    re.ASCII,
)
_LONGEST_CHARS = len("refs/heads/") + 1024  # the longest ref
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """An open file. ``version`` changes when the file is another; ``content`` is all of it, when it is small."""

    descriptor: int
    size_bytes: int
    version: str
    content: bytes | None = None

    def read(self, offset: int, count: int) -> bytes:
        """``count`` bytes at ``offset``; fewer only when the file has become shorter."""
        if self.content is not None:
            return self.content[offset : offset + count]
        return os.pread(self.descriptor, count, offset)

    def close(self) -> None:
        """Let it go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)


class Published:
    """The files of one repository by the paths that clients ask for. Blocking, and for any thread."""

    def __init__(self, root: str) -> None:
        self._root = root

    def open(self, path: str) -> PublishedFile | None:
        """The file at ``path``, relative to the repository; None when there is none, or none to be read by all.

        Raises:
            OSError: it is there and cannot be read.
        """
        if len(path) > _LONGEST_CHARS or not _PUBLISHED.fullmatch(path):
            return None
        descriptor = self._open_below(path.split("/"))
        if descriptor is None:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                os.close(descriptor)
                return None
            version = f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
            if path == "config":
                content = _core_group(os.pread(descriptor, _CONFIG_BYTES, 0))
            elif status.st_size <= limits.HTTP_CHUNK_BYTES:
                content = os.pread(descriptor, limits.HTTP_CHUNK_BYTES, 0)
            else:
                return PublishedFile(descriptor, status.st_size, version)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return PublishedFile(-1, len(content), version, content)

    def _open_below(self, parts: list[str]) -> int | None:
        """Open step by step, so that no part of the way is a symbolic link. The root itself may be one."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                below = os.open(part, flags | os.O_DIRECTORY, dir_fd=at)
                os.close(at)
                at = below
            return os.open(parts[-1], flags, dir_fd=at)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        finally:
            os.close(at)


def _core_group(config: bytes) -> bytes:
    """The group ``[core]``, which is what a client wants to know.

    Other groups are the administrator's: quotas, and remotes whose addresses may hold passwords.
    """
    kept, inside = [], False
    for line in config.splitlines(keepends=True):
        if line.lstrip().startswith(b"["):
            inside = line.strip() == b"[core]"
        if inside:
            kept.append(line)
    return b"".join(kept)
