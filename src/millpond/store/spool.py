"""Streamed uploads above a MiB: files in ``uploads/`` that can be gone on with after a broken connection.

A spool file is named by the hash of the whole resource name, because clients use one upload id for many blobs, and is
flock'ed while a stream writes to it: whoever gets the lock may go on, whoever does not starts at 0 under a name of its
own. It is laid out as a segment from the start, so that a large blob becomes a segment by a rename.
"""

import hashlib
import os
import secrets
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Protocol

import xxhash

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import DigestMismatch, InvalidRequest, NoSpace
from millpond.disk import locks
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.failures import told
from millpond.store.index import Entry
from millpond.store.interface import Bytes
from millpond.store.open_segment import write_all
from millpond.store.sealing import Sealer
from millpond.store.segment_files import segment_name
from millpond.store.segment_format import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Record,
    SegmentHeader,
    record_bytes,
    record_header,
    table_checksum,
)
from millpond.store.segment_writer import Placed, SegmentWriter
from millpond.store.space import FOOTER_ENTRY_BYTES, Space

_DATA_AT = SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES


class Stored(Protocol):
    """Told that a blob was stored."""

    def __call__(self, digest: Digest) -> None:
        """``digest`` is in the index."""


class Uploads:
    """Begins uploads and knows how far interrupted ones came."""

    def __init__(
        self,
        directory: str,
        segments: str,
        index_writer: GroupWriter,
        writer: SegmentWriter,
        space: Space,
        sealer: Sealer,
        clock: Clock,
        stored: Stored,
    ) -> None:
        self.directory = directory
        self.segments = segments
        self.index_writer = index_writer
        self.writer = writer
        self.space = space
        self.sealer = sealer
        self.clock = clock
        self.stored = stored

    def begin(self, digest: Digest, session: str, *, offset: int) -> "SpooledUpload":
        """Begin or go on.

        Raises:
            InvalidRequest: nothing that ends at ``offset`` is kept, or another stream still writes it.
            NoSpace: no room.
        """
        if digest.size_bytes > self.space.largest_blob_bytes:
            raise NoSpace(f"blob {digest} is larger than this cache can ever hold")
        name = _file_name(session)
        descriptor = self._open(name)
        if descriptor is None and offset == 0:
            name += f"-{secrets.token_hex(4)}"
            descriptor = self._open(name)
        if descriptor is None:
            raise _cannot_go_on(digest, offset)
        try:
            return self._begin(descriptor, name, digest, offset)
        except BaseException:
            if not os.fstat(descriptor).st_size:
                os.unlink(os.path.join(self.directory, name))
            os.close(descriptor)
            raise

    def _begin(self, descriptor: int, name: str, digest: Digest, offset: int) -> "SpooledUpload":
        if offset and (os.fstat(descriptor).st_size - _DATA_AT != offset or offset > digest.size_bytes):
            raise _cannot_go_on(digest, offset)
        room = record_bytes(digest.size_bytes) + FOOTER_ENTRY_BYTES

        def claim(txn: Transaction) -> None:
            self.space.set_suspended(txn, name, 0)
            self.space.claim(txn, room)

        self.index_writer.run(claim)
        try:
            if not offset:
                os.ftruncate(descriptor, 0)
            return SpooledUpload(self, descriptor, name, digest, offset, room)
        except BaseException:
            self.index_writer.run(lambda txn: self.space.give_back(txn, room))
            raise

    def offset(self, session: str) -> int:
        """Where :meth:`begin` would go on; 0 while another stream still writes, or when nothing is kept."""
        try:
            descriptor = os.open(os.path.join(self.directory, _file_name(session)), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            if not locks.try_lock(descriptor, exclusive=True):
                return 0
            return max(0, os.fstat(descriptor).st_size - _DATA_AT)
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int | None:
        """A locked descriptor of the spool file, or None while somebody else holds it."""
        path = os.path.join(self.directory, name)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if not locks.try_lock(descriptor, exclusive=True):
                os.close(descriptor)
                return None
            try:
                # The name may have gone (renamed, abandoned) between opening and locking.
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)


class SpooledUpload:
    """One upload; ends in exactly one of finish, suspend, abandon."""

    def __init__(
        self, uploads: Uploads, descriptor: int, name: str, digest: Digest, offset: int, claimed_bytes: int
    ) -> None:
        self._uploads = uploads
        self._descriptor = descriptor
        self._name = name
        self._digest = digest
        self._claimed_bytes = claimed_bytes
        self._header = SegmentHeader.new(0, uploads.clock())
        self._hash = digest.function.hasher()
        self._table = bytearray()
        self._chunk_hash = xxhash.xxh3_64(seed=self._header.seed)
        self._committed = 0
        self._written_back = 0
        self._ended = False
        self._take_in(offset)

    @property
    def committed_bytes(self) -> int:
        """Bytes accepted so far."""
        return self._committed

    def write(self, data: Bytes) -> None:
        """Accept the next bytes.

        Raises:
            DigestMismatch: too many.
            NoSpace, NotReady: the disk refused them.
        """
        if self._committed + len(data) > self._digest.size_bytes:
            raise DigestMismatch(f"more bytes were sent than blob {self._digest} has")
        try:
            write_all(self._descriptor, [data], _DATA_AT + self._committed)
        except OSError as failure:
            raise told(failure) from failure
        self._account(data)

    def finish(self) -> None:
        """Verify and store.

        Raises:
            DigestMismatch: the bytes are not the blob; they are forgotten.
        """
        if self._committed != self._digest.size_bytes or self._hash.digest() != self._digest.key[1:]:
            self.abandon()
            raise DigestMismatch(f"the bytes sent for blob {self._digest} are not that blob")
        if self._digest == EMPTY:
            self.abandon()
            return
        if self._committed % limits.CHUNK_BYTES:
            self._close_chunk()
        try:
            self._uploads.index_writer.submit(_SpoolJob(self)).result()
        except BaseException:
            self.abandon()
            raise
        self._ended = True
        os.close(self._descriptor)
        self._uploads.stored(self._digest)

    def suspend(self) -> None:
        """Keep what came."""
        if self._ended or "-" in self._name or not self._committed:
            self.abandon()
            return
        kept = os.fstat(self._descriptor).st_size
        self._end(lambda space, txn: space.set_suspended(txn, self._name, kept))

    def abandon(self) -> None:
        """Forget what came."""
        if not self._ended:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._uploads.directory, self._name))
            self._end(lambda space, txn: space.set_suspended(txn, self._name, 0))

    def _end(self, note: Any) -> None:
        if self._ended:
            return
        self._ended = True

        def apply(txn: Transaction) -> None:
            self._uploads.space.give_back(txn, self._claimed_bytes)
            note(self._uploads.space, txn)

        try:
            self._uploads.index_writer.run(apply)
        finally:
            os.close(self._descriptor)  # and only now may another stream go on

    def _take_in(self, offset: int) -> None:
        """Hash what an interrupted upload left: its checksums were kept in the memory of a process that may be gone."""
        while self._committed < offset:
            size = min(limits.CHUNK_BYTES, offset - self._committed)
            data = os.pread(self._descriptor, size, _DATA_AT + self._committed)
            if len(data) != size:
                raise _cannot_go_on(self._digest, offset)
            self._account(data)

    def _account(self, data: Bytes) -> None:
        self._hash.update(data)
        view = memoryview(data)
        while view:
            room = limits.CHUNK_BYTES - self._committed % limits.CHUNK_BYTES
            part, view = view[:room], view[room:]
            self._chunk_hash.update(part)
            self._committed += len(part)
            if self._committed % limits.CHUNK_BYTES == 0:
                self._close_chunk()

    def _close_chunk(self) -> None:
        self._table += self._chunk_hash.intdigest().to_bytes(8, "little")
        self._chunk_hash = xxhash.xxh3_64(seed=self._header.seed)

    # -- in the index-writer thread ---------------------------------------------------------------------------------

    def place(self) -> Placed | None:
        """Turn the spool file into a segment, or copy it into the current one; None where the blob is held by now."""
        uploads, digest = self._uploads, self._digest
        path = os.path.join(uploads.directory, self._name)
        if uploads.writer.holds(digest):
            os.unlink(path)
            return None
        if uploads.writer.fits_in_shared(digest):
            placed = uploads.writer.append_file(self._descriptor, _DATA_AT, digest)
            os.unlink(path)
            return placed
        header = SegmentHeader(uploads.writer.next_number(), self._header.created_ms, self._header.secret)
        table = bytes(self._table)
        write_all(self._descriptor, [table], _DATA_AT + digest.size_bytes)
        head = record_header(digest.key, digest.size_bytes, SEGMENT_HEADER_BYTES, header.seed)
        write_all(self._descriptor, [header.encode(), head], 0)
        os.rename(path, os.path.join(uploads.segments, segment_name(header.number)))
        record = Record(digest.key, SEGMENT_HEADER_BYTES, digest.size_bytes, table_checksum(table, header.seed))
        uploads.sealer.seal(_WholeSegment(os.dup(self._descriptor), header, record))
        entry = Entry(header.number, record.offset, record.size_bytes, record.checksum)
        return Placed(digest, entry, self._claimed_bytes)

    def listed(self, txn: Transaction, placed: Placed | None) -> None:
        """List it."""
        if placed is None:
            self._uploads.space.give_back(txn, self._claimed_bytes)
        else:
            self._uploads.writer.list_placed(txn, [placed])


class _WholeSegment:
    """A segment that holds one blob and is complete."""

    def __init__(self, descriptor: int, header: SegmentHeader, record: Record) -> None:
        self.descriptor = descriptor
        self.header = header
        self.end = record.end
        self.sync_begun = record.end
        self.records = [record]


class _SpoolJob:
    """An upload on its way in."""

    def __init__(self, upload: SpooledUpload) -> None:
        self.future: Future[Any] = Future()
        self._upload = upload
        self._placed: Placed | None = None

    def prepare(self) -> None:
        """Place the bytes."""
        self._placed = self._upload.place()

    def apply(self, txn: Transaction) -> None:
        """List them."""
        self._upload.listed(txn, self._placed)

    def committed(self) -> None:
        """Nothing: the upload's claim was spent with the listing."""


def _file_name(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()


def _cannot_go_on(digest: Digest, offset: int) -> InvalidRequest:
    return InvalidRequest(f"the upload of blob {digest} cannot go on at {offset}: begin again at 0")
