"""``google.bytestream.ByteStream``: blobs that are too large for a batch, and resumable uploads."""

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, InvalidRequest, NotReady, OffsetOutOfRange, Stalled
from millpond.protocol import resource_names
from millpond.services.access import Admission, Principal
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.interface import Bytes, OpenBlob
from millpond.wire import layout
from millpond.wire.calling import Caller, decode
from millpond.wire.errors import Context
from millpond.wire.gate import Gate
from millpond.wire.receiving import Receiver

SERVICE = bytestream_pb2.DESCRIPTOR.services_by_name["ByteStream"]


class ByteStreamServicer:
    """Reads, writes, and how far a write came."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller
        self._uploads = 0

    async def read(self, raw: bytes, context: Context) -> AsyncIterator[bytes]:
        """``Read``."""
        admission = self._gate.admission()
        principal = self._gate.principal(context)
        request = decode(bytestream_pb2.ReadRequest, raw)
        reader = admission.reader(principal, resource_names.instance_of(request.resource_name))
        name = resource_names.parse_read(request.resource_name)
        _check_compressor(name.compressor)
        start, end = _range(request, name.digest)
        if name.digest.size_bytes <= limits.CHUNK_BYTES:
            yield layout.read_response(await self._small(reader, name.digest, start, end))
            return
        with await self._caller.briefly(reader.open_blob, name.digest) as blob:
            for index in range(start // limits.CHUNK_BYTES, -(-end // limits.CHUNK_BYTES)):
                chunk = await self._chunk(blob, index)
                at = index * limits.CHUNK_BYTES
                if at < start or at + len(chunk) > end:
                    chunk = memoryview(chunk)[max(0, start - at) : end - at]
                yield layout.read_response(chunk)

    async def _small(self, reader: Reader, digest: Digest, start: int, end: int) -> Bytes:
        (data,) = await self._caller.briefly(reader.read_blobs, [digest])
        if data is None:
            raise BlobNotFound(f"blob {digest} is not in this cache")
        return data if end - start == len(data) else memoryview(data)[start:end]

    async def _chunk(self, blob: OpenBlob, index: int) -> Bytes:
        return await self._caller.briefly(blob.chunk, index)

    async def write(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        """``Write``. Refused before anything is read from a peer that may not push."""
        admission = self._gate.admission()
        principal = self._gate.principal(context)
        admission.check_push(principal)
        if self._uploads >= limits.UPLOADS:
            raise NotReady(f"{limits.UPLOADS} uploads are in progress here: try again in a few seconds")
        self._uploads += 1
        try:
            committed = await self._receive(admission, principal, messages)
        finally:
            self._uploads -= 1
        return bytestream_pb2.WriteResponse(committed_size=committed).SerializeToString()

    async def _receive(self, admission: Admission, principal: Principal, messages: AsyncIterator[bytes]) -> int:
        first = await _next(messages)
        if first is None:
            raise InvalidRequest("a Write needs at least one message")
        writer = admission.writer(principal, resource_names.instance_of(first.resource_name))
        name = resource_names.parse_write(first.resource_name)
        _check_compressor(name.compressor)
        receiver = Receiver(writer, name.digest, first.resource_name, self._caller)
        if name.digest != EMPTY and await self._caller.writing(writer.holds, name.digest):
            return name.digest.size_bytes
        try:
            message: layout.WriteMessage | None = first
            while message is not None:
                if await receiver.accept(message):
                    return name.digest.size_bytes
                message = await _next(messages)
        except InvalidRequest:
            await receiver.abandon()
            raise
        except BaseException:
            await receiver.suspend()
            raise
        await receiver.suspend()
        raise InvalidRequest(
            f"the upload ended before finish_write: {receiver.committed} of {name.digest.size_bytes} bytes came"
        )

    async def query_write_status(self, raw: bytes, context: Context) -> bytes:
        """``QueryWriteStatus``."""
        admission = self._gate.admission()
        principal = self._gate.principal(context)
        admission.check_push(principal)
        request = decode(bytestream_pb2.QueryWriteStatusRequest, raw)
        writer = admission.writer(principal, resource_names.instance_of(request.resource_name))
        name = resource_names.parse_write(request.resource_name)
        _check_compressor(name.compressor)
        return await self._caller.writing(_write_status, writer, name.digest, request.resource_name)


def _write_status(writer: Writer, digest: Digest, session: str) -> bytes:
    complete = writer.holds(digest)
    committed = digest.size_bytes if complete else writer.upload_offset(session)
    return bytestream_pb2.QueryWriteStatusResponse(committed_size=committed, complete=complete).SerializeToString()


async def _next(messages: AsyncIterator[bytes]) -> layout.WriteMessage | None:
    try:
        async with asyncio.timeout(limits.UPLOAD_STALL_SECONDS):
            raw = await anext(messages, None)
    except TimeoutError:
        raise Stalled(f"nothing came for {limits.UPLOAD_STALL_SECONDS} s: resume the upload") from None
    if raw is None:
        return None
    try:
        return layout.parse_write(raw)
    except DecodeError:
        raise InvalidRequest("the request is not a google.bytestream.WriteRequest") from None


def _range(request: bytestream_pb2.ReadRequest, digest: Digest) -> tuple[int, int]:
    """The bytes asked for: from, to (bytestream.proto, ``ReadRequest``)."""
    if request.read_limit < 0:
        raise InvalidRequest("read_limit must not be negative")
    if not 0 <= request.read_offset <= digest.size_bytes:
        raise OffsetOutOfRange(f"read_offset {request.read_offset} is outside of blob {digest}")
    end = digest.size_bytes
    if request.read_limit:
        end = min(end, request.read_offset + request.read_limit)
    return request.read_offset, end


def _check_compressor(compressor: str) -> None:
    if compressor != resource_names.IDENTITY:
        raise InvalidRequest(f"compressor {compressor[:40]!r} is not offered here: use blobs/HASH/SIZE")
