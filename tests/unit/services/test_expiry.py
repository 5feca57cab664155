"""Names that go: broken for a day, expired, or used least when there are too many."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from unit.services.artifacts import Content

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NoSpace, NotReady
from millpond.core.names import Name, Namespace
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.services import assets
from millpond.services.assets import AssetPush
from millpond.services.cache import Cache
from millpond.services.expiry import ExpiryDuty
from millpond.store.interface import Bytes
from millpond.store.memory import MemoryStore

URN = "urn:fdc:buildstream.build:2020:artifact:"
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Unreliable(MemoryStore):
    """Holds blobs and cannot read some of them."""

    def __init__(self) -> None:
        super().__init__(10_000_000)
        self.unreadable: set[Digest] = set()
        self.trouble: Exception | None = None

    def read_many(self, digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        if self.trouble is not None:
            raise self.trouble
        contents = super().read_many(digests, wait=wait)
        return [None if d in self.unreadable else content for d, content in zip(digests, contents, strict=True)]


class Scene:
    def __init__(self, path: Path) -> None:
        self.now_ms, self.limit_bytes = NOW_MS, 1_000_000
        self.names = LmdbNames(path / "names", limit_bytes=lambda: self.limit_bytes)
        self.store = Unreliable()
        self.content = Content(self.store)
        self.cache = Cache(self.store, self.store, self.names, clock=lambda: self.now_ms)
        self.used_ms: dict[bytes, int] = {}
        self.pinned: set[bytes] = set()
        self.known_whole: set[bytes] = set()
        self.duty = ExpiryDuty(
            self.names,
            self.store,
            intact=lambda row, _: row in self.known_whole,
            last_used_ms=self.used_ms.get,
            pinned=self.pinned.__contains__,
            limit_bytes=lambda: self.limit_bytes,
            clock=lambda: self.now_ms,
        )

    def push(self, called: str, *, expires_at_ms: int | None = None) -> tuple[Digest, Digest]:
        """An artifact: its file and its directory."""
        own = self.content.blob(f"{called}@{self.now_ms}")
        files = self.content.directory([own])
        artifact = self.content.artifact(files=files)
        push = AssetPush([URN + called], artifact, directories=[files], expires_at_ms=expires_at_ms)
        assets.push(self.cache, "", Namespace.ASSET_BLOB, push, pushed_by="")
        return own, files

    def look(self, hours: float = 1.0) -> list[str]:
        """What is left after so long, and a look at everything."""
        self.now_ms += int(hours * HOUR_MS)
        self.duty.run()
        return sorted(name.key.removeprefix(URN) for name, _ in self.names.names())


def name(called: str) -> Name:
    return Name("", Namespace.ASSET_BLOB, URN + called)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.names.close()


# -- broken -------------------------------------------------------------------------------------------------------


def test_a_name_that_is_broken_for_a_day_is_removed_and_not_before(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    file, _ = scene.push("p/broken/1")
    scene.push("p/whole/1")
    scene.content.drop(file)
    assert scene.look() == ["p/broken/1", "p/whole/1"]
    assert scene.look(22.9) == ["p/broken/1", "p/whole/1"]
    with caplog.at_level(logging.INFO):
        assert scene.look(1.1) == ["p/whole/1"]
    assert "1 names were removed" in caplog.text
    assert scene.names.broken.all() == {}


def test_the_day_is_counted_across_restarts(scene: Scene) -> None:
    file, _ = scene.push("p/broken/1")
    scene.content.drop(file)
    scene.look()
    again = Scene.__new__(Scene)
    again.__dict__.update(scene.__dict__)
    again.duty = ExpiryDuty(
        scene.names,
        scene.store,
        intact=lambda *_: False,
        last_used_ms=lambda _: None,
        pinned=lambda _: False,
        limit_bytes=lambda: 1_000_000,
        clock=lambda: again.now_ms,
    )
    assert again.look(24) == []


def test_a_name_that_was_whole_again_in_between_begins_a_new_day(scene: Scene) -> None:
    file, _ = scene.push("p/e/1")
    content = f"p/e/1@{NOW_MS}"
    scene.content.drop(file)
    scene.look()
    scene.content.blob(content)
    scene.look(20)
    scene.content.drop(file)
    assert scene.look(2) == ["p/e/1"]
    assert scene.look(23) == ["p/e/1"]
    assert scene.look(2) == []


def test_a_name_that_was_pushed_again_begins_a_new_day(scene: Scene) -> None:
    file, _ = scene.push("p/e/1")
    scene.content.drop(file)
    scene.look()
    scene.now_ms += 23 * HOUR_MS
    file, _ = scene.push("p/e/1")
    scene.content.drop(file)
    assert scene.look(2) == ["p/e/1"]


@pytest.mark.parametrize("how", ["the blob", "the disk"])
def test_what_cannot_be_read_is_no_reason_to_remove_anything(scene: Scene, how: str) -> None:
    _, files = scene.push("p/e/1")
    if how == "the blob":
        scene.store.unreadable.add(files)
    else:
        scene.store.trouble = NotReady("no descriptors left")
    for _ in range(5):
        assert scene.look(24) == ["p/e/1"]
    assert scene.names.broken.all() == {}


def test_what_is_broken_and_then_unreadable_stays_until_it_is_seen_to_be_broken(scene: Scene) -> None:
    file, files = scene.push("p/e/1")
    scene.content.drop(file)
    scene.look()
    scene.store.unreadable.add(files)
    assert scene.look(48) == ["p/e/1"]
    scene.store.unreadable.clear()
    assert scene.look(1) == []


def test_a_name_that_is_known_to_be_whole_is_not_walked(scene: Scene) -> None:
    scene.push("p/e/1")
    scene.known_whole.add(name("p/e/1").row)
    scene.store.trouble = AssertionError("it was walked")
    assert scene.look() == ["p/e/1"]


def test_names_whose_blobs_live_elsewhere_are_not_broken(scene: Scene) -> None:
    scene.names.bind([(name("p/e/1"), Binding(Digest.of(b"elsewhere"), NOW_MS, foreign=True))])
    scene.look()
    assert scene.look(48) == ["p/e/1"]


def test_an_expired_name_is_removed(scene: Scene) -> None:
    scene.push("p/e/1", expires_at_ms=NOW_MS + HOUR_MS)
    scene.push("p/e/2", expires_at_ms=NOW_MS + HOUR_MS + 1)
    assert scene.look() == ["p/e/2"]


def test_all_names_are_looked_at_once_an_hour(scene: Scene) -> None:
    scene.look()
    scene.push("p/e/1", expires_at_ms=NOW_MS + 1)
    assert scene.look(0.99) == ["p/e/1"]
    assert scene.look(0.01) == []


def test_work_is_done_in_small_steps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        scene.push(f"p/e/{i}", expires_at_ms=NOW_MS + 1)
    scene.now_ms += HOUR_MS
    monkeypatch.setattr(scene.duty, "_monotonic", iter(range(1000)).__next__)
    assert scene.duty.run() > 1
    assert len(list(scene.names.names())) == 5
    while list(scene.names.names()):
        scene.duty.run()


# -- too many -----------------------------------------------------------------------------------------------------


def fill(scene: Scene, count: int = 100) -> list[Name]:
    names = [name(f"p/e/{i}") for i in range(count)]
    for i, one in enumerate(names):
        scene.names.bind([(one, Binding(Digest.of(b"%d" % i), NOW_MS + i, foreign=True))])
    return names


def test_a_bind_beyond_the_bound_is_refused_and_one_that_takes_no_more_is_not(scene: Scene) -> None:
    names = fill(scene)
    scene.limit_bytes = scene.names.held_bytes() - 1
    with pytest.raises(NoSpace, match=f"all of the {scene.limit_bytes} bytes"):
        scene.names.bind([(name("p/e/new"), Binding(Digest.of(b"new"), NOW_MS, foreign=True))])
    scene.names.bind([(names[0], Binding(Digest.of(b"0"), NOW_MS + 9, foreign=True))])
    assert scene.names.unbind(names[1])
    assert scene.names.unbind(names[2])
    scene.names.bind([(name("p/e/x"), Binding(Digest.of(b"n"), NOW_MS, foreign=True))])


def test_before_the_bound_is_reached_the_least_recently_used_go(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    names = fill(scene)
    scene.used_ms[names[0].row] = NOW_MS + 10_000
    scene.pinned.add(names[1].row)
    scene.limit_bytes = int(scene.names.held_bytes() / 0.96)
    scene.duty.run()
    left = set(dict(scene.names.names()))
    assert scene.names.held_bytes() <= 0.9 * scene.limit_bytes
    assert {names[0], names[1], *names[50:]} <= left
    assert names[2] not in left
    assert "least recently used were removed" in caplog.text
    assert len(left) > 90  # no more than it takes


def test_below_the_bound_none_goes(scene: Scene) -> None:
    fill(scene)
    scene.limit_bytes = int(scene.names.held_bytes() / 0.94)
    scene.duty.run()
    assert len(list(scene.names.names())) == 100


def test_when_all_are_pinned_that_is_said_once_and_the_bind_is_refused(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.pinned.update(one.row for one in fill(scene))
    scene.limit_bytes = scene.names.held_bytes()
    for _ in range(3):
        scene.duty.run()
    assert caplog.text.count("all are pinned") == 1
    with pytest.raises(NoSpace):
        scene.names.bind([(name("p/e/new"), Binding(Digest.of(b"new"), NOW_MS, foreign=True))])


def test_what_names_hold_is_what_they_were_counted_at_whatever_comes_and_goes(scene: Scene) -> None:
    names = fill(scene)
    for one in names[:50]:
        scene.names.unbind(one)
    scene.names.bind([(names[60], Binding(Digest.of(b"x"), 1, blobs=tuple(Digest.of(b"%d" % i) for i in range(300))))])
    held = scene.names.held_bytes()
    scene.names._write(lambda txn: txn.delete(b"held", db=scene.names._counters))
    assert scene.names.held_bytes() == held  # counted anew
    scene.names.unbind(names[60])
    assert scene.names.held_bytes() < held - 10_000


def test_the_bound_follows_the_quota() -> None:
    assert limits.names_bytes(50_000_000_000) == 5_000_000_000
    assert limits.names_bytes(1) == limits.NAMES_MIN_BYTES
