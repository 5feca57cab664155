"""A name is never there before all that it needs is there to stay."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from unit.services.artifacts import BLOB, DIRECTORY, OTHER_URI, URI, WEAK_URI, Content

from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import BlobNotFound, IncompleteClosure, InvalidRequest, NameNotFound, NoSpace, NotReady
from millpond.core.names import Name, asset_key
from millpond.names.binding import Binding
from millpond.names.memory import MemoryNames
from millpond.services import assets
from millpond.services.assets import AssetPush
from millpond.services.cache import Cache
from millpond.store.interface import Footprint, KnownClosure, Promised
from millpond.store.memory import MemoryStore

NOW_MS = 1_700_000_000_000


class Spy(MemoryStore):
    """A store that tells what is asked of it, and loses blobs when told to."""

    def __init__(self, said: list[str], clock: Any) -> None:
        super().__init__(1 << 30, clock)
        self.said = said
        self.lose_at_settle: list[Digest | None] = []
        self.settled: set[Digest] = set()
        self.fails: Exception | None = None

    def promise(self, closures: Sequence[Sequence[Digest]], *, leases: bool, wait: bool = True) -> list[Promised]:
        self.said.append("promise" if leases else "use")
        return super().promise(closures, leases=leases, wait=wait)

    def settle(self, digests: Sequence[Digest], **options: Any) -> Footprint:
        self.said.append("settle")
        lost = self.lose_at_settle.pop(0) if self.lose_at_settle else None
        if self.fails:
            raise self.fails
        if lost is not None:
            raise BlobNotFound(f"blob {lost} is not in this cache")
        self.settled |= set(digests)
        for digest in digests:
            if digest not in self._blobs and digest != EMPTY:
                raise BlobNotFound(f"blob {digest} is not in this cache")
        return Footprint(())

    def remember(self, closures: Sequence[KnownClosure], *, ends_leases: bool = False) -> None:
        self.said.append(f"remember {len(closures)}")
        super().remember(closures, ends_leases=ends_leases)


class SpyNames(MemoryNames):
    def __init__(self, said: list[str], needed: set[Digest], store: Spy) -> None:
        super().__init__()
        self.said, self.needed, self.store = said, needed, store
        self.fails: Exception | None = None

    def bind(self, bindings: Sequence[tuple[Name, Binding]]) -> None:
        assert self.needed <= self.store.settled
        if self.fails:
            raise self.fails
        self.said.append(f"bind {len(bindings)}")
        super().bind(bindings)


class Scene:
    """A cache, and an artifact to push."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.said: list[str] = []
        self.needed: set[Digest] = set()
        self.store = Spy(self.said, lambda: self.now_ms)
        self.names = SpyNames(self.said, self.needed, self.store)
        self.cache = Cache(self.store, self.store, self.names, lambda: self.now_ms)
        self.content = Content(self.store)
        self.file = self.content.blob("file")
        self.files = self.content.directory([self.file])
        self.artifact = self.content.artifact(files=self.files)

    def push(self, uris: Sequence[str] = (URI,), digest: Digest | None = None, **fields: Any) -> None:
        namespace = fields.pop("namespace", BLOB)
        instance = fields.pop("instance", "")
        request = AssetPush(uris, digest or self.artifact, **fields)
        assets.push(self.cache, instance, namespace, request, pushed_by="key:me")

    def fetch(self, *uris: str, **how: Any) -> assets.Asset:
        fetching: dict[str, Any] = {"oldest_ms": None, "wait": True, "qualifiers": (), "namespace": BLOB, **how}
        return assets.fetch(
            self.cache,
            fetching.get("instance", ""),
            fetching["namespace"],
            uris or (URI,),
            fetching["qualifiers"],
            oldest_ms=fetching["oldest_ms"],
            wait=fetching["wait"],
        )

    def is_bound(self, uri: str = URI) -> bool:
        try:
            self.names.resolve(Name("", BLOB, uri))
        except NameNotFound:
            return False
        return True


@pytest.fixture
def scene() -> Scene:
    return Scene()


# -- push ---------------------------------------------------------------------------------------------------------


def test_a_push_walks_settles_binds_and_remembers_in_this_order(scene: Scene) -> None:
    scene.needed |= {scene.artifact, scene.files, scene.file}
    scene.push([URI, WEAK_URI], directories=[scene.files])
    assert list(dict.fromkeys(scene.said)) == ["promise", "settle", "bind 2", "remember 2"]
    binding = scene.fetch(URI).binding
    assert binding == scene.fetch(WEAK_URI).binding
    assert (binding.digest, binding.pushed_at_ms, binding.pushed_by) == (scene.artifact, NOW_MS, "key:me")
    assert binding.closure_bytes == sum(digest.size_bytes for digest in scene.needed)


def test_an_incomplete_push_binds_nothing(scene: Scene) -> None:
    scene.content.drop(scene.file)
    with pytest.raises(IncompleteClosure):
        scene.push([URI, WEAK_URI])
    assert not scene.is_bound(URI)
    assert not scene.is_bound(WEAK_URI)
    assert "remember" not in scene.said


@pytest.mark.parametrize("losses", [1, 2, 3])
def test_a_blob_that_goes_between_walk_and_settling_is_looked_for_again(scene: Scene, losses: int) -> None:
    scene.store.lose_at_settle = [scene.file] * losses
    if losses < 3:
        scene.push()
        assert scene.is_bound()
        assert scene.said.count("settle") == losses + 1
    else:
        with pytest.raises(IncompleteClosure, match=scene.file.hash):
            scene.push()
        assert not scene.is_bound()
        assert scene.said.count("settle") == 3


@pytest.mark.parametrize("failure", [NotReady("a disk refused to sync"), NoSpace("the disk is full")])
def test_what_cannot_be_made_durable_is_not_bound(scene: Scene, failure: Exception) -> None:
    scene.store.fails = failure
    with pytest.raises(type(failure)):
        scene.push()
    assert not scene.is_bound()


def test_what_cannot_be_bound_is_not_remembered(scene: Scene) -> None:
    scene.names.fails = NoSpace("names hold their share")
    with pytest.raises(NoSpace):
        scene.push()
    assert "remember" not in scene.said


def test_a_push_replaces_what_was_bound(scene: Scene) -> None:
    scene.push()
    scene.now_ms += 1
    other = scene.content.artifact()
    scene.push(digest=other)
    assert scene.fetch().binding.digest == other


def test_a_uri_that_is_named_twice_is_bound_once(scene: Scene) -> None:
    scene.push([URI, URI])
    assert "bind 1" in scene.said


def test_of_several_uris_the_strictest_rule_counts(scene: Scene) -> None:
    """An artifact may lack its buildtree, another asset may lack nothing, under whatever other URI it goes too."""
    lost = scene.content.directory(held=False)
    artifact = scene.content.artifact(buildtree=lost)
    for uris in ([URI, OTHER_URI], [OTHER_URI, URI]):
        with pytest.raises(IncompleteClosure):
            scene.push(uris, artifact, directories=[lost])
        assert not scene.is_bound(URI)
    scene.push([URI, WEAK_URI], artifact, directories=[lost])
    assert scene.fetch().binding.digest == artifact


URIS = ["a"]
BAD_REQUESTS: list[tuple[list[str], list[tuple[str, str]]]] = [
    ([], []),
    ([""], []),
    (["a\0b"], []),
    (["x" * (limits.URI_CHARS + 1)], []),
    ([f"{i}" for i in range(limits.URIS + 1)], []),
    (URIS, [("", "value")]),
    (URIS, [("name", "one"), ("name", "other")]),
    (URIS, [("name", "a\0b")]),
    (URIS, [("name", "x" * limits.URI_CHARS)]),
    (URIS, [(f"{i}", "") for i in range(limits.QUALIFIERS + 1)]),
]


@pytest.mark.parametrize(("uris", "qualifiers"), BAD_REQUESTS)
def test_what_can_never_be_a_name_is_refused_both_ways(
    scene: Scene, uris: list[str], qualifiers: list[tuple[str, str]]
) -> None:
    with pytest.raises(InvalidRequest):
        scene.push(uris, qualifiers=qualifiers)
    with pytest.raises(InvalidRequest):
        assets.fetch(scene.cache, "", BLOB, uris, qualifiers, oldest_ms=None, wait=True)


def test_a_push_refers_to_so_much_and_no_more(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REFERENCES", 3)
    blobs = [scene.file] * 2
    scene.push(blobs=blobs, directories=[scene.files])
    with pytest.raises(InvalidRequest):
        scene.push(blobs=[*blobs, scene.file], directories=[scene.files])


# -- fetch --------------------------------------------------------------------------------------------------------


def test_the_first_uri_that_is_bound_answers(scene: Scene) -> None:
    scene.push([WEAK_URI])
    assert scene.fetch(URI, WEAK_URI).uri == WEAK_URI
    scene.push([URI])
    assert scene.fetch(URI, WEAK_URI).uri == URI
    with pytest.raises(NameNotFound):
        scene.fetch("never")


def test_blobs_directories_and_instances_are_name_spaces_of_their_own(scene: Scene) -> None:
    scene.push()
    for elsewhere in ({"namespace": DIRECTORY}, {"instance": "other"}):
        with pytest.raises(NameNotFound):
            scene.fetch(URI, **elsewhere)
    scene.push(digest=scene.files, namespace=DIRECTORY)
    assert scene.fetch(namespace=DIRECTORY).binding.digest == scene.files
    assert scene.fetch().binding.digest == scene.artifact


def test_qualifiers_count_and_their_order_does_not(scene: Scene) -> None:
    one, other = ("vcs", "git"), ("branch", "main")
    scene.push(qualifiers=[one, other])
    assert scene.fetch(qualifiers=[other, one]).binding.digest == scene.artifact
    for qualifiers in ([], [one], [one, ("branch", "next")], [one, other, ("more", "")]):
        with pytest.raises(NameNotFound):
            scene.fetch(qualifiers=qualifiers)


def test_no_two_questions_have_one_key() -> None:
    questions: list[tuple[str, list[tuple[str, str]]]] = [
        ("uri", []),
        ("uri", [("a", "b")]),
        ("uri", [("a", "")]),
        ("uri", [("a=b", "")]),
        ("uri", [("a", "=b")]),
        ("uri", [("a", "b"), ("c", "d")]),
        ("uri", [("a", "b\n1:c=d")]),
        ("uria", [("a", "b")]),
        ("uri1:a=b", []),
    ]
    assert len({asset_key(*question) for question in questions}) == len(questions)


def test_what_has_expired_is_a_miss(scene: Scene) -> None:
    scene.push(expires_at_ms=NOW_MS + 10)
    scene.push([WEAK_URI])
    scene.now_ms += 9
    assert scene.fetch().uri == URI
    scene.now_ms += 1
    with pytest.raises(NameNotFound):
        scene.fetch()
    assert scene.fetch(URI, WEAK_URI).uri == WEAK_URI


def test_what_is_older_than_is_acceptable_is_a_miss(scene: Scene) -> None:
    scene.push()
    assert scene.fetch(oldest_ms=NOW_MS).uri == URI
    with pytest.raises(NameNotFound):
        scene.fetch(oldest_ms=NOW_MS + 1)
    scene.now_ms += 1
    scene.push()
    assert scene.fetch(oldest_ms=NOW_MS + 1).uri == URI


def test_a_broken_name_is_a_miss_and_whole_again_when_its_blobs_are_back(scene: Scene) -> None:
    scene.push([URI])
    scene.push([WEAK_URI], scene.content.artifact())
    scene.content.drop(scene.file)
    with pytest.raises(NameNotFound):
        scene.fetch()
    assert scene.fetch(URI, WEAK_URI).uri == WEAK_URI
    scene.content.blob("file")
    assert scene.fetch().uri == URI


def test_a_name_whose_tree_is_damaged_beyond_reading_is_a_miss(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.push()
    scene.store._intact.clear()
    monkeypatch.setattr(limits, "DIRECTORY_BYTES", 1)
    with pytest.raises(NameNotFound):
        scene.fetch()


def test_a_whole_name_is_answered_without_a_walk(scene: Scene) -> None:
    scene.push()
    scene.said.clear()
    scene.fetch(wait=False)
    assert scene.said == []


def test_a_walk_is_noted_for_the_next_fetch(scene: Scene) -> None:
    scene.push()
    scene.store._intact.clear()
    scene.fetch()
    scene.said.clear()
    scene.fetch()
    assert scene.said == []


# -- names of blobs that live elsewhere ----------------------------------------------------------------------------

ELSEWHERE, ALSO_ELSEWHERE = Digest.of(b"elsewhere"), Digest.of(b"also elsewhere")


def test_a_name_none_of_whose_blobs_is_here_is_kept_unchecked(scene: Scene) -> None:
    scene.push(digest=ELSEWHERE, blobs=[ALSO_ELSEWHERE], directories=[EMPTY])
    assert scene.fetch(wait=False).binding == replace(
        scene.fetch().binding, digest=ELSEWHERE, foreign=True, blobs=(ALSO_ELSEWHERE,), directories=(EMPTY,)
    )


@pytest.mark.parametrize("kind", ["blobs", "directories", "digest"])
def test_one_blob_that_is_here_makes_it_a_name_like_others(scene: Scene, kind: str) -> None:
    named: dict[str, Any] = {"digest": ELSEWHERE, "blobs": [ALSO_ELSEWHERE], "directories": []}
    named[kind] = {"digest": scene.artifact, "blobs": [ALSO_ELSEWHERE, scene.file], "directories": [scene.files]}[kind]
    with pytest.raises(IncompleteClosure):
        scene.push(**named)
    assert not scene.is_bound()


@pytest.mark.parametrize("refused", [ELSEWHERE, ALSO_ELSEWHERE])
def test_one_blob_that_was_refused_of_late_makes_it_a_name_like_others(scene: Scene, refused: Digest) -> None:
    scene.store.refuse([refused])
    with pytest.raises(IncompleteClosure):
        scene.push(digest=ELSEWHERE, blobs=[ALSO_ELSEWHERE])
    assert not scene.is_bound()
    scene.now_ms += limits.REFUSED_MS
    scene.push(digest=ELSEWHERE, blobs=[ALSO_ELSEWHERE])
    assert scene.is_bound()


def test_the_exception_can_be_turned_off(scene: Scene) -> None:
    scene.cache = replace(scene.cache, foreign=False)
    with pytest.raises(IncompleteClosure):
        scene.push(digest=ELSEWHERE)


def test_the_empty_blob_is_nobodys_foreign_blob(scene: Scene) -> None:
    scene.push([OTHER_URI], EMPTY)
    assert not scene.fetch(OTHER_URI).binding.foreign


def test_an_index_only_cache_checks_and_asks_the_store_for_nothing(scene: Scene) -> None:
    scene.cache = replace(scene.cache, index_only=True)
    scene.store.refuse([ELSEWHERE])
    scene.push(digest=ELSEWHERE, blobs=[scene.file])
    assert scene.said == ["bind 1"]
    assert scene.fetch(wait=False).binding.digest == ELSEWHERE
    assert scene.said == ["bind 1"]
