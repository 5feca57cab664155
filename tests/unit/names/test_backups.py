"""Copies of the names: when they are made, that they are read back, and how they are put in place."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.errors import NoSpace, RefusedToStart
from millpond.core.names import Name, Namespace
from millpond.names import backups, restoring, room, values
from millpond.names.backups import BackupDuty, copies
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.names.notes import Pin

NOW_MS = 1_700_000_000_000
MANY = 600


def name(key: object) -> Name:
    return Name("", Namespace.ASSET_BLOB, str(key))


def binding(key: object) -> Binding:
    return Binding(Digest.of(str(key).encode()), 1)


class Scene:
    def __init__(self, repo: Path) -> None:
        self.repo, self.now_ms = repo, NOW_MS
        self.backup = repo / "backup"
        repo.mkdir()
        self.names = LmdbNames(repo / "names")
        self.duty = BackupDuty(self.names, self.backup, clock=lambda: self.now_ms)

    def bind(self, *keys: object) -> None:
        self.names.bind([(name(key), binding(key)) for key in keys])

    def back_up(self) -> list[str]:
        while self.duty.run() < 1:
            pass
        return [copy.name for copy in copies(self.backup)]

    def restore(self, number: int | None = None, seen: tuple[int, ...] = ()) -> LmdbNames:
        self.names.close()
        restoring.restore(self.repo / "names", restoring.sound_copy(self.backup, number=number), numbers_seen=seen)
        self.names = LmdbNames(self.repo / "names", must_exist=True)
        return self.names


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "repo")
    yield scene
    scene.names.close()


def damage(copy: Path, at: int = 0) -> None:
    """Flip a bit of the first value that stands there."""
    data = bytearray((copy / "data.mdb").read_bytes())
    found = data.index(b'["","asset-blob","', at)
    data[found] ^= 1
    (copy / "data.mdb").write_bytes(data)


# -- when ---------------------------------------------------------------------------------------------------------


def test_the_first_copy_is_made_at_once_and_the_next_after_an_hour_if_something_changed(scene: Scene) -> None:
    scene.bind(1, 2, 3)
    first = scene.back_up()
    assert len(first) == 1
    scene.bind(4)
    scene.now_ms += limits.BACKUP_MS - 1
    assert scene.back_up() == first
    scene.now_ms += 1
    assert len(scene.back_up()) == 2
    scene.now_ms += 10 * limits.BACKUP_MS
    assert len(scene.back_up()) == 2


def test_without_names_there_is_no_copy_and_a_young_repository_is_copied_as_it_doubles(scene: Scene) -> None:
    assert scene.back_up() == []
    made = []
    for key in range(16):
        scene.bind(key)
        scene.now_ms += 1
        made.append(scene.back_up()[0])
    assert len(set(made)) == 5  # of 1, 2, 4, 8 and 16 names


def test_two_copies_are_kept_the_newest(scene: Scene) -> None:
    for key in range(4):
        scene.bind(key)
        scene.now_ms += limits.BACKUP_MS
        scene.back_up()
    newest, older = copies(scene.backup)
    assert [backups.made_at_ms(copy) for copy in (newest, older)] == [scene.now_ms, scene.now_ms - limits.BACKUP_MS]
    assert len(dict(scene.restore(2).names())) == 3
    assert len(dict(scene.restore().names())) == 4


def test_a_copy_from_the_future_keeps_nobody_from_making_one(scene: Scene) -> None:
    scene.bind(1, 2, 3)
    scene.back_up()
    scene.bind(4)
    scene.now_ms -= limits.BACKUP_MS
    assert len(scene.back_up()) == 2


def test_after_a_renewal_no_copy_has_what_was_removed(scene: Scene) -> None:
    scene.bind("kept", "secret")
    scene.back_up()
    scene.now_ms += limits.BACKUP_MS
    scene.bind("more")
    scene.back_up()
    scene.names.unbind(name("secret"))
    scene.now_ms += 1
    scene.duty.renew()
    (copy,) = copies(scene.backup)
    assert b"secret" not in (copy / "data.mdb").read_bytes()
    assert set(dict(scene.restore().names())) == {name("kept"), name("more")}


def test_without_room_there_is_no_new_copy_and_the_old_one_stays(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.bind(1)
    scene.back_up()
    scene.bind(2)
    scene.now_ms += limits.BACKUP_MS

    def no_room(size_bytes: int) -> None:
        assert size_bytes > 0
        raise NoSpace("full")

    duty = BackupDuty(scene.names, scene.backup, clock=lambda: scene.now_ms, hold_room=no_room)  # type: ignore[arg-type]
    for _ in range(3):
        assert duty.run() > 10
    assert caplog.text.count("no room for a copy of the names: full") == 1
    assert len(copies(scene.backup)) == 1
    assert len(scene.back_up()) == 2


def test_it_works_in_small_steps(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.bind(*range(20))
    monkeypatch.setattr(scene.duty, "_monotonic", iter(range(1000)).__next__)
    assert scene.duty.run() < 0.1
    assert copies(scene.backup) == []
    assert len(scene.back_up()) == 1


# -- what ---------------------------------------------------------------------------------------------------------


def test_a_copy_holds_names_pins_and_the_counter_and_not_what_was_deleted(scene: Scene) -> None:
    scene.bind(*range(MANY))
    scene.names.pins.add(Pin("p/*", NOW_MS, newest=3))
    scene.names.take_numbers(1000)
    for key in range(MANY // 2):
        scene.names.unbind(name(key))
    scene.back_up()
    (copy,) = copies(scene.backup)
    assert (copy / "data.mdb").stat().st_size < (scene.repo / "names" / "data.mdb").stat().st_size
    held = scene.restore()
    assert dict(held.names()) == {name(key): binding(key) for key in range(MANY // 2, MANY)}
    assert held.pins.all() == [Pin("p/*", NOW_MS, newest=3)]
    assert held.take_numbers(1).start > 1000
    assert held.held_bytes() == sum(room.taken_bytes(value) for _, value in held.rows())


def test_a_damaged_name_is_in_no_copy_and_the_others_are(scene: Scene) -> None:
    scene.bind(1, 2)
    row = name(1).row
    scene.names._write(lambda txn: txn.put(row, values.value_of(name(1), binding(1))[:-1], db=scene.names._bindings))
    scene.back_up()
    assert dict(scene.restore().names()) == {name(2): binding(2)}


@pytest.mark.parametrize("harm", ["value", "page", "cut"])
def test_a_copy_that_does_not_read_back_gets_no_name(scene: Scene, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    scene.bind(*range(10))
    whole = scene.duty._write

    def written_badly(new: Path) -> Iterator[None]:
        yield from whole(new)
        data = new / "data.mdb"
        if harm == "value":
            damage(new)
        if harm == "page":
            data.write_bytes(data.read_bytes()[:8192] + bytes(data.stat().st_size - 8192))
        if harm == "cut":
            data.write_bytes(data.read_bytes()[:-4096])

    monkeypatch.setattr(scene.duty, "_write", written_badly)
    with pytest.raises(RefusedToStart, match="damaged"):
        scene.back_up()
    assert copies(scene.backup) == []
    monkeypatch.undo()
    assert len(scene.back_up()) == 1


# -- restoring ----------------------------------------------------------------------------------------------------


def test_of_a_damaged_copy_and_a_sound_one_the_sound_one_is_taken(scene: Scene) -> None:
    scene.bind("old")
    scene.back_up()
    scene.bind("new")
    scene.now_ms += limits.BACKUP_MS
    scene.back_up()
    damage(copies(scene.backup)[0])
    with pytest.raises(RefusedToStart, match="damaged"):
        restoring.sound_copy(scene.backup, number=1)
    assert dict(scene.restore().names()) == {name("old"): binding("old")}


def test_without_a_copy_the_way_out_is_named(scene: Scene) -> None:
    with pytest.raises(RefusedToStart, match="--empty"):
        restoring.sound_copy(scene.backup, number=None)
    scene.bind(1)
    scene.back_up()
    for number in (0, 2):
        with pytest.raises(RefusedToStart, match="it holds 1"):
            restoring.sound_copy(scene.backup, number=number)
    damage(copies(scene.backup)[0])
    with pytest.raises(RefusedToStart, match="damaged"):
        restoring.sound_copy(scene.backup, number=None)


def test_no_number_comes_twice_whoever_saw_it(scene: Scene) -> None:
    scene.bind(1)
    scene.back_up()
    taken = scene.names.take_numbers(5000)  # after the copy
    assert scene.restore(seen=(7,)).take_numbers(1).start > taken.stop
    assert scene.restore(seen=(900_000,)).take_numbers(1).start > 900_000
    before = scene.names.next_number()
    scene.names.close()
    (scene.repo / "names" / "data.mdb").write_bytes(b"gone")
    assert scene.restore(seen=(before,)).take_numbers(1).start > before


def test_what_was_there_is_set_aside_and_an_empty_start_is_one(scene: Scene) -> None:
    scene.bind(1)
    before = (scene.repo / "names" / "data.mdb").read_bytes()
    scene.names.close()
    assert restoring.restore(scene.repo / "names", None, numbers_seen=[]) == 0
    assert (scene.repo / "names.damaged" / "data.mdb").read_bytes() == before
    scene.names = LmdbNames(scene.repo / "names", must_exist=True)
    assert dict(scene.names.names()) == {}
    assert scene.names.take_numbers(1).start > 65_536


def test_a_restart_makes_no_copy_before_its_time(scene: Scene) -> None:
    scene.bind(1)
    first = scene.back_up()
    scene.duty = BackupDuty(scene.names, scene.backup, clock=lambda: scene.now_ms)
    assert scene.back_up() == first


def test_a_restore_that_was_cut_off_can_be_done_again(scene: Scene) -> None:
    scene.bind(1)
    scene.back_up()
    scene.names.close()
    (scene.repo / "names.new").mkdir()
    (scene.repo / "names.new" / "data.mdb").write_bytes(b"half")
    shutil.move(scene.repo / "names", scene.repo / "names.damaged")
    assert dict(scene.restore().names()) == {name(1): binding(1)}


def test_a_copy_is_an_environment_that_lmdb_opens(scene: Scene) -> None:
    scene.bind(1)
    scene.back_up()
    with lmdb.open(str(copies(scene.backup)[0]), readonly=True, lock=False, max_dbs=8) as env, env.begin() as txn:
        assert txn.stat()["entries"] >= 3
