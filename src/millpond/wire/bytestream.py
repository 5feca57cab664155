"""``google.bytestream.ByteStream``: blobs that are too large for a batch, and resumable uploads."""

from collections.abc import AsyncGenerator

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, InvalidRequest, NotReady, OffsetOutOfRange
from millpond.protocol import resource_names
from millpond.services.access import Admission, Principal
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.interface import Bytes, OpenBlob
from millpond.wire import layout
from millpond.wire.calling import Caller, decode
from millpond.wire.gate import Gate
from millpond.wire.receiving import Receiver, Turns
from millpond.wire.rpc import Context, Parts

SERVICE = bytestream_pb2.DESCRIPTOR.services_by_name["ByteStream"]


class ByteStreamServicer:
    """Reads, writes, and how far a write came."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller
        self._uploads = 0
        self._turns = Turns()

    async def read(self, raw: bytes, context: Context) -> AsyncGenerator[Parts, None]:
        """``Read``."""
        admission = self._gate.admission()
        principal = context.principal
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

    async def write(self, _: bytes, context: Context) -> bytes:
        """``Write``. Refused before anything is read from a peer that may not push."""
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        if self._uploads >= limits.UPLOADS:
            raise NotReady(f"{limits.UPLOADS} uploads are in progress here: try again in a few seconds")
        self._uploads += 1
        try:
            committed = await self._receive(admission, principal, context)
        finally:
            self._uploads -= 1
        return bytestream_pb2.WriteResponse(committed_size=committed).SerializeToString()

    async def _receive(self, admission: Admission, principal: Principal, context: Context) -> int:
        receiver: Receiver | None = None
        try:
            while True:
                async with self._turns.next_message(context) as message:
                    if message is None:
                        break
                    if receiver is None:
                        receiver = self._begin(admission, principal, message)
                        if await receiver.is_needless():
                            return receiver.digest.size_bytes
                    if await receiver.accept(message):
                        return receiver.digest.size_bytes
                del message  # or every upload that waits for its turn would keep its last one
        except InvalidRequest:
            if receiver is not None:
                await receiver.abandon()
            raise
        except BaseException:
            if receiver is not None:
                await receiver.suspend()
            raise
        if receiver is None:
            raise InvalidRequest("a Write needs at least one message")
        await receiver.suspend()
        raise InvalidRequest(
            f"the upload ended before finish_write: {receiver.committed} of {receiver.digest.size_bytes} bytes came"
        )

    def _begin(self, admission: Admission, principal: Principal, first: layout.WriteMessage) -> Receiver:
        writer = admission.writer(principal, resource_names.instance_of(first.resource_name))
        name = resource_names.parse_write(first.resource_name)
        _check_compressor(name.compressor)
        return Receiver(writer, name.digest, first.resource_name, self._caller)

    async def query_write_status(self, raw: bytes, context: Context) -> bytes:
        """``QueryWriteStatus``."""
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        request = decode(bytestream_pb2.QueryWriteStatusRequest, raw)
        writer = admission.writer(principal, resource_names.instance_of(request.resource_name))
        name = resource_names.parse_write(request.resource_name)
        _check_compressor(name.compressor)
        return await self._caller.writing(_write_status, writer, name.digest, request.resource_name)


def _write_status(writer: Writer, digest: Digest, session: str) -> bytes:
    complete = writer.holds(digest)
    committed = digest.size_bytes if complete else writer.upload_offset(digest, session)
    return bytestream_pb2.QueryWriteStatusResponse(committed_size=committed, complete=complete).SerializeToString()


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
