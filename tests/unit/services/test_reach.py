"""Everything that names lead to, as far as it can be followed."""

from unit.services.artifacts import BLOB, DIRECTORY, OTHER_URI, URI, Content, chain

from millpond.core.digest import EMPTY, Digest
from millpond.core.names import Name
from millpond.names.binding import Binding
from millpond.services.reach import Reach, only_reached_by
from millpond.store.memory import MemoryStore


def content() -> Content:
    return Content(MemoryStore(10_000_000))


def bound(key: str, digest: Digest, *, namespace: object = BLOB, **fields: object) -> tuple[Name, Binding]:
    return Name("", namespace, key), Binding(digest, 1, **fields)  # type: ignore[arg-type]


def test_optional_trees_trees_with_holes_and_what_is_not_held_are_reached() -> None:
    made = content()
    file, hole, log, extra = (made.blob(text) for text in ("file", "hole", "log", "extra"))
    below = made.directory([hole])
    files = made.directory([file], {"below": below})
    buildtree, tree_digests = chain(made, 40)
    artifact = made.artifact(files=files, buildtree=buildtree, public_data=made.blob("public"), logs=[log])
    made.drop(hole)
    name, binding = bound(URI, artifact, blobs=(extra, EMPTY), directories=(files,))
    reached = set(Reach(made.store).of(name, binding)) - {EMPTY}
    assert reached >= {artifact, files, below, file, hole, log, extra, buildtree, *tree_digests, Digest.of(b"public")}
    assert len(reached) == 9 + 40 + 1 - 1  # the chain with its bottom


def test_a_directory_asset_is_followed_and_a_blob_asset_is_not() -> None:
    made = content()
    file = made.blob("file")
    root = made.directory([file])
    assert set(Reach(made.store).of(*bound(OTHER_URI, root, namespace=DIRECTORY))) == {root, file}
    assert set(Reach(made.store).of(*bound(OTHER_URI, root))) == {root}


def test_what_is_no_directory_and_no_artifact_ends_the_way_there() -> None:
    made = content()
    noise = made.blob(b"\xff" * 100)
    assert set(Reach(made.store).of(*bound(URI, noise, directories=(noise,)))) == {noise}
    gone = Digest.of(b"gone")
    assert set(Reach(made.store).of(*bound(URI, gone, directories=(gone,)))) == {gone}


def test_only_what_no_other_name_leads_to_is_found() -> None:
    made = content()
    shared, mine, theirs = made.blob("shared"), made.blob("mine"), made.blob("theirs")
    common = made.directory([shared])
    one = made.directory([mine], {"common": common})
    two = made.directory([theirs], {"common": common})
    removed = [bound("one", one, namespace=DIRECTORY)]
    others = [bound("two", two, namespace=DIRECTORY)]
    assert only_reached_by(removed, others, made.store) == ({one, mine}, {common, shared})
    assert only_reached_by(removed, [], made.store) == ({one, mine, common, shared}, set())
    broken = Digest.of(b"not held")
    assert only_reached_by([bound("x", broken)], [bound("y", broken)], made.store) == (set(), {broken})
