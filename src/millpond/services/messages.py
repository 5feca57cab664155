"""Artifacts and sources as clients 1.91 to 1.93.4 keep them: as messages, which come back as they were received.

The rule: each has one name with the remote asset that later clients make of it (ADR 0010). An artifact's message is the
blob that its asset stands for. A source's message says which directory its asset stands for; whatever else is in it is
kept beside the name.
"""

from typing import TypeVar

from google.protobuf.message import DecodeError

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import InvalidRequest, NameNotFound, TooMuch, WouldBlock
from millpond.core.names import ARTIFACT_URN, SOURCE_URN, Namespace, uri_of
from millpond.services import trees
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.interface import Bytes

M = TypeVar("M", artifact_pb2.Artifact, source_pb2.Source)


def fetch_artifact(reader: Reader, key: str, *, wait: bool = True) -> Bytes:
    """The ``buildstream.v2.Artifact`` that ``key`` is bound to, if all that it needs is held; that is promised.

    Raises:
        NameNotFound: there is none.
        InvalidRequest: such a key cannot be.
        WouldBlock: ``wait`` is False, and something must be looked for.
    """
    asset = reader.fetch(Namespace.ASSET_BLOB, [uri_of(ARTIFACT_URN, key)], (), wait=wait)
    if asset.binding.digest.size_bytes <= limits.ARTIFACT_MESSAGE_BYTES:
        (content,) = reader.read_blobs([asset.binding.digest], wait=wait)
        if content is not None:
            return content
    raise NameNotFound("this cache does not have the message of this artifact")


def fetch_source(reader: Reader, key: str, *, wait: bool = True) -> Bytes:
    """The ``buildstream.v2.Source`` that ``key`` is bound to, if its whole tree is held; that is promised.

    Raises:
        NameNotFound, InvalidRequest, WouldBlock: as :func:`fetch_artifact`.
    """
    asset = reader.fetch(Namespace.ASSET_DIRECTORY, [uri_of(SOURCE_URN, key)], (), wait=wait)
    return asset.binding.message or _plain(asset.binding.digest)


def begin_artifact(writer: Writer, key: str, message: bytes, *, wait: bool = True) -> PendingPush:
    """Bind ``key`` to ``message``, a ``buildstream.v2.Artifact``. To be finished as every push.

    Raises:
        InvalidRequest: such a key or such an artifact cannot be.
        IncompleteClosure: something that it needs is not held.
        NoSpace: no room for the message, or for the name.
        WouldBlock: ``wait`` is False, because the message has to be stored.
    """
    uri = uri_of(ARTIFACT_URN, key)
    _check_size(message, limits.ARTIFACT_MESSAGE_BYTES)
    if not wait:
        raise WouldBlock
    _parsed(artifact_pb2.Artifact, message)
    digest = Digest.of(message)
    writer.put_named(digest, message)
    return writer.begin_push(Namespace.ASSET_BLOB, AssetPush([uri], digest, foreign=False))


def begin_source(writer: Writer, key: str, message: bytes, *, wait: bool = True) -> PendingPush:
    """Bind ``key`` to ``message``, a ``buildstream.v2.Source``. To be finished as every push.

    Raises:
        InvalidRequest: such a key or such a source cannot be.
        IncompleteClosure: its tree is not all held.
        NoSpace: no room for the name.
        WouldBlock: ``wait`` is False, and its tree has to be walked.
    """
    uri = uri_of(SOURCE_URN, key)
    _check_size(message, limits.SOURCE_MESSAGE_BYTES)
    source = _parsed(source_pb2.Source, message)
    if not source.HasField("files"):
        raise InvalidRequest("the source has no files")
    digest = trees.parse(source.files)
    more = b"" if message == _plain(digest) else message
    push = AssetPush([uri], digest, message=more, foreign=False)
    return writer.begin_push(Namespace.ASSET_DIRECTORY, push, wait=wait)


def _parsed(kind: type[M], message: bytes) -> M:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidRequest(f"the message is not a {kind.DESCRIPTOR.full_name}") from None


def _plain(digest: Digest) -> bytes:
    """The message of a source of which no more is known than where its files are."""
    files = {"hash": digest.hash, "size_bytes": digest.size_bytes}
    return source_pb2.Source(files=files).SerializeToString()


def _check_size(message: bytes, limit_bytes: int) -> None:
    if len(message) > limit_bytes:
        raise TooMuch(f"a message of this kind has at most {limit_bytes} bytes, this one {len(message)}")
