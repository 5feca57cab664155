"""Which names are whole, and which would be answered though they are not."""

import pytest
from unit.services.test_assets import URI, Scene

from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.services.soundness import State, called, check_names


@pytest.fixture
def scene() -> Scene:
    scene = Scene()
    scene.push([URI], directories=[scene.files])
    return scene


def states(scene: Scene, *, claimed: bool = False) -> dict[str, State]:
    return {name.key: state for name, _, state, _ in check_names(scene.cache, lambda *_: claimed)}


def lose(scene: Scene, digest: Digest) -> None:
    """As if it had been evicted."""
    del scene.store._blobs[digest]


def test_a_name_with_all_its_blobs_is_whole(scene: Scene) -> None:
    assert states(scene) == {URI: State.WHOLE}
    assert states(scene, claimed=True) == {URI: State.WHOLE}


@pytest.mark.parametrize("which", ["artifact", "files", "file"])
def test_a_name_that_lacks_one_is_incomplete_or_wrong(scene: Scene, which: str) -> None:
    digest = getattr(scene, which)
    lose(scene, digest)
    assert states(scene) == {URI: State.INCOMPLETE}
    ((name, _, state, lacking),) = check_names(scene.cache, lambda *_: True)
    assert (state, name.key) == (State.WRONG, URI)
    assert lacking == f"blob {digest} of this name is not in the cache"


def test_a_name_that_eviction_breaks_while_one_looks_is_not_wrong(scene: Scene) -> None:
    lose(scene, scene.file)
    answers = [True, False]
    ((_, _, state, _),) = check_names(scene.cache, lambda *_: answers.pop(0))
    assert state is State.INCOMPLETE


def test_a_name_that_is_pushed_again_while_one_looks_is_whole(scene: Scene) -> None:
    lose(scene, scene.file)

    def claims(*_: object) -> bool:
        scene.store.put_many([(Digest.of(b"file"), b"file")])
        return True

    ((_, _, state, _),) = check_names(scene.cache, claims)
    assert state is State.WHOLE


def test_foreign_and_expired_names_are_not_walked(scene: Scene) -> None:
    elsewhere = Digest.of(b"elsewhere")
    foreign = Name("", Namespace.ASSET_BLOB, "urn:foreign")
    expired = Name("", Namespace.ASSET_BLOB, "urn:expired")
    scene.names.bind(
        [
            (foreign, Binding(elsewhere, 1, foreign=True)),
            (expired, Binding(elsewhere, 1, expires_at_ms=scene.now_ms)),
        ]
    )
    assert states(scene) == {URI: State.WHOLE, foreign.key: State.FOREIGN, expired.key: State.EXPIRED}


def test_a_name_is_called_as_people_call_it() -> None:
    key = "urn:fdc:buildstream.build:2020:artifact:project/element/123"
    assert called(Name("", Namespace.ASSET_BLOB, key)) == "artifact project/element/123"
    assert called(Name("team", Namespace.ASSET_BLOB, key)) == "artifact project/element/123 (instance team)"
