"""``build.bazel.remote.execution.v2.ContentAddressableStorage``."""

import functools
import itertools
import operator
from collections.abc import AsyncGenerator, Callable, Sequence

from google.protobuf.message import DecodeError

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.google.rpc import status_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest, MillpondError, NoSpace, NotReady, NotServed
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.interface import Bytes
from millpond.wire import layout
from millpond.wire.calling import Caller, decode
from millpond.wire.errors import code_number
from millpond.wire.gate import Gate, check_function
from millpond.wire.rpc import Context, Parts
from millpond.wire.tree_pages import TreePages

Admit = Callable[[str], Reader]
"""An instance name to its reader."""
Answer = Callable[..., bytes]
SERVICE = re_pb2.DESCRIPTOR.services_by_name["ContentAddressableStorage"]
_ON_LOOP_BYTES = 72 * limits.LOOKUPS_ON_LOOP
"""The length of a request with as many digests as are looked up on the loop."""
_IDENTITY = re_pb2.Compressor.IDENTITY
_NOT_FOUND = status_pb2.Status(code=5, message="this blob is not in the cache")
_NO_ROOM_IN_ANSWER = status_pb2.Status(code=8, message="the answer is full: ask again")
_EXPLAINED_ITEM_BYTES = 120
"""What an item without data takes at most: a digest of 79 bytes, one of the statuses above, tags and lengths."""
_FAILED_ITEM_BYTES = 88
"""The same with the number of a status only: what is left of an explanation where an answer has many items."""
_BATCH_ITEMS = limits.ANSWER_BYTES // _FAILED_ITEM_BYTES
"""The most blobs in one batch: each has room in the answer at least to fail. BuildStream 1 sends up to 1 MiB of whatever
small files there are."""


class ContentAddressableStorageServicer:
    """Blobs in batches, and trees."""

    def __init__(self, gate: Gate, caller: Caller) -> None:
        self._gate = gate
        self._caller = caller

    async def find_missing_blobs(self, raw: bytes, context: Context) -> bytes:
        """``FindMissingBlobs``."""
        return await self._about_digests(_find_missing, raw, context)

    async def batch_update_blobs(self, raw: bytes, context: Context) -> bytes:
        """``BatchUpdateBlobs``."""
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        request = decode(re_pb2.BatchUpdateBlobsRequest, raw)
        writer = admission.writer(principal, request.instance_name)
        check_function(request.digest_function)
        _check_count(len(request.requests))
        if not request.requests:
            return b""
        return await self._caller.storing(_update, writer, request)

    async def batch_read_blobs(self, raw: bytes, context: Context) -> bytes:
        """``BatchReadBlobs``."""
        return await self._about_digests(_read_batch, raw, context)

    async def _about_digests(self, answer: Answer, raw: bytes, context: Context) -> bytes:
        """Short requests on the loop, long ones where much is computed, their parsing included."""
        admission = self._gate.admission()
        principal = context.principal
        call = self._caller.briefly if len(raw) <= _ON_LOOP_BYTES else self._caller.computing
        return await call(answer, functools.partial(admission.reader, principal), raw)

    async def get_tree(self, raw: bytes, context: Context) -> AsyncGenerator[Parts, None]:
        """``GetTree``."""
        admission = self._gate.admission()
        principal = context.principal
        request = decode(re_pb2.GetTreeRequest, raw)
        reader = admission.reader(principal, request.instance_name)
        check_function(request.digest_function)
        root = Digest.parse(request.root_digest.hash, request.root_digest.size_bytes)
        pages = TreePages(reader, root, page_size=request.page_size, page_token=request.page_token)
        while (page := await self._caller.reading(pages.next_page)) is not None:
            yield (page,)

    async def split_blob(self, raw: bytes, context: Context) -> bytes:
        """``SplitBlob``: not yet."""
        admission = self._gate.admission()
        request = decode(re_pb2.SplitBlobRequest, raw)
        admission.reader(context.principal, request.instance_name)
        raise NotServed("SplitBlob is not offered here: read the blob whole")

    async def splice_blob(self, raw: bytes, context: Context) -> bytes:
        """``SpliceBlob``: not yet."""
        admission = self._gate.admission()
        principal = context.principal
        admission.check_push(principal)
        request = decode(re_pb2.SpliceBlobRequest, raw)
        admission.writer(principal, request.instance_name)
        raise NotServed("SpliceBlob is not offered here: write the blob whole")


def _admitted(
    admit: Admit, parse: Callable[[bytes], layout.DigestList], raw: bytes
) -> tuple[Reader, layout.DigestList]:
    """A request that is a list of digests, and the reader that its instance admits to; digests are looked at later (I7)."""
    try:
        request = parse(raw)
    except DecodeError:
        raise InvalidRequest("the request is not of this method's type") from None
    reader = admit(request.instance_name)
    check_function(request.digest_function)
    return reader, request


def _check_count(items: int) -> None:
    if items > _BATCH_ITEMS:
        raise InvalidRequest(f"a batch holds at most {_BATCH_ITEMS} blobs, this one {items}: use several")


def _find_missing(admit: Admit, raw: bytes, *, wait: bool = True) -> bytes:
    reader, request = _admitted(admit, layout.parse_find_missing, raw)
    missing = reader.find_missing(request.validated(), wait=wait)
    if request.encoded is not None and len(missing) == len(request.digests):
        return request.encoded
    return layout.find_missing_response(missing)


def _update(writer: Writer, request: re_pb2.BatchUpdateBlobsRequest) -> bytes:
    """Verify and store the items of a batch; each succeeds or fails alone.

    But where it is the server that has no room, or cannot store now, it is the status of the call. BuildStream 1 goes on
    without a push when a call has no room, and tries again when it is UNAVAILABLE; when an item says so, it fails the job.
    Items that were stored all the same are no longer missing.
    """
    items = [(item, item.data) for item in request.requests]
    if sum(len(data) for _, data in items) > limits.BATCH_BYTES:
        raise InvalidRequest(f"a batch holds at most {limits.BATCH_BYTES} bytes: write large blobs by ByteStream")
    outcomes: list[MillpondError | None] = [None] * len(items)
    sound: list[int] = []
    blobs: list[tuple[Digest, Bytes]] = []
    for at, (item, data) in enumerate(items):
        try:
            if item.compressor != _IDENTITY:
                raise InvalidRequest(f"compressor number {item.compressor} is not offered here")
            blobs.append((Digest.parse(item.digest.hash, item.digest.size_bytes), data))
            sound.append(at)
        except InvalidRequest as failure:
            outcomes[at] = failure
    for at, outcome in zip(sound, writer.put_blobs(blobs), strict=True):
        if isinstance(outcome, NoSpace | NotReady):
            raise outcome
        outcomes[at] = outcome
    response = re_pb2.BatchUpdateBlobsResponse()
    for (item, _), outcome in zip(items, outcomes, strict=True):
        answer = response.responses.add(digest=item.digest)
        if outcome is not None:
            answer.status.code, answer.status.message = code_number(outcome), str(outcome)
        else:
            answer.status.SetInParent()
    if response.ByteSize() > limits.ANSWER_BYTES:
        for answer in response.responses:
            answer.status.ClearField("message")
    return response.SerializeToString()


def _read_batch(admit: Admit, raw: bytes, *, wait: bool = True) -> bytes:
    """Lay out the answer; never more than ``limits.ANSWER_BYTES``."""
    reader, request = _admitted(admit, layout.parse_batch_read, raw)
    if not request.digests:
        return b""  # every job of BuildStream 1 asks so, to see whether it may
    _check_count(len(request.digests))
    try:
        digests = request.validated()
    except InvalidRequest:
        return _read_item_by_item(reader, request, wait=wait)
    size_bytes = sum([digest[1] for digest in digests])
    _check_size(size_bytes)
    contents = reader.read_blobs(digests, wait=wait)
    each = _set_aside(len(digests))
    if size_bytes <= limits.ANSWER_BYTES - each * len(digests) and all(
        map(operator.is_not, contents, itertools.repeat(None))
    ):
        return b"".join(layout.batch_read_items(digests, contents))  # type: ignore[arg-type]  # none is None
    parts, _ = _lay_out(digests, contents, limits.ANSWER_BYTES - each * len(digests), each)
    return b"".join(parts)


def _check_size(size_bytes: int) -> None:
    if size_bytes > limits.BATCH_BYTES:
        raise InvalidRequest(f"a batch may ask for at most {limits.BATCH_BYTES} bytes: read large blobs by ByteStream")


def _set_aside(items: int) -> int:
    """What each of so many items sets aside in an answer, so that it has room at least to fail."""
    return _EXPLAINED_ITEM_BYTES if items * _EXPLAINED_ITEM_BYTES <= limits.ANSWER_BYTES else _FAILED_ITEM_BYTES


def _lay_out(
    digests: Sequence[Digest], contents: Sequence[Bytes | None], room: int, each: int
) -> tuple[list[Bytes], int]:
    """The items' bytes and what they leave of ``room``, beside which each item has set aside ``each``."""
    parts: list[Bytes] = []
    explained = each == _EXPLAINED_ITEM_BYTES
    for blob, content in zip(digests, contents, strict=True):
        room += each
        if content is None:
            item: list[Bytes] = [_failed_item(blob, _NOT_FOUND, explained=explained)]
        else:
            item = layout.batch_read_items([blob], [content])
            if sum(map(len, item)) > room:
                item = [_failed_item(blob, _NO_ROOM_IN_ANSWER, explained=explained)]
        room -= sum(map(len, item))
        parts += item
    return parts, room


def _failed_item(blob: Digest, status: status_pb2.Status, *, explained: bool) -> bytes:
    message = re_pb2.BatchReadBlobsResponse()
    told = status if explained else status_pb2.Status(code=status.code)
    message.responses.add(digest={"hash": blob.hash, "size_bytes": blob.size_bytes}, status=told)
    return message.SerializeToString()


def _read_item_by_item(reader: Reader, request: layout.DigestList, *, wait: bool) -> bytes:
    """The slow way, for batches in which some digest is none: it fails alone."""
    _check_size(sum(item.size_bytes for item in request.digests if item.size_bytes > 0))
    parts: list[Bytes] = []
    each = _set_aside(len(request.digests))
    room = limits.ANSWER_BYTES - each * len(request.digests)
    for item in request.digests:
        assert isinstance(item, re_pb2.Digest)  # what was cut by hand has no bad digests
        try:
            digest = Digest.parse(item.hash, item.size_bytes)
        except InvalidRequest as failure:
            message = re_pb2.BatchReadBlobsResponse()
            message.responses.add(digest=item, status={"code": code_number(failure), "message": str(failure)})
            parts.append(message.SerializeToString())
            room += each - len(parts[-1])
        else:
            laid_out, room = _lay_out([digest], reader.read_blobs([digest], wait=wait), room, each)
            parts += laid_out
        if room < 0:
            raise InvalidRequest("too many of the digests asked for are none")
    return b"".join(parts)
