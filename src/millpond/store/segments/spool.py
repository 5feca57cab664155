"""Streamed uploads above a MiB: files in ``uploads/`` that can be gone on with after a broken connection.

A spool file is named by the hash of the whole resource name, because clients use one upload id for many blobs, and is
flock'ed while a stream writes to it: whoever gets the lock may go on, whoever does not starts at 0 under a name of its
own. It is laid out as a segment from the start, so that a large blob becomes a segment by a rename.
"""

import hashlib
import logging
import os
import secrets
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import xxhash

from millpond.core import limits
from millpond.core.clock import Clock
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import DigestMismatch, InvalidRequest, MillpondError, NoSpace
from millpond.core.outcome import Outcome
from millpond.disk import locks
from millpond.disk.blocks import ROWS
from millpond.disk.files import FILE_MODE
from millpond.disk.group_writer import GroupWriter, Transaction
from millpond.store.failures import told
from millpond.store.index import Entry
from millpond.store.interface import Bytes
from millpond.store.room import holders
from millpond.store.room.costs import segment_cost
from millpond.store.room.taken import BLOCK_BYTES
from millpond.store.room.waiting import Room
from millpond.store.segments.files import segment_name
from millpond.store.segments.format import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Record,
    SegmentHeader,
    record_header,
    table_checksum,
)
from millpond.store.segments.open_segment import WholeSegment, write_all
from millpond.store.segments.sealing import Sealer
from millpond.store.segments.writer import Placed, SegmentWriter

log = logging.getLogger(__name__)
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
        room: Room,
        sealer: Sealer,
        clock: Clock,
        stored: Stored,
    ) -> None:
        self.directory = directory
        self.segments = segments
        self.index_writer = index_writer
        self.writer = writer
        self.room = room
        self.space = room.space
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
            with suppress(OSError):
                if not os.fstat(descriptor).st_size:
                    os.unlink(os.path.join(self.directory, name))
            os.close(descriptor)
            raise

    def _begin(self, descriptor: int, name: str, digest: Digest, offset: int) -> "SpooledUpload":
        # Of one whose process was killed while its blob was put away there are checksums behind the bytes.
        status = os.fstat(descriptor)
        kept_bytes = min(digest.size_bytes, status.st_size - _DATA_AT)
        if offset and kept_bytes != offset:
            raise _cannot_go_on(digest, offset)
        whole = self.writer.room_for_file(digest)
        row = holders.upload(name, status.st_ino)
        kept = self.room.admit(lambda txn: self.space.announce(txn, row, whole, is_new=not status.st_size))
        try:
            os.ftruncate(descriptor, _DATA_AT + offset if offset else 0)
            return SpooledUpload(self, descriptor, name, row, digest, offset, claimed_bytes=kept, whole_bytes=whole)
        except BaseException:
            self.index_writer.submit_lazily(
                lambda txn: self.space.end_upload(txn, row, announced_bytes=max(0, whole - kept), kept_bytes=kept),
                insist=True,
            )
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
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
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
        self,
        uploads: Uploads,
        descriptor: int,
        name: str,
        row: str,
        digest: Digest,
        offset: int,
        *,
        claimed_bytes: int,
        whole_bytes: int,
    ) -> None:
        self._uploads = uploads
        self._descriptor = descriptor
        self._path = os.path.join(uploads.directory, name)
        self._goes_on = "-" not in name
        self._is_shared = uploads.writer.fits_in_shared(digest)  # now, because room is set aside for that
        self._row = row
        self._digest = digest
        self._claimed_bytes = claimed_bytes
        self._whole_bytes = whole_bytes
        self._header = SegmentHeader.new(0, uploads.clock())
        self._hash = digest.function.hasher()
        self._table = bytearray()
        self._chunk_hash = xxhash.xxh3_64(seed=self._header.seed)
        self._committed = 0
        self._ended = self._is_copied = False
        self._take_in(offset)
        self._close = weakref.finalize(self, os.close, descriptor)  # last: what fails here leaves it to the caller

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
        self._claim(min(self._whole_bytes, segment_cost(_DATA_AT + self._committed + len(data), 1)))
        try:
            write_all(self._descriptor, [data], _DATA_AT + self._committed)
        except OSError as failure:
            raise told(failure) from failure
        self._account(data)

    def _claim(self, size_bytes: int) -> None:
        """See to it that so much is set aside, and where there is plenty, more at once."""
        short = size_bytes - self._claimed_bytes
        if short <= 0:
            return
        space = self._uploads.space
        ahead = min(self._whole_bytes - self._claimed_bytes, max(short, space.step_bytes))

        def claim(txn: Transaction) -> int:
            step = ahead if space.fits(txn, ahead) else short
            space.claim_upload(txn, self._row, step)
            return step

        self._claimed_bytes += self._uploads.room.claim(short, claim)

    def finish(self) -> None:
        """Verify and store.

        Raises:
            DigestMismatch: the bytes are not the blob; they are forgotten.
            NoSpace: no room after all.
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
            self._claim(self._whole_bytes)
            self._uploads.index_writer.submit(_SpoolJob(self)).result()
        except BaseException:
            self.abandon()
            raise
        self._ended = True
        self._close()
        self._uploads.stored(self._digest)

    def suspend(self) -> None:
        """Keep what came."""
        if self._ended or not self._goes_on or not self._committed:
            self.abandon()
            return
        self._end(kept_bytes=self._taken_bytes())

    def abandon(self) -> None:
        """Forget what came."""
        if not self._ended:
            self._end(kept_bytes=0 if self._unlinked() else self._taken_bytes())

    def _end(self, *, kept_bytes: int) -> None:
        self._ended = True
        try:
            self._uploads.index_writer.run(lambda txn: self._let_go(txn, kept_bytes))
        except MillpondError:
            # The disk is full, say: its room comes back with the next transaction that goes through, and then, when
            # nobody knows of us any more, the file is closed. Whoever went on with it before would lose its own room.
            self._uploads.index_writer.submit_lazily(lambda txn: self._let_go(txn, kept_bytes), insist=True)
        else:
            self._close()  # and only now may another stream go on

    def _unlinked(self) -> bool:
        try:
            self._remove_file()
        except FileNotFoundError:
            pass
        except OSError as failure:
            log.warning("an upload that came to nothing could not be removed: %s", failure)
            return False
        return True

    def _remove_file(self) -> None:
        """Its blocks go at once, and not when it is closed: until then the ledger may have given their room to others."""
        os.unlink(self._path)
        os.ftruncate(self._descriptor, 0)

    def _taken_bytes(self) -> int:
        return os.fstat(self._descriptor).st_blocks * BLOCK_BYTES

    def _let_go(self, txn: Transaction, kept_bytes: int) -> None:
        left = max(0, self._whole_bytes - self._claimed_bytes)
        self._uploads.space.end_upload(txn, self._row, announced_bytes=left, kept_bytes=kept_bytes)

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
        if uploads.writer.holds(digest):
            self._remove_file()
            return None
        if self._is_shared and uploads.writer.fits_in_shared(digest):
            placed = uploads.writer.append_file(self._descriptor, _DATA_AT, digest)
            self._is_copied = True
            try:
                self._remove_file()
            except OSError:
                self.ended([placed])
                raise
            return placed
        header = SegmentHeader(uploads.writer.next_number(), self._header.created_ms, self._header.secret)
        table = bytes(self._table)
        write_all(self._descriptor, [table], _DATA_AT + digest.size_bytes)
        head = record_header(digest.key, digest.size_bytes, SEGMENT_HEADER_BYTES, header.seed)
        write_all(self._descriptor, [header.encode(), head], 0)
        path = os.path.join(uploads.segments, segment_name(header.number))
        os.rename(self._path, path)
        self._path = path  # where it is removed if it cannot be listed
        record = Record(digest.key, SEGMENT_HEADER_BYTES, digest.size_bytes, table_checksum(table, header.seed))
        uploads.sealer.seal(WholeSegment(os.dup(self._descriptor), header, record))
        entry = Entry(header.number, record.offset, record.size_bytes, record.checksum)
        return Placed(digest, entry, segment_cost(record.end, 1))

    def listed(self, txn: Transaction, placed: Placed | None) -> None:
        """List it."""
        if placed is not None:
            self._uploads.writer.list_placed(txn, [placed])
        self._let_go(txn, 0)

    def ended(self, unlisted: Sequence[Placed]) -> None:
        """Its copy is listed, but for this."""
        if self._is_copied:
            self._is_copied = False
            self._uploads.writer.ended(unlisted)


class _SpoolJob:
    """An upload on its way in."""

    def __init__(self, upload: SpooledUpload) -> None:
        self.outcome: Outcome[Any] = Outcome()
        self.rows = ROWS
        self._upload = upload
        self._placed: Placed | None = None

    def prepare(self) -> None:
        """Place the bytes."""
        self._placed = self._upload.place()

    def apply(self, txn: Transaction) -> None:
        """List them."""
        self._upload.listed(txn, self._placed)

    def committed(self) -> None:
        """What was set aside for the upload went with the listing."""
        self._upload.ended([])

    def failed(self) -> None:
        """The upload is abandoned, and what became of its file with it; a copy is cut off."""
        self._upload.ended([] if self._placed is None else [self._placed])


def _file_name(session: str) -> str:
    return hashlib.sha256(session.encode()).hexdigest()


def _cannot_go_on(digest: Digest, offset: int) -> InvalidRequest:
    return InvalidRequest(f"the upload of blob {digest} cannot go on at {offset}: begin again at 0")
