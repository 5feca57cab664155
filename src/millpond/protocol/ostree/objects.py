"""OSTree's objects: what stands in a commit, a tree, a directory's metadata, and at the head of a stored file.

The rule: an object is believed when its bytes hash to its name *and* say something that a tree can be made of. A client
unpacks it as root of its sandbox, so a name such as ``..`` is refused here and not left to it. All numbers are
big-endian.
"""

from __future__ import annotations

import stat
from collections import namedtuple
from hashlib import sha256
from struct import Struct

from millpond.core import limits
from millpond.core.errors import DigestMismatch, InvalidRequest, TooMuch
from millpond.protocol.gvariant import NotNormal, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

COMMIT_TYPE = "(a{sv}aya(say)sstayay)"
DIRTREE_TYPE = "(a(say)a(sayay))"
DIRMETA_TYPE = "(uuua(ayay))"
FILE_TYPE = "(uuuusa(ayay))"
STORED_FILE_TYPE = "(tuuuusa(ayay))"
"""``FILE_TYPE`` with the size before it, which no hash covers."""

HEAD_BYTES = 8
"""A header is preceded by its length, four bytes, and four zero bytes."""

_CHECKSUM_BYTES = 32
_PERMISSIONS = 0o7777
_HEAD = Struct(">I4x")
_PLAIN = Struct(">QIIII")
_PLAIN_END = b"\0\x19"
"""How a stored header without target and without extended attributes goes on after its numbers."""
_PLAIN_HASHED = Struct(">I4xIIII")
_PLAIN_HASHED_END = b"\0\x11"
"""And the same without the size: nearly all files are such, and there are many."""


class Commit(namedtuple("Commit", ("parent", "timestamp", "tree", "meta"))):
    """A commit: seconds since 1970, the root's tree and metadata; no parent is an empty text."""

    __slots__ = ()
    parent: str
    timestamp: int
    tree: str
    meta: str


class DirTree(namedtuple("DirTree", ("files", "directories"))):
    """A directory: name and checksum of each file; name, tree and metadata of each directory."""

    __slots__ = ()
    files: Sequence[tuple[str, str]]
    directories: Sequence[tuple[str, str, str]]


class DirMeta(namedtuple("DirMeta", ("uid", "gid", "mode", "xattrs"))):
    """Owner, mode and extended attributes of a directory."""

    __slots__ = ()
    uid: int
    gid: int
    mode: int
    xattrs: Sequence[tuple[bytes, bytes]]


class FileHeader(namedtuple("FileHeader", ("size", "uid", "gid", "mode", "target", "xattrs"))):
    """What is said of a file before its content: its size uncompressed, and where a symlink leads."""

    __slots__ = ()
    size: int
    uid: int
    gid: int
    mode: int
    target: str
    xattrs: Sequence[tuple[bytes, bytes]]

    @property
    def is_symlink(self) -> bool:
        """Whether there is no content."""
        return stat.S_ISLNK(self.mode)

    def encode(self) -> bytes:
        """As it stands in a ``.filez``, its length before it."""
        return _headed(encode(STORED_FILE_TYPE, (self.size, *self._hashed()), order="big"))

    def hashed(self) -> bytes:
        """What the name of the object is made of, before the content."""
        if not self.target and not self.xattrs:
            size = _PLAIN_HASHED.size - HEAD_BYTES + len(_PLAIN_HASHED_END)
            return _PLAIN_HASHED.pack(size, self.uid, self.gid, self.mode, 0) + _PLAIN_HASHED_END
        return _headed(encode(FILE_TYPE, self._hashed(), order="big"))

    def _hashed(self) -> tuple[object, ...]:
        return (self.uid, self.gid, self.mode, 0, self.target, list(self.xattrs))


def _headed(header: bytes) -> bytes:
    return _HEAD.pack(len(header)) + header


# -- reading ----------------------------------------------------------------------------------------------------------


def parse_commit(data: bytes) -> Commit:
    """A commit.

    Raises:
        InvalidRequest: it is none.
    """
    _, parent, _, _, _, timestamp, tree, meta = _read("commit", COMMIT_TYPE, data)
    if parent and len(parent) != _CHECKSUM_BYTES:
        raise InvalidRequest("a commit whose parent is no checksum")
    return Commit(parent.hex(), timestamp, _checksum("commit", tree), _checksum("commit", meta))


def parse_dirtree(data: bytes) -> DirTree:
    """A directory, its names sorted and each of them once.

    Raises:
        InvalidRequest: it is none.
    """
    files, directories = _read("dirtree", DIRTREE_TYPE, data)
    _check_names([name for name, _ in files], [name for name, _, _ in directories])
    return DirTree(
        [(name, _checksum("dirtree", content)) for name, content in files],
        [(name, _checksum("dirtree", tree), _checksum("dirtree", meta)) for name, tree, meta in directories],
    )


def parse_dirmeta(data: bytes) -> DirMeta:
    """Metadata of a directory.

    Raises:
        InvalidRequest: it is none.
    """
    meta = DirMeta(*_read("dirmeta", DIRMETA_TYPE, data))
    if not stat.S_ISDIR(meta.mode) or meta.mode & ~_PERMISSIONS != stat.S_IFDIR:
        raise InvalidRequest(f"a dirmeta with the mode {meta.mode:o}, which no directory has")
    return meta


def parse_metadata(kind: str, data: bytes) -> Commit | DirTree | DirMeta:
    """Whichever of the three it is.

    Raises:
        InvalidRequest: it is none.
    """
    if kind == "commit":
        return parse_commit(data)
    return parse_dirtree(data) if kind == "dirtree" else parse_dirmeta(data)


def check_metadata(checksum: str, kind: str, data: bytes) -> Commit | DirTree | DirMeta:
    """An object that is what its name says.

    Raises:
        DigestMismatch: its bytes are another object's.
        InvalidRequest: it is none of this kind.
    """
    if sha256(data).hexdigest() != checksum:
        raise DigestMismatch(f"{checksum}.{kind} is not what its name says")
    try:
        return parse_metadata(kind, data)
    except InvalidRequest as why:
        raise InvalidRequest(f"{checksum}.{kind}: {why}") from None


def check_commitmeta(data: bytes) -> None:
    """What stands beside a commit, such as signatures: it is in no hash, only its form can be looked at.

    Raises:
        InvalidRequest: it is nothing that libostree would read.
    """
    _decoded("commitmeta", "a{sv}", data)


def file_header_bytes(head: bytes) -> int:
    """How long the header is that follows the first eight bytes of a stored file.

    Raises:
        InvalidRequest: these are not the first bytes of one.
        TooMuch: longer than any.
    """
    size = int.from_bytes(head[:4], "big")
    if len(head) != HEAD_BYTES or any(head[4:]):
        raise InvalidRequest("a filez that does not begin with a header")
    if size > limits.OSTREE_METADATA_BYTES:
        raise TooMuch(f"a filez with a header of {size} bytes: {limits.OSTREE_METADATA_BYTES} are the most")
    return size


def parse_file_header(header: bytes) -> FileHeader:
    """The header of a stored file, without the eight bytes before it.

    Raises:
        InvalidRequest: it is none.
    """
    if len(header) == _PLAIN.size + len(_PLAIN_END) and header.endswith(_PLAIN_END):  # nearly all of them
        size, uid, gid, mode, rdev = _PLAIN.unpack_from(header)
        target, xattrs = "", []
    else:
        size, uid, gid, mode, rdev, target, xattrs = _read("filez", STORED_FILE_TYPE, header)
    if rdev or mode & ~_PERMISSIONS not in (stat.S_IFREG, stat.S_IFLNK):
        raise InvalidRequest(f"a filez with the mode {mode:o}: a regular file or a symlink was expected")
    if stat.S_ISLNK(mode) != bool(target) or (target and size):
        raise InvalidRequest("a filez that is half a file and half a symlink")
    return FileHeader(size, uid, gid, mode, target, xattrs)


def _decoded(kind: str, type_string: str, data: bytes) -> object:
    try:
        return decode(type_string, data, order="big")
    except NotNormal as failure:
        raise InvalidRequest(f"a damaged {kind}: {failure}") from None


def _read(kind: str, type_string: str, data: bytes) -> tuple[Any, ...]:
    value = _decoded(kind, type_string, data)
    assert isinstance(value, tuple)
    return value


def _checksum(kind: str, raw: bytes) -> str:
    if len(raw) != _CHECKSUM_BYTES:
        raise InvalidRequest(f"a {kind} that names something by {len(raw)} bytes: {_CHECKSUM_BYTES} were expected")
    return raw.hex()


def _check_names(*lists: list[str]) -> None:
    seen: set[str] = set()
    for names in lists:
        before = b""
        for name in names:
            encoded = name.encode()
            if name in ("", ".", "..") or "/" in name:
                raise InvalidRequest(f"a dirtree with the name {name[:100]!r}")
            if encoded <= before:
                raise InvalidRequest("a dirtree whose names are not sorted, or doubled")
            before = encoded
        if not seen.isdisjoint(names):
            raise InvalidRequest("a dirtree with one name for a file and a directory")
        seen.update(names)


# -- writing ----------------------------------------------------------------------------------------------------------


def encode_commit(commit: Commit, *, subject: str = "", body: str = "") -> bytes:
    """A commit's bytes, without metadata."""
    parent, tree, meta = (bytes.fromhex(one) for one in (commit.parent, commit.tree, commit.meta))
    return encode(COMMIT_TYPE, ([], parent, [], subject, body, commit.timestamp, tree, meta), order="big")


def encode_dirtree(tree: DirTree) -> bytes:
    """A directory's bytes."""
    files = [(name, bytes.fromhex(content)) for name, content in tree.files]
    directories = [(name, bytes.fromhex(sub), bytes.fromhex(meta)) for name, sub, meta in tree.directories]
    return encode(DIRTREE_TYPE, (files, directories), order="big")


def encode_dirmeta(meta: DirMeta) -> bytes:
    """A directory's metadata as bytes."""
    return encode(DIRMETA_TYPE, (meta.uid, meta.gid, meta.mode, list(meta.xattrs)), order="big")
