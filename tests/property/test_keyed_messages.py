"""Messages cut out of requests: what was sent, whatever else is in the request and in whatever order."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond._protos.millpond.v1.keyed_message_pb2 import KeyedMessage
from millpond.services.assets import PendingPush
from millpond.services.messages import begin_source
from millpond.wire import layout


def received(raw: bytes) -> bytes:
    return b"".join(KeyedMessage.FromString(raw).message)


def field(number: int, content: bytes) -> bytes:
    return layout.varint(number << 3 | 2) + layout.varint(len(content)) + content


digests = st.builds(
    lambda hash_, size: {"hash": hash_, "size_bytes": size}, st.text(max_size=70), st.integers(0, 2**63 - 1)
)
artifacts = st.builds(
    artifact_pb2.Artifact,
    version=st.integers(0, 2**31 - 1),
    build_error=st.text(max_size=200),
    files=digests,
    logs=st.lists(st.builds(dict, name=st.text(max_size=5), digest=digests), max_size=3),
).map(lambda made: made.SerializeToString())
unknown = st.builds(field, st.integers(20, 5000), st.binary(max_size=20))
messages = st.builds(lambda before, made, after: before + made + after, unknown, artifacts, unknown) | artifacts
others = st.builds(field, st.sampled_from([1, 2, 4, 77]), st.text(max_size=9).map(str.encode)) | st.builds(
    lambda number, value: layout.varint(number << 3) + layout.varint(value), st.integers(4, 90), st.integers(0, 2**63)
)


@given(st.lists(st.tuples(messages, st.lists(others, max_size=3)), min_size=1, max_size=3))
def test_a_message_is_cut_out_byte_for_byte(parts: list[tuple[bytes, list[bytes]]]) -> None:
    raw = b"".join(b"".join(around) + field(3, message) for message, around in parts)
    request = artifact_pb2.UpdateArtifactRequest.FromString(raw)
    assert received(raw) == b"".join(message for message, _ in parts)
    assert artifact_pb2.Artifact.FromString(received(raw)) == request.artifact
    read = KeyedMessage.FromString(raw)
    assert (read.instance_name, read.cache_key) == (request.instance_name, request.cache_key)


@given(st.binary(max_size=300))
def test_of_any_request_that_can_be_read_the_message_can_be(raw: bytes) -> None:
    try:
        request = artifact_pb2.UpdateArtifactRequest.FromString(raw)
    except DecodeError:
        return
    assert artifact_pb2.Artifact.FromString(received(raw)) == request.artifact


class Noted:
    """A writer that notes what it is told to bind."""

    def begin_push(self, _: object, push: Any, **__: Any) -> PendingPush:
        self.push = push
        return None  # type: ignore[return-value]


@given(
    st.builds(
        lambda data, before, after: before + data + after, st.just(b""), unknown | st.just(b""), unknown | st.just(b"")
    )
)
def test_a_source_keeps_all_that_its_directory_does_not_say(around: bytes) -> None:
    files = {"hash": "0" * 64, "size_bytes": 7}
    plain = source_pb2.Source(files=files).SerializeToString()
    noted = Noted()
    begin_source(noted, "key", plain + around)  # type: ignore[arg-type]
    assert noted.push.message == (plain + around if around else b"")
    assert str(noted.push.digest) == "0" * 64 + "/7"


@pytest.mark.parametrize("raw", [b"", b"\x12\x01k"])
def test_where_there_is_no_message_nothing_is_cut_out(raw: bytes) -> None:
    assert received(raw) == b""
