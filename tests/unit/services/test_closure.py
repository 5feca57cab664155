"""What a name needs, and what it needs not."""

import pytest
from unit.services.artifacts import BLOB, DIRECTORY, OTHER_URI, URI, Content, chain

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core import limits
from millpond.core.digest import EMPTY, Digest
from millpond.core.errors import IncompleteClosure, InvalidRequest, TooMuch
from millpond.core.names import Namespace
from millpond.names.binding import Binding
from millpond.services import closure, trees
from millpond.store.memory import MemoryStore

NOW_MS = 1_700_000_000_000


class CountingStore(MemoryStore):
    """Counts what is read and remembers what was promised."""

    def __init__(self) -> None:
        super().__init__(1 << 40)
        self.read: list[Digest] = []
        self.promised: set[Digest] = set()

    def read_many(self, digests, *, wait=True):  # type: ignore[no-untyped-def]
        self.read += digests
        return super().read_many(digests, wait=wait)

    def find_missing(self, digests, *, wait=True):  # type: ignore[no-untyped-def]
        missing = super().find_missing(digests, wait=wait)
        self.promised |= set(digests) - set(missing)
        return missing


@pytest.fixture
def content() -> Content:
    return Content(CountingStore())


def walk(
    content: Content,
    digest: Digest,
    *,
    blobs: tuple[Digest, ...] = (),
    directories: tuple[Digest, ...] = (),
    namespace: Namespace = BLOB,
    uri: str = URI,
) -> set[Digest]:
    binding = Binding(digest, NOW_MS, blobs=blobs, directories=directories)
    found = closure.walk(content.store, namespace, uri, binding)
    assert len(set(found.digests)) == len(found.digests)
    assert found.size_bytes == sum(digest.size_bytes for digest in found.digests)
    assert isinstance(content.store, CountingStore)
    assert set(found.digests) - {EMPTY} <= content.store.promised  # I8
    return set(found.digests)


def test_an_artifact_needs_itself_its_files_its_logs_and_its_public_data(content: Content) -> None:
    file, log, public, meta = (content.blob(text) for text in ("file", "log", "public", "meta"))
    below = content.directory([file, EMPTY])
    files = content.directory([file], {"below": below, "again": below})
    artifact = content.artifact(files=files, logs=[log], public_data=public)
    needed = walk(content, artifact, blobs=(log, meta), directories=(files,))
    assert needed == {artifact, files, below, file, EMPTY, log, public, meta}


def test_an_artifact_of_nothing_needs_itself(content: Content) -> None:
    artifact = content.artifact()
    assert walk(content, artifact) == {artifact}
    empty = content.artifact(files=EMPTY)
    assert walk(content, empty, directories=(EMPTY,)) == {empty, EMPTY}


@pytest.mark.parametrize("missing", ["artifact", "files", "below", "file", "log", "public", "meta", "reference"])
def test_whatever_an_artifact_needs_must_be_held(content: Content, missing: str) -> None:
    made = {text: content.blob(text) for text in ("file", "log", "public", "meta")}
    made["below"] = content.directory([made["file"]])
    made["files"] = content.directory(directories={"below": made["below"]})
    made["reference"] = content.directory([content.blob("of a subsandbox")])
    made["artifact"] = content.artifact(files=made["files"], logs=[made["log"]], public_data=made["public"])

    def all_of_it() -> set[Digest]:
        return walk(content, made["artifact"], blobs=(made["meta"],), directories=(made["files"], made["reference"]))

    all_of_it()
    content.drop(made[missing])
    with pytest.raises(IncompleteClosure, match=made[missing].hash):
        all_of_it()


@pytest.mark.parametrize("tree", ["buildtree", "sources", "buildroot"])
@pytest.mark.parametrize("hole", ["root", "below", "file", None])
def test_a_tree_that_the_client_had_not_is_not_needed(content: Content, tree: str, hole: str | None) -> None:
    file = content.blob("file")
    shared = content.directory([file])
    other = content.blob("other")
    parts = {"file": content.blob("of the tree")}
    parts["below"] = content.directory([parts["file"]])
    parts["root"] = content.directory([other], {"below": parts["below"], "shared": shared})
    artifact = content.artifact(files=shared, **{tree: parts["root"]})
    if hole:
        content.drop(parts[hole])
    needed = walk(content, artifact, directories=(shared, parts["root"]))
    assert needed == {artifact, shared, file} | (set() if hole else {*parts.values(), other})


def test_a_tree_with_a_hole_does_not_take_the_next_one_with_it(content: Content) -> None:
    whole = content.directory([content.blob("source")])
    broken = content.directory([content.blob("never", held=False)])
    artifact = content.artifact(buildtree=broken, sources=whole)
    assert whole in walk(content, artifact, directories=(broken, whole))


def test_files_are_needed_even_if_they_are_the_buildtree_too(content: Content) -> None:
    tree = content.directory([content.blob("never", held=False)])
    with pytest.raises(IncompleteClosure):
        walk(content, content.artifact(files=tree, buildtree=tree), directories=(tree,))


def test_other_assets_need_all_that_they_refer_to(content: Content) -> None:
    blob, file = content.blob("blob"), content.blob("file")
    tree = content.directory([file])
    assert walk(content, blob, blobs=(file,), directories=(tree,), uri=OTHER_URI) == {blob, file, tree}
    lost = content.directory(held=False)
    with pytest.raises(IncompleteClosure):
        walk(content, blob, directories=(lost,), uri=OTHER_URI)
    # an Artifact under another URI is only a blob
    artifact = content.artifact(files=lost)
    assert walk(content, artifact, uri=OTHER_URI) == {artifact}


def test_a_directory_needs_its_tree(content: Content) -> None:
    file, blob = content.blob("file"), content.blob("blob")
    below = content.directory([file])
    root = content.directory(directories={"below": below})
    assert walk(content, root, blobs=(blob,), namespace=DIRECTORY, uri=OTHER_URI) == {root, below, file, blob}
    content.drop(file)
    with pytest.raises(IncompleteClosure):
        walk(content, root, namespace=DIRECTORY)


@pytest.mark.parametrize("lie", [b"\xff", b"\x0a\x05ab", b"not a directory at all \xff\xff"])
def test_a_blob_that_is_no_directory_is_refused(content: Content, lie: bytes) -> None:
    fake = content.blob(lie)
    for directories in ((fake,), (content.directory(directories={"fake": fake}),)):
        with pytest.raises(InvalidRequest, match=fake.hash):
            walk(content, content.artifact(), directories=directories)


def test_a_blob_that_is_no_artifact_is_refused(content: Content) -> None:
    with pytest.raises(InvalidRequest, match=r"not a buildstream\.v2\.Artifact"):
        walk(content, content.blob(b"\xff\xff"))


@pytest.mark.parametrize(
    ("hash_hex", "size_bytes"), [("", 0), ("ab" * 32, -1), ("AB" * 32, 1), ("../../etc/passwd", 5), ("ab" * 20, 5)]
)
def test_a_digest_in_a_tree_that_is_none_is_refused(content: Content, hash_hex: str, size_bytes: int) -> None:
    bad = re_pb2.Digest(hash=hash_hex, size_bytes=size_bytes)
    for made in (
        re_pb2.Directory(files=[re_pb2.FileNode(name="f", digest=bad)]),
        re_pb2.Directory(directories=[re_pb2.DirectoryNode(name="d", digest=bad)]),
    ):
        root = content.blob(made.SerializeToString())
        with pytest.raises(InvalidRequest):
            walk(content, root, namespace=DIRECTORY)


def test_a_tree_of_two_to_the_hundredth_paths_is_read_once_per_directory(content: Content) -> None:
    digest = content.directory([content.blob("at the bottom")])
    for _ in range(100):
        digest = content.directory(directories={"a": digest, "b": digest})
    assert len(walk(content, digest, namespace=DIRECTORY)) == 102
    assert isinstance(content.store, CountingStore)
    assert len(content.store.read) == 101


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_tree_is_followed_to_its_depth_limit(content: Content, monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    monkeypatch.setattr(limits, "TREE_DEPTH", 20)
    root, found = chain(content, 20 + beyond)
    if beyond:
        with pytest.raises(TooMuch):
            walk(content, root, namespace=DIRECTORY)
    else:
        assert walk(content, root, namespace=DIRECTORY) > set(found)


def test_the_deepest_tree_needs_no_recursion(content: Content) -> None:
    root, found = chain(content, limits.TREE_DEPTH)
    assert walk(content, root, namespace=DIRECTORY) > set(found)
    assert len(list(trees.levels(content.store, [root]))) == limits.TREE_DEPTH


def test_a_closure_has_a_most_of_blobs(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CLOSURE_BLOBS", 100)
    files = [content.blob(f"{i}") for i in range(99)]
    assert len(walk(content, content.directory(files), namespace=DIRECTORY)) == 100
    with pytest.raises(TooMuch):
        walk(content, content.directory([*files, content.blob("one more")]), namespace=DIRECTORY)
    directories = {f"{i}": content.directory([files[0]], {"d": content.directory([files[i]])}) for i in range(60)}
    with pytest.raises(TooMuch):
        walk(content, content.directory(directories=directories), namespace=DIRECTORY)


@pytest.mark.parametrize("size_bytes", [limits.DIRECTORY_BYTES + 1, 2**62])
def test_a_directory_of_absurd_size_is_not_even_looked_for(content: Content, size_bytes: int) -> None:
    absurd = Digest.of(b"x")._replace(size_bytes=size_bytes)
    with pytest.raises(TooMuch):
        walk(content, absurd, namespace=DIRECTORY)
    with pytest.raises(TooMuch):
        walk(content, content.directory(directories={"absurd": absurd}), namespace=DIRECTORY)
    assert isinstance(content.store, CountingStore)
    assert absurd not in content.store.read


def test_a_file_of_absurd_size_is_only_missing(content: Content) -> None:
    absurd = Digest.of(b"x")._replace(size_bytes=2**62)
    with pytest.raises(IncompleteClosure):
        walk(content, content.directory([absurd]), namespace=DIRECTORY)


def test_files_are_never_read(content: Content) -> None:
    file, log = content.blob("file"), content.blob("log")
    walk(content, content.artifact(files=content.directory([file]), logs=[log]), blobs=(log,))
    assert isinstance(content.store, CountingStore)
    assert not {file, log} & set(content.store.read)
