"""One name for every generation, whatever is pushed by whom, and whatever is lost meanwhile (ADR 0010).

A model of one key of each kind: what was bound last, and whether it is whole. Each kind has two ways to be pushed and two
to be fetched, that of an older protocol and that of the Remote Asset API; every answer must be the model's.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, NameNotFound
from millpond.core.names import ARTIFACT_URN, REFERENCE_URN, SOURCE_URN, Namespace, uri_of
from millpond.names.memory import MemoryNames
from millpond.services import assets, messages
from millpond.services.assets import AssetPush, PendingPush
from millpond.services.cache import Cache
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.memory import MemoryStore

KEY = "project/element/key"
TREES = 3
BLOB, DIRECTORY = Namespace.ASSET_BLOB, Namespace.ASSET_DIRECTORY
UNKNOWN = b"\x9a\x06\x03new"


class OneName(RuleBasedStateMachine):
    """Trees of two blobs each: a directory and its file."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 1
        self.store, self.names = MemoryStore(1 << 24), MemoryNames()
        cache = Cache(self.store, self.store, self.names, lambda: self.now_ms, foreign=False)
        self.reader, self.writer = Reader(cache, ""), Writer(cache, "", "")
        self.trees = [self._tree(number) for number in range(TREES)]
        self.bound: dict[str, tuple[int, bytes]] = {}
        """Per kind the tree and the message."""

    def _tree(self, number: int) -> dict[Digest, bytes]:
        file = b"%d" % number
        node = {"name": "f", "digest": {"hash": Digest.of(file).hash, "size_bytes": 1}}
        directory = re_pb2.Directory(files=[node]).SerializeToString()
        return {Digest.of(directory): directory, Digest.of(file): file}

    def _root(self, number: int) -> Digest:
        return next(iter(self.trees[number]))

    def _is_whole(self, number: int) -> bool:
        return self.trees[number].keys() <= self.store._blobs.keys()

    def _message(self, kind: str, number: int, *, more: bool) -> bytes:
        files = {"hash": self._root(number).hash, "size_bytes": self._root(number).size_bytes}
        made = artifact_pb2.Artifact(files=files) if kind == "artifact" else source_pb2.Source(files=files)
        return made.SerializeToString() + UNKNOWN * more

    # -- what clients do ----------------------------------------------------------------------------------------------

    @rule(number=st.integers(0, TREES - 1))
    def upload(self, number: int) -> None:
        assert set(self.store.put_many(list(self.trees[number].items()))) == {None}

    @rule(kind=st.sampled_from(["ref", "artifact", "source"]), number=st.integers(0, TREES - 1), old=st.booleans(), more=st.booleans())  # fmt: skip
    def push(self, kind: str, number: int, old: bool, more: bool) -> None:
        self.now_ms += 1
        message = b"" if kind == "ref" else self._message(kind, number, more=more)
        try:
            pending = self._begin(kind, number, message, old=old)
        except IncompleteClosure:
            assert not self._is_whole(number)
            return
        pending.bound.result()
        assets.finish([pending])
        assert self._is_whole(number)
        if kind == "source" and not old:
            message = self._message(kind, number, more=False)
        self.bound[kind] = number, message

    def _begin(self, kind: str, number: int, message: bytes, *, old: bool) -> PendingPush:
        if kind == "ref":
            push = AssetPush([uri_of(REFERENCE_URN, KEY)], self._root(number), foreign=not old)
            return self.writer.begin_push(DIRECTORY, push)
        if old:
            begin = messages.begin_artifact if kind == "artifact" else messages.begin_source
            return begin(self.writer, KEY, message)
        if kind == "source":
            return self.writer.begin_push(DIRECTORY, AssetPush([SOURCE_URN + KEY], self._root(number)))
        self.store.put_many([(Digest.of(message), message)])
        return self.writer.begin_push(BLOB, AssetPush([ARTIFACT_URN + KEY], Digest.of(message)))

    # -- what happens to them -----------------------------------------------------------------------------------------

    @rule(number=st.integers(0, TREES - 1), which=st.integers(0, 1))
    def lose(self, number: int, which: int) -> None:
        self.store._blobs.pop(list(self.trees[number])[which], None)
        self.store._intact.clear()

    @rule(kind=st.sampled_from(["artifact"]))
    def lose_a_message(self, kind: str) -> None:
        if kind in self.bound:
            self.store._blobs.pop(Digest.of(self.bound[kind][1]), None)
            self.store._intact.clear()

    # -- what is true all the time --------------------------------------------------------------------------------------

    @invariant()
    def both_protocols_say_what_was_bound_last_and_only_while_it_is_whole(self) -> None:
        for kind in ("ref", "artifact", "source"):
            number, message = self.bound.get(kind, (0, b""))
            whole = kind in self.bound and self._is_whole(number)
            if kind == "artifact":
                whole = whole and Digest.of(message) in self.store._blobs
                self._is(whole, message, lambda: bytes(messages.fetch_artifact(self.reader, KEY)))
                self._is(whole, Digest.of(message), lambda: self._fetched(BLOB, ARTIFACT_URN))
                continue
            urn = REFERENCE_URN if kind == "ref" else SOURCE_URN
            self._is(whole, self._root(number), lambda urn=urn: self._fetched(DIRECTORY, urn))  # type: ignore[misc]
            if kind == "source":
                self._is(whole, message, lambda: bytes(messages.fetch_source(self.reader, KEY)))

    def _fetched(self, namespace: Namespace, urn: str) -> Digest:
        return self.reader.fetch(namespace, [urn + KEY], ()).binding.digest

    @staticmethod
    def _is(whole: bool, expected: object, fetch: Callable[[], object]) -> None:
        try:
            assert fetch() == expected
            assert whole
        except NameNotFound:
            assert not whole


TestOneName = OneName.TestCase
TestOneName.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
