"""One streamed upload on its way from messages into the store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.message import DecodeError

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import DigestMismatch, InvalidRequest, Stalled
from millpond.services.writing import Writer
from millpond.store.interface import Upload
from millpond.wire.calling import Caller
from millpond.wire.layout import WriteMessage, parse_write
from millpond.wire.rpc import Context

_LOOK_EVERY_BYTES = 16 * limits.MIB
"""How often a running upload looks whether somebody else has brought the blob meanwhile."""


class Turns:
    """Lets a bounded number of uploads receive and store a message at once, so that messages do not fill the memory.

    A turn covers one message, from when it is here until it is stored: a peer that does not send takes no turn from others.
    What is here has room in its stream's window, or in :class:`millpond.wire.inflow.Inflow`.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(limits.MESSAGES_IN_HAND)

    @asynccontextmanager
    async def next_message(self, context: Context) -> AsyncIterator[WriteMessage | None]:
        """The next message while it is this upload's turn; None after the last.

        Raises:
            Stalled: nothing came for ``limits.UPLOAD_STALL_SECONDS``.
            InvalidRequest: not a ``WriteRequest``.
        """
        try:
            async with asyncio.timeout(limits.UPLOAD_STALL_SECONDS):
                await context.arrived()
        except TimeoutError:
            raise Stalled(f"nothing came for {limits.UPLOAD_STALL_SECONDS} s: resume the upload") from None
        async with self._free:
            raw = await context.read()
            yield None if raw is None else _decoded(raw)


def _decoded(raw: bytes) -> WriteMessage:
    try:
        return parse_write(raw)
    except DecodeError:
        raise InvalidRequest("the request is not a google.bytestream.WriteRequest") from None


class Receiver:
    """Takes the messages of one Write: small blobs into memory, larger ones into an :class:`Upload`."""

    def __init__(self, writer: Writer, digest: Digest, session: str, caller: Caller) -> None:
        self._writer = writer
        self.digest = digest
        self._session = session
        self._caller = caller
        self._begun = False
        self._small: bytearray | None = None
        self._upload: Upload | None = None
        self._looked_at = 0
        self.committed = 0

    async def is_needless(self) -> bool:
        """Whether the blob is here already (remote_execution.proto: the call then ends at once)."""
        return self.digest != EMPTY and await self._caller.writing(self._writer.holds, self.digest)

    async def accept(self, message: WriteMessage) -> bool:
        """Take one message; True when the blob is complete in the store.

        Raises:
            InvalidRequest: the message does not go on where the last one ended, or is not this blob's.
            NoSpace: no room.
        """
        if self._begun:
            if message.resource_name not in ("", self._session):
                raise InvalidRequest("resource_name changed in the middle of an upload")
            if message.write_offset != self.committed:
                raise InvalidRequest(
                    f"write_offset {message.write_offset} does not follow: {self.committed} bytes are committed"
                )
        else:
            await self._begin(message.write_offset)
        if self.committed + len(message.data) > self.digest.size_bytes:
            raise DigestMismatch(f"more bytes were sent than blob {self.digest} has")
        if self._small is not None:
            return await self._accept_small(message)
        assert self._upload is not None
        return await self._caller.writing(self._accept_spooled, self._upload, message)

    async def _begin(self, offset: int) -> None:
        if offset < 0:
            raise InvalidRequest(f"write_offset must not be negative, got {offset}")
        if self.digest.size_bytes <= limits.IN_MEMORY_UPLOAD_BYTES:
            if offset:
                raise InvalidRequest(f"nothing of this upload is kept: begin again at 0, not at {offset}")
            self._small = bytearray()
        else:
            await self._caller.writing(self._begin_spooled, offset)
        self._begun = True

    def _begin_spooled(self, offset: int) -> None:
        # Assigned in the thread: a stream that is cancelled meanwhile finds what it must suspend.
        self._upload = self._writer.begin_upload(self.digest, self._session, offset=offset)
        self.committed = offset

    async def _accept_small(self, message: WriteMessage) -> bool:
        assert self._small is not None
        # Most small blobs come in one message: its data is used as it lies.
        data = message.data if message.finish_write and not self._small else self._small
        if data is self._small:
            self._small += message.data
        self.committed += len(message.data)
        if not message.finish_write:
            return False
        self._check_complete()
        if self.digest != EMPTY:
            (failure,) = await self._caller.writing(self._writer.put_blobs, [(self.digest, data)])
            if failure is not None:
                raise failure
        return True

    def _accept_spooled(self, upload: Upload, message: WriteMessage) -> bool:
        self._writer.write_upload(upload, self.digest, message.data)
        self.committed = upload.committed_bytes
        if message.finish_write:
            self._check_complete()
            self._writer.finish_upload(upload, self.digest)
            self._upload = None
            return True
        if self.committed - self._looked_at >= _LOOK_EVERY_BYTES:
            self._looked_at = self.committed
            if self._writer.holds(self.digest):
                upload.abandon()
                self._upload = None
                return True
        return False

    def _check_complete(self) -> None:
        if self.committed != self.digest.size_bytes:
            raise DigestMismatch(f"{self.committed} bytes were sent for blob {self.digest}")

    async def abandon(self) -> None:
        """Forget what came."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            await self._caller.writing(upload.abandon)

    async def suspend(self) -> None:
        """Keep what came, so that the upload can be resumed."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            await self._caller.writing(upload.suspend)
