"""Whatever lies in the files of an old store, it is a name or it is left: nothing else comes of reading it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.importing.old_stores import KINDS, Casd, OldStore

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from millpond.importing.interface import Left, OldName
from millpond.importing.opening import Kind, open_old_store


def read(old: OldStore, path: Path) -> OldName | Left:
    reader = open_old_store(Kind(old.kind), str(old.root))
    try:
        (entry,) = [entry for entry in reader.entries() if path.match(entry.path)]
        return reader.read(entry)
    except Left as left:
        return left
    finally:
        reader.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), cut=st.integers(0, 300))
def test_any_bytes_are_a_name_or_are_left(kind: type[OldStore], content: bytes, cut: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        old = kind(Path(place))
        path = old.name("project/element/key", old.tree("a"))
        sound = path.read_bytes()
        for broken in (content, sound[:cut] + content, sound[:cut] + content + sound[cut + len(content) :]):
            path.write_bytes(broken)
            found = read(old, path)
            if isinstance(found, OldName):
                assert found.digest.size_bytes >= 0
                assert len(found.digest.hash) == 64


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.integers(-(2**63), 2**63 - 1),
    nanos=st.integers(-(2**31), 2**31 - 1),
    hash_=st.text(max_size=70),
    size=st.integers(-(2**63), 2**63 - 1),
    uri=st.text(max_size=50),
)
def test_any_values_in_an_asset_are_a_name_or_are_left(
    seconds: int, nanos: int, hash_: str, size: int, uri: str
) -> None:
    with tempfile.TemporaryDirectory() as place:
        old = Casd(Path(place))
        kept = asset_pb2.FetchBlobResponse(
            uri=uri, blob_digest={"hash": hash_, "size_bytes": size}, expires_at={"seconds": seconds, "nanos": nanos}
        )
        found = read(old, old.asset(kept))
        assert isinstance(found, (OldName, Left))
