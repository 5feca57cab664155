"""What readers and writers count: hits, misses and bytes."""

from pathlib import Path

import pytest
from unit.services.test_assets import BLOB as NAMESPACE
from unit.services.test_assets import URI, Scene
from unit.store.repositories import Repository

from millpond.core.clock import wall_clock
from millpond.core.digest import Digest
from millpond.core.errors import BlobNotFound, NameNotFound
from millpond.services.cache import Cache
from millpond.services.reading import Reader
from millpond.services.writing import Writer
from millpond.store.uses.counts import Sums

ABSENT = Digest.of(b"nobody has this")


@pytest.fixture
def scene() -> Scene:
    return Scene()


def counted(scene: Scene) -> Sums:
    return scene.cache.counts.news() or Sums()


def test_names_found_and_missed(scene: Scene) -> None:
    scene.push()
    reader = Reader(scene.cache, "")
    reader.fetch(NAMESPACE, [URI], ())
    assert counted(scene) == Sums(names_found=1)
    with pytest.raises(NameNotFound):
        reader.fetch(NAMESPACE, ["urn:nobody"], ())
    assert counted(scene) == Sums(names_missed=1)


def test_blobs_asked_about(scene: Scene) -> None:
    reader = Reader(scene.cache, "")
    reader.find_missing([scene.file, scene.files, ABSENT])
    assert counted(scene) == Sums(blobs_present=2, blobs_absent=1)


def test_blobs_read_with_their_bytes(scene: Scene) -> None:
    reader = Reader(scene.cache, "")
    reader.read_blobs([scene.file, ABSENT])
    assert counted(scene) == Sums(blobs_read=1, blobs_missed=1, bytes_read=scene.file.size_bytes)
    with reader.open_blob(scene.file):
        assert counted(scene) == Sums(blobs_read=1, bytes_read=scene.file.size_bytes)
    directories = list(reader.tree(scene.files))
    assert counted(scene) == Sums(blobs_read=1, bytes_read=sum(len(content) for _, content in directories))


def test_a_large_blob_that_is_not_here(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    cache = Cache(store, store, repository.names, wall_clock)
    with pytest.raises(BlobNotFound):
        Reader(cache, "").open_blob(ABSENT)
    assert cache.counts.news() == Sums(blobs_missed=1)
    repository.close()


def test_bytes_written(scene: Scene) -> None:
    writer = Writer(scene.cache, "", "")
    writer.put_blobs([(Digest.of(b"12345"), b"12345"), (Digest.of(b"right"), b"wrong")])
    assert counted(scene) == Sums(bytes_written=5)
    large = Digest.of(b"x" * 1000)
    upload = writer.begin_upload(large, "session", offset=0)
    writer.write_upload(upload, large, b"x" * 1000)
    assert counted(scene) == Sums()
    writer.finish_upload(upload, large)
    assert counted(scene) == Sums(bytes_written=1000)
