"""Pins: what is chosen, what is marked, and what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from unit.services.artifacts import Content

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NotReady
from millpond.core.names import Name, Namespace
from millpond.names import changes
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.names.notes import Pin, PinState
from millpond.services import assets, pins
from millpond.services.assets import AssetPush
from millpond.services.cache import Cache
from millpond.services.pins import PinDuty, choose
from millpond.store.interface import Bytes
from millpond.store.memory import MemoryStore

URN = "urn:fdc:buildstream.build:2020:artifact:"
NOW_MS = 1_700_000_000_000
QUOTA_BYTES = 1_000_000


class Marks:
    """What ``store.uses.table`` keeps of pins."""

    def __init__(self) -> None:
        self.epochs: dict[bytes, int] = {}
        self.complete: list[int] = []

    def pin(self, epoch: int, keys: Iterable[bytes]) -> None:
        self.epochs.update(dict.fromkeys(keys, epoch))

    def unpinned(self, epoch: int, keys: Sequence[bytes]) -> list[bytes]:
        return [key for key in keys if self.epochs.get(key, -1) < epoch]

    def pins_epoch(self) -> int:
        return max(self.complete, default=0)

    def end_pins_before(self, epoch: int) -> None:
        self.epochs = {key: mark for key, mark in self.epochs.items() if mark >= epoch}
        self.complete.append(epoch)


class Scene:
    def __init__(self, path: Path) -> None:
        self.now_ms, self.seconds, self.quota_bytes = NOW_MS, 0.0, QUOTA_BYTES
        self.names = LmdbNames(path / "names")
        self.store = MemoryStore(4 * QUOTA_BYTES)
        self.content = Content(self.store)
        self.cache = Cache(self.store, self.store, self.names, clock=lambda: self.now_ms)
        self.marks = Marks()
        self.duty = self.new_duty()

    def new_duty(self) -> PinDuty:
        return PinDuty(
            self.names,
            self.store,
            self.marks,
            quota_bytes=lambda: self.quota_bytes,
            share=0.5,
            clock=lambda: self.now_ms,
            monotonic=lambda: self.seconds,
        )

    def push(self, *called: str, size: int = 1000, shared: Sequence[Digest] = ()) -> list[Digest]:
        """An artifact with one file of its own; all its blobs."""
        self.now_ms += 1
        own = self.content.blob(f"{called[0]}@{self.now_ms}".ljust(size))
        files = self.content.directory([own, *shared])
        artifact = self.content.artifact(files=files)
        assets.push(
            self.cache,
            "",
            Namespace.ASSET_BLOB,
            AssetPush([URN + name for name in called], artifact, directories=[files]),
            pushed_by="",
        )
        return [own, files, artifact]

    def pin(self, pattern: str, *, newest: int | None = None, until_ms: int | None = None) -> None:
        self.now_ms += 1
        self.names.pins.add(Pin(pattern, self.now_ms, newest, until_ms))

    def later(self, seconds: float = 3600.0) -> None:
        self.seconds += seconds
        self.now_ms += int(1000 * seconds)
        self.duty.finish()

    def pinned(self, blobs: Iterable[Digest]) -> bool:
        marked = {digest.key in self.marks.epochs for digest in blobs}
        assert len(marked) == 1, "half of an artifact"
        return marked.pop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.names.close()


def test_a_pin_keeps_what_was_bound_before_it_and_what_is_bound_after(scene: Scene) -> None:
    before, other = scene.push("p/e/1"), scene.push("q/e/1")
    scene.pin("p/*")
    scene.duty.finish()
    after = scene.push("p/f/2")
    assert scene.pinned(before)
    assert not scene.pinned(after)
    scene.duty.finish()
    assert scene.pinned(after)
    assert not scene.pinned(other)
    assert [scene.duty.holds(Name("", Namespace.ASSET_BLOB, URN + name).row) for name in ("p/e/1", "q/e/1")] == [
        True,
        False,
    ]


def test_what_is_no_longer_pinned_is_let_go_and_what_others_share_is_not(scene: Scene) -> None:
    shared = scene.content.blob("shared")
    release, other = scene.push("p/release/1", shared=[shared]), scene.push("p/other/1", shared=[shared])
    scene.pin("p/release/*")
    scene.pin("p/other/*")
    scene.duty.finish()
    assert scene.names.pins.remove(["p/other/*", "p/nothing/*"]) == [True, False]
    scene.duty.finish()  # at once: somebody waits for it
    assert scene.pinned([*release, shared])
    assert not scene.pinned(other)


def test_a_restart_marks_everything_anew_before_the_old_marks_end(scene: Scene) -> None:
    release = scene.push("p/e/1")
    scene.pin("p/*")
    scene.duty.finish()
    scene.marks.epochs.clear()  # the environment of uses was lost
    scene.now_ms -= 1000  # and the clock was set back
    scene.duty = scene.new_duty()
    assert scene.duty.holds(b"any")
    scene.duty.finish()
    assert scene.pinned(release)
    assert len(set(scene.marks.complete)) == 2


def test_without_pins_the_first_run_says_that_all_of_them_are_known(scene: Scene) -> None:
    scene.push("p/e/1")
    scene.duty.finish()
    assert len(scene.marks.complete) == 1
    assert not scene.marks.epochs


def test_nothing_new_costs_no_look_at_names(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.push("p/e/1")
    scene.pin("p/*")
    scene.duty.finish()

    def never(*_: object) -> None:
        raise AssertionError("it looked")

    monkeypatch.setattr(scene.names, "names", never)
    monkeypatch.setattr(scene.names, "entry", never)
    monkeypatch.setattr(scene.names, "pins", None)
    scene.duty.finish()


def test_one_new_name_is_found_without_a_look_at_the_others(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.pin("p/*")
    scene.duty.finish()
    new = scene.push("p/e/2")
    monkeypatch.setattr(scene.names, "names", None)
    scene.duty.finish()
    assert scene.pinned(new)


def test_after_too_many_changes_all_names_are_looked_at(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.pin("p/*")
    scene.duty.finish()
    monkeypatch.setattr(limits, "CHANGES_KEPT", 2)
    monkeypatch.setattr(changes, "_FORGOTTEN_AT_ONCE", 0)
    pushed = [scene.push(f"p/e/{i}") for i in range(5)]
    scene.duty.finish()
    assert all(map(scene.pinned, pushed))


def test_the_newest_of_each_element_are_kept_and_the_displaced_go(scene: Scene) -> None:
    versions = [scene.push(f"p/e/{i}", f"p/e/weak-{i}") for i in range(3)]
    other = scene.push("p/f/0")
    scene.pin("p/*", newest=2)
    scene.duty.finish()
    assert [*map(scene.pinned, versions)] == [False, True, True]
    assert scene.pinned(other)
    versions.append(scene.push("p/e/3"))
    scene.duty.finish()
    assert scene.pinned(versions[3])
    scene.later()
    assert [*map(scene.pinned, versions)] == [False, False, True, True]


def test_a_pin_with_a_date_ends_and_is_gone(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    release = scene.push("p/e/1")
    scene.pin("p/*", until_ms=scene.now_ms + 60_000)
    scene.duty.finish()
    assert scene.pinned(release)
    with caplog.at_level(logging.INFO):
        scene.later(61)
    assert not scene.pinned(release)
    assert scene.names.pins.all() == []
    assert "the pin p/* has ended" in caplog.text


def test_what_is_bound_anew_or_removed_is_let_go_in_the_end(scene: Scene) -> None:
    old, gone = scene.push("p/e/1"), scene.push("p/f/1")
    scene.pin("p/*")
    scene.duty.finish()
    new = scene.push("p/e/1")
    scene.names.unbind(Name("", Namespace.ASSET_BLOB, URN + "p/f/1"))
    scene.duty.finish()
    assert scene.pinned(new)
    scene.later()
    assert [*map(scene.pinned, (old, gone, new))] == [False, False, True]


def test_pins_hold_their_share_and_what_does_not_fit_is_said_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    first = scene.push("p/e/1", size=400_000)
    scene.pin("p/*")
    scene.duty.finish()
    second, small = scene.push("p/e/2", size=200_000), scene.push("p/e/3", size=1000)
    for i in range(3):
        scene.duty.finish()
        scene.pin(f"another/{i}")  # everything is counted anew
    scene.duty.finish()
    assert [*map(scene.pinned, (first, second, small))] == [True, False, True]
    assert caplog.text.count("p/e/2 is not pinned") == 1
    assert not scene.duty.holds(Name("", Namespace.ASSET_BLOB, URN + "p/e/2").row)
    state = scene.names.pins.state()
    assert state is not None
    assert state.share == 0.5
    assert 400_000 < state.held_bytes < 500_000
    assert state.beyond == (Name("", Namespace.ASSET_BLOB, URN + "p/e/2").row.hex(),)


def test_a_larger_quota_takes_them_in_and_a_smaller_one_lets_go_of_the_latest(scene: Scene) -> None:
    first, second = scene.push("p/e/1", size=400_000), scene.push("p/e/2", size=200_000)
    scene.pin("p/*")
    scene.later()
    assert [*map(scene.pinned, (first, second))] == [True, False]
    scene.quota_bytes *= 2
    scene.later()
    scene.later()
    assert [*map(scene.pinned, (first, second))] == [True, True]
    scene.quota_bytes //= 2
    scene.later()
    scene.later()
    assert [*map(scene.pinned, (first, second))] == [True, False]


def test_a_broken_name_is_passed_over_and_taken_in_when_it_is_pushed_again(scene: Scene) -> None:
    broken, whole = scene.push("p/e/1"), scene.push("p/f/1")
    scene.content.drop(broken[0])
    scene.pin("p/*")
    scene.duty.finish()
    assert scene.pinned(whole)
    assert not scene.pinned(broken[1:])
    again = scene.push("p/e/1")
    scene.duty.finish()
    assert scene.pinned(again)


def test_a_broken_name_that_is_whole_again_is_taken_in_within_the_hour(scene: Scene) -> None:
    broken = scene.push("p/e/1")
    data = f"p/e/1@{scene.now_ms}".ljust(1000)
    scene.content.drop(broken[0])
    scene.pin("p/*")
    scene.duty.finish()
    assert scene.content.blob(data) == broken[0]
    scene.later(3601)
    assert scene.pinned(broken)


def test_what_cannot_be_read_for_a_moment_stays_pinned(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    release, other = scene.push("p/e/1"), scene.push("p/f/1")
    scene.pin("p/*")
    scene.duty.finish()
    read_many, unreadable = scene.store.read_many, release[1]

    def reads_badly(digests: Sequence[Digest], *, wait: bool = True) -> list[Bytes | None]:
        return [
            None if d == unreadable else data for d, data in zip(digests, read_many(digests, wait=wait), strict=True)
        ]

    monkeypatch.setattr(scene.store, "read_many", reads_badly)
    scene.pin("q/*")  # everything is counted anew
    scene.now_ms += 1
    scene.duty.finish()
    assert scene.pinned(release)
    assert scene.pinned(other)
    monkeypatch.undo()
    scene.later(601)
    assert scene.pinned(release)
    scene.names.pins.remove(["p/*"])
    scene.duty.finish()
    assert not scene.pinned(release)


def test_what_can_never_be_read_blocks_no_eviction_when_nothing_is_known(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, other = scene.push("p/e/1"), scene.push("p/f/1")
    read_many = scene.store.read_many
    monkeypatch.setattr(
        scene.store,
        "read_many",
        lambda digests, wait=True: [None if d == release[1] else read_many([d])[0] for d in digests],
    )
    scene.pin("p/*")
    scene.duty.finish()
    assert scene.marks.complete
    assert scene.pinned(other)


@pytest.mark.parametrize("what", ["names", "entry"])
def test_after_a_failure_everything_is_counted_anew_and_nothing_was_let_go(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    release = scene.push("p/e/1")
    scene.pin("p/*")
    scene.duty.finish()
    later = scene.push("p/e/2")
    if what == "names":
        scene.pin("q/*")

    def fails(*_: object) -> None:
        raise NotReady("the disk")

    with monkeypatch.context() as patch:
        patch.setattr(scene.names, what, fails)
        for _ in range(2):
            with pytest.raises(NotReady):
                scene.duty.finish()
            patch.setattr(scene.names, "names", fails)
    assert scene.pinned(release)
    scene.duty.finish()
    assert scene.pinned(release)
    assert scene.pinned(later)


def test_work_is_done_in_small_steps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = [scene.push(f"p/e/{i}") for i in range(5)]
    scene.pin("p/*")
    monkeypatch.setattr(scene.duty, "_monotonic", iter(range(1000)).__next__)
    assert scene.duty.run() < 0.1
    assert not scene.marks.complete
    scene.duty.finish()
    assert all(map(scene.pinned, pushed))


def test_a_state_is_written_when_it_changed_only(scene: Scene) -> None:
    scene.push("p/e/1")
    scene.pin("p/*")
    scene.duty.finish()
    version = scene.names.version()
    scene.later(1)
    assert scene.names.version() == version
    assert isinstance(scene.names.pins.state(), PinState)


def test_the_first_of_two_pins_comes_first_and_a_name_is_chosen_once() -> None:
    def bound(called: str, pushed_at_ms: int) -> tuple[Name, Binding]:
        return Name("", Namespace.ASSET_BLOB, URN + called), Binding(Digest.of(called.encode()), pushed_at_ms)

    names = [bound("p/e/2", 2), bound("p/e/1", 1), bound("q/e/1", 0)]
    chosen = choose(names, [Pin("*", 20), Pin("p/*", 10)], NOW_MS)
    assert [(one.pin.pattern, one.binding.pushed_at_ms) for one in chosen] == [("p/*", 1), ("p/*", 2), ("*", 0)]
    assert choose(names, [Pin("*", 20, until_ms=NOW_MS)], NOW_MS) == []
    assert [one.name for one in choose(names, [Pin("p/*", 1, newest=1), Pin("q/*", 2, newest=0)], NOW_MS)] == [
        names[0][0]
    ]
    assert pins.choose(names, [], NOW_MS) == []
