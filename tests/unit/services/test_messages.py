"""Artifacts and sources as messages: where they lie, and how long they stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from unit.services.artifacts import Content, message
from unit.store.upkept import NOW_MS, Time, Upkept, upkept

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, NameNotFound, NoSpace, WouldBlock
from millpond.core.names import ARTIFACT_URN, REFERENCE_URN, SOURCE_URN, Name, Namespace, asset_key, spoken, uri_of
from millpond.names.memory import MemoryNames
from millpond.services import assets, messages
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.cache import Cache
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.interface import Footprint
from millpond.store.memory import MemoryStore

MORE = b"\x9a\x06\x03new"


def end(pending: PendingPush) -> None:
    pending.bound.result()
    assets.finish([pending])


class Scene:
    def __init__(self) -> None:
        self.store = MemoryStore(10_000_000)
        self.content = Content(self.store)
        self.names = MemoryNames()
        self.cache = Cache(self.store, self.store, self.names, lambda: NOW_MS)
        self.reader, self.writer = Reader(self.cache, ""), Writer(self.cache, "", "key:me")
        self.files = self.content.directory([self.content.blob("file")])


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_source_that_says_no_more_than_its_files_takes_no_room_for_a_message(scene: Scene) -> None:
    plain = source_pb2.Source(files=message(scene.files)).SerializeToString()
    for sent, kept in ((plain, b""), (plain + MORE, plain + MORE)):
        end(messages.begin_source(scene.writer, "local/key", sent))
        ((name, binding),) = scene.names.names()
        assert (name.namespace, name.key) == (Namespace.ASSET_DIRECTORY, SOURCE_URN + "local/key")
        assert (binding.digest, binding.message, binding.pushed_by) == (scene.files, kept, "key:me")
        assert messages.fetch_source(scene.reader, "local/key") == sent


def test_an_artifact_is_the_blob_of_its_name(scene: Scene) -> None:
    sent = artifact_pb2.Artifact(files=message(scene.files)).SerializeToString() + MORE
    end(messages.begin_artifact(scene.writer, "p/e/k", sent))
    ((name, binding),) = scene.names.names()
    assert (name.namespace, name.key) == (Namespace.ASSET_BLOB, ARTIFACT_URN + "p/e/k")
    assert (binding.digest, binding.message) == (Digest.of(sent), b"")
    assert bytes(messages.fetch_artifact(scene.reader, "p/e/k")) == sent
    assert scene.cache.counts.names_found == 1


def test_an_artifact_whose_message_has_gone_is_a_miss_on_an_index_too(scene: Scene) -> None:
    sent = artifact_pb2.Artifact(build_error="e").SerializeToString()
    end(messages.begin_artifact(scene.writer, "p/e/k", sent))
    scene.content.drop(Digest.of(sent))
    for index_only in (False, True):
        cache = Cache(scene.store, scene.store, scene.names, lambda: NOW_MS, index_only=index_only)
        with pytest.raises(NameNotFound):
            messages.fetch_artifact(Reader(cache, ""), "p/e/k")


@pytest.mark.parametrize("index_only", [True, False])
def test_a_message_is_durable_before_its_name_is_written_on_an_index_too(scene: Scene, index_only: bool) -> None:
    settled: list[Digest] = []
    settle = scene.store.settle

    def watched(digests: Sequence[Digest], *, wait: bool = True) -> Footprint:
        assert list(scene.names.names()) == []
        settled.extend(digests)
        return settle(digests, wait=wait)

    scene.store.settle = watched  # type: ignore[method-assign]
    cache = Cache(scene.store, scene.store, scene.names, lambda: NOW_MS, index_only=index_only)
    sent = artifact_pb2.Artifact(build_error="e").SerializeToString()
    end(messages.begin_artifact(Writer(cache, "", ""), "p/e/k", sent))
    assert settled == [Digest.of(sent)]


def test_an_artifact_for_whose_message_is_no_room_is_not_bound() -> None:
    scene = Scene()
    scene.store.put_many = lambda blobs: [NoSpace("full")] * len(blobs)  # type: ignore[method-assign]
    with pytest.raises(NoSpace):
        messages.begin_artifact(scene.writer, "p/e/k", b"\x10\x01")
    assert list(scene.names.names()) == []
    assert scene.store.was_refused([Digest.of(b"\x10\x01")])


def test_what_is_missing_is_refused_although_none_of_it_is_here(scene: Scene) -> None:
    nowhere = message(Digest.of(b"nowhere"))
    with pytest.raises(IncompleteClosure):
        messages.begin_source(scene.writer, "k", source_pb2.Source(files=nowhere).SerializeToString())
    with pytest.raises(IncompleteClosure):
        messages.begin_artifact(scene.writer, "k", artifact_pb2.Artifact(files=nowhere).SerializeToString())


def test_without_waiting_the_answer_is_right_or_withheld(scene: Scene) -> None:
    end(
        messages.begin_artifact(
            scene.writer, "k", artifact_pb2.Artifact(files=message(scene.files)).SerializeToString()
        )
    )
    for _ in range(3):
        try:
            assert messages.fetch_artifact(scene.reader, "k", wait=False)
        except WouldBlock:
            assert messages.fetch_artifact(scene.reader, "k")


@pytest.mark.parametrize(("urn", "kind"), [(REFERENCE_URN, "ref"), (ARTIFACT_URN, "artifact"), (SOURCE_URN, "source")])
def test_keys_are_spoken_as_the_clients_call_them(urn: str, kind: str) -> None:
    uri = uri_of(urn, "project/element/key")
    assert asset_key(uri) == uri
    namespace = Namespace.ASSET_BLOB if kind == "artifact" else Namespace.ASSET_DIRECTORY
    assert spoken(Name("", namespace, uri)) == (kind, "project/element/key")


# -- with a store that makes room -------------------------------------------------------------------------------------


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def small(tmp_path: Path, time: Time) -> Iterator[Upkept]:
    with upkept(tmp_path / "repo", quota_bytes=22_000_000, clock=time) as one:
        yield one


def put(small: Upkept, sizes: Sequence[int], seed: str) -> tuple[Digest, list[Digest]]:
    """A directory of noise, and all that is in it."""
    files = small.put(sizes, seed)
    nodes = [{"name": str(number), "digest": message(digest)} for number, digest in enumerate(files)]
    encoded = re_pb2.Directory(files=nodes).SerializeToString()
    assert small.store.put_many([(Digest.of(encoded), encoded)]) == [None]
    return Digest.of(encoded), [Digest.of(encoded), *files]


def push_reference(writer: Writer, root: Digest) -> PendingPush:
    push = AssetPush([uri_of(REFERENCE_URN, "key")], root, foreign=False)
    return writer.begin_push(Namespace.ASSET_DIRECTORY, push)


def fetch_reference(reader: Reader) -> object:
    return reader.fetch(Namespace.ASSET_DIRECTORY, [uri_of(REFERENCE_URN, "key")], ())


def push_artifact(writer: Writer, root: Digest) -> PendingPush:
    return messages.begin_artifact(writer, "key", artifact_pb2.Artifact(files=message(root)).SerializeToString())


def push_source(writer: Writer, root: Digest) -> PendingPush:
    return messages.begin_source(writer, "key", source_pb2.Source(files=message(root)).SerializeToString())


Push = Callable[[Writer, Digest], PendingPush]
Fetch = Callable[[Reader], object]
WAYS: dict[str, tuple[Push, Fetch]] = {
    "a ref": (push_reference, fetch_reference),
    "an artifact": (push_artifact, lambda reader: messages.fetch_artifact(reader, "key")),
    "a source": (push_source, lambda reader: messages.fetch_source(reader, "key")),
}


@pytest.mark.parametrize(("push", "fetch"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("asked", [True, False])
def test_who_asks_for_a_name_keeps_its_whole_tree_from_the_next_eviction(
    small: Upkept, time: Time, push: Push, fetch: Fetch, asked: bool
) -> None:
    reader, writer = Reader(small.cache, ""), Writer(small.cache, "", "")
    root, tree = put(small, [100_000] * 50, "old")
    end(push(writer, root))
    time.passes(hours=2)
    small.push("between", [100_000] * 120)
    time.passes(hours=2)
    if asked:
        assert fetch(reader)
    time.passes(hours=2)
    small.push("after", [100_000] * 60)
    assert small.is_whole(tree) is asked
    if asked:
        assert fetch(reader)
    else:
        with pytest.raises(NameNotFound):
            fetch(reader)
