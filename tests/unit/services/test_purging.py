"""Purging: what only the removed names held is unreadable, gone from the files, and stays gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.store.repositories import flip, noise, read, soon
from unit.store.upkept import Upkept

from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, NameNotFound
from millpond.core.names import Name, Namespace
from millpond.names.backups import copies
from millpond.names.binding import Binding
from millpond.services import assets
from millpond.services.purging import Purged, PurgeDuty, plan, purge
from millpond.store.care.purge import Purge, holes
from millpond.store.repository.opening import forget_index
from millpond.upkeep import backups, eraser

MIB = 1 << 20
SECRET = b"the secret that must not be there any more / " * 20
LARGE_SECRET = noise(3 * MIB, "large secret")
INNOCENT = noise(50_000, "innocent")


class Scene:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.upkept = Upkept(path, quota_bytes=64 * MIB)

    def push(self, called: str, *contents: bytes) -> list[Digest]:
        """A name for these blobs, the first of which it is bound to."""
        digests = [Digest.of(content) for content in contents]
        assert self.upkept.store.put_many(list(zip(digests, contents, strict=True))) == [None] * len(contents)
        request = assets.AssetPush([called], digests[0], blobs=digests)
        assets.push(self.upkept.cache, "", Namespace.ASSET_BLOB, request, pushed_by="")
        return digests

    def entries(self, *called: str) -> list[tuple[Name, Binding]]:
        names = [Name("", Namespace.ASSET_BLOB, one) for one in called]
        return [(name, self.upkept.repository.names.resolve(name)) for name in names]

    def purge(self, *called: str) -> Purged:
        parts = self.upkept.parts
        planned = plan(parts.names, parts.looking, self.entries(*called))
        return purge(parts.names, parts.looking, eraser(parts), planned)

    def on_disk(self, content: bytes) -> bool:
        """Whether the bytes can be found in any file of the repository."""
        probe = content[len(content) // 2 :][:64]
        return any(probe in file.read_bytes() for file in self.path.rglob("*") if file.is_file())

    def reopen(self, *, rebuilt: bool = False) -> None:
        self.upkept.close()
        if rebuilt:
            forget_index(self.path)
        self.upkept = Upkept(self.path, quota_bytes=64 * MIB)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "repo")
    yield scene
    scene.upkept.close()


@pytest.mark.parametrize("secret", [SECRET, LARGE_SECRET], ids=["small", "large"])
def test_what_only_the_name_held_is_a_miss_and_gone_from_the_files(scene: Scene, secret: bytes) -> None:
    (digest,) = scene.push("secret", secret)
    (innocent,) = scene.push("innocent", INNOCENT)
    assert scene.on_disk(secret)
    purged = scene.purge("secret")
    assert purged[0] == 1
    assert purged.erased_bytes == len(secret)
    assert read(scene.upkept.store, digest) is None
    assert scene.upkept.store.find_missing([digest, innocent]) == [digest]
    assert not scene.on_disk(secret)
    with pytest.raises(NameNotFound):
        scene.upkept.fetch("secret")
    assert read(scene.upkept.store, innocent) == INNOCENT
    assert scene.upkept.fetch("innocent").digest == innocent


@pytest.mark.parametrize("sealed", [False, True], ids=["open segment", "sealed segment"])
def test_it_stays_gone_when_the_index_is_made_anew_and_its_neighbours_stay(scene: Scene, sealed: bool) -> None:
    before, digest, after = scene.push("all", noise(5000, "before"), SECRET, noise(5000, "after"))
    neighbour_before, neighbour_after = (
        scene.push("before", noise(5000, "before")),
        scene.push("after", noise(5000, "after")),
    )
    if sealed:
        for i in range(8):
            scene.push(f"filler {i}", noise(200_000, f"{i}"))
        number = scene.upkept.repository.entry(digest).segment
        assert soon(lambda: scene.upkept.repository.row(number).state == 2)
    purged = scene.purge("all")
    assert purged.shared == {before, after}
    for rebuilt in (False, True):
        scene.reopen(rebuilt=rebuilt)
        assert scene.upkept.store.find_missing([before, digest, after]) == [digest]
        assert not scene.on_disk(SECRET)
        assert [*map(bytes, scene.upkept.store.read_many([before, after]))] == [  # type: ignore[arg-type]
            noise(5000, "before"),
            noise(5000, "after"),
        ]
        assert scene.upkept.fetch("before").digest == neighbour_before[0]
        assert scene.upkept.fetch("after").digest == neighbour_after[0]


def test_what_others_need_stays_whole(scene: Scene) -> None:
    shared = noise(4000, "shared")
    scene.push("one", SECRET, shared)
    two = scene.push("two", INNOCENT, shared)
    purged = scene.purge("one")
    assert (purged.blobs, purged.shared) == (1, {Digest.of(shared)})
    assert scene.upkept.fetch("two").digest == two[0]
    assert bytes(read(scene.upkept.store, Digest.of(shared)) or b"") == shared


def test_older_copies_that_the_index_does_not_list_are_overwritten_too(scene: Scene) -> None:
    (digest,) = scene.push("secret", SECRET)
    entry = scene.upkept.repository.entry(digest)
    index = scene.upkept.index
    with index.env.begin(write=True) as txn:  # as after damage that was healed by a second upload
        txn.delete(digest.key, db=index.blobs)
    scene.push("secret", SECRET)
    assert scene.upkept.repository.entry(digest) != entry
    assert scene.purge("secret").erased_bytes == 2 * len(SECRET)
    assert not scene.on_disk(SECRET)


def test_a_rotten_record_hides_nothing_that_lies_behind_it(scene: Scene) -> None:
    (before,) = scene.push("before", noise(5000, "before"))
    (digest,) = scene.push("secret", SECRET)
    entry = scene.upkept.repository.entry(before)
    for i in range(8):
        scene.push(f"filler {i}", noise(200_000, f"{i}"))
    assert scene.upkept.repository.entry(digest).segment == entry.segment
    assert soon(lambda: scene.upkept.repository.row(entry.segment).state == 2)
    flip(scene.upkept.repository.segment(entry.segment), entry.offset)
    scene.purge("secret")
    assert not scene.on_disk(SECRET)


def test_it_can_be_pushed_again_and_is_then_as_good_as_new(scene: Scene) -> None:
    scene.push("secret", SECRET)
    scene.purge("secret")
    (digest,) = scene.push("secret", SECRET)
    scene.reopen(rebuilt=True)
    assert bytes(read(scene.upkept.store, digest) or b"") == SECRET
    assert scene.purge("secret").erased_bytes == len(SECRET)
    assert not scene.on_disk(SECRET)


def test_unfinished_uploads_go_and_those_under_way_stay(scene: Scene) -> None:
    scene.push("secret", INNOCENT)
    store = scene.upkept.store
    digest = Digest.of(LARGE_SECRET)
    suspended = store.begin_upload(digest, "suspended", offset=0)
    suspended.write(LARGE_SECRET[: 2 * MIB])
    suspended.suspend()
    running = store.begin_upload(Digest.of(LARGE_SECRET[::-1]), "running", offset=0)
    running.write(LARGE_SECRET[::-1])
    scene.purge("secret")
    assert not scene.on_disk(LARGE_SECRET[: 2 * MIB])
    assert store.upload_offset("suspended") == 0
    running.finish()
    assert store.find_missing([Digest.of(LARGE_SECRET[::-1])]) == []
    assert scene.upkept.repository.claimed_bytes() >= 0


def test_the_incarnation_rises_so_that_no_closure_counts_as_whole(scene: Scene) -> None:
    (digest,) = scene.push("secret", SECRET)
    entry = scene.upkept.repository.entry(digest)
    before = scene.upkept.repository.row(entry.segment)
    scene.purge("secret")
    row = scene.upkept.repository.row(entry.segment)
    assert row.incarnation == before.incarnation + 1
    assert (before.live_count - row.live_count, row.live_bytes < before.live_bytes) == (1, True)


@pytest.mark.parametrize("step", ["_cut", "_erase", "_forget_uploads"])
def test_what_was_cut_off_is_finished_by_whoever_comes_next(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (digest,) = scene.push("secret", SECRET)

    def killed(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Purge, step, killed)
        with pytest.raises(InterruptedError):
            scene.purge("secret")
    scene.reopen()
    parts = scene.upkept.parts
    assert PurgeDuty(parts.names, parts.looking, eraser(parts)).run() > 1
    assert scene.upkept.store.find_missing([digest]) == [digest]
    assert not scene.on_disk(SECRET)
    assert eraser(parts).pending() == set()


def test_what_somebody_bound_again_before_it_was_finished_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (digest,) = scene.push("secret", SECRET)
    with monkeypatch.context() as patch:
        patch.setattr(Purge, "finish", lambda *_: 0)
        scene.purge("secret")
    scene.push("again", SECRET)
    parts = scene.upkept.parts
    PurgeDuty(parts.names, parts.looking, eraser(parts)).run()
    assert scene.upkept.fetch("again").digest == digest
    assert bytes(read(scene.upkept.store, digest) or b"") == SECRET


def test_what_is_bound_while_the_names_are_removed_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (digest,) = scene.push("secret", SECRET)
    begin = Purge.begin

    def begin_and_be_overtaken(self: Purge, digests: set[Digest]) -> None:
        begin(self, digests)
        scene.push("overtaking", SECRET)

    monkeypatch.setattr(Purge, "begin", begin_and_be_overtaken)
    purged = scene.purge("secret")
    assert (purged.blobs, purged.shared) == (0, {digest})
    assert scene.upkept.fetch("overtaking").digest == digest


def test_a_push_that_counted_on_what_was_purged_is_refused_and_is_no_foreign_name(scene: Scene) -> None:
    (digest,) = scene.push("secret", SECRET)
    assert scene.upkept.store.find_missing([digest]) == []  # promised to somebody
    scene.purge("secret")
    with pytest.raises(IncompleteClosure):
        assets.push(scene.upkept.cache, "", Namespace.ASSET_BLOB, assets.AssetPush(["theirs"], digest), pushed_by="")
    scene.push("theirs", SECRET)


def test_places_of_segments_that_are_gone_are_forgotten(scene: Scene) -> None:
    scene.push("secret", LARGE_SECRET)
    scene.purge("secret")
    (number,) = holes(str(scene.path))
    scene.upkept.repository.segment(number).unlink()
    scene.push("another", SECRET)
    scene.purge("another")
    assert number not in holes(str(scene.path))
    assert len(holes(str(scene.path))) == 1


def test_copies_of_the_names_follow(scene: Scene) -> None:
    scene.push("p/secret/1", SECRET)
    backups(scene.upkept.parts).renew()
    scene.purge("p/secret/1")
    backups(scene.upkept.parts).renew()
    (copy,) = copies(Path(scene.upkept.layout.backup))
    assert b"p/secret/1" not in (copy / "data.mdb").read_bytes()
