"""Quota, reserve and prune of an OSTree repository: who goes, who stays, and in which order things happen."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from unit.ssh.pushing import Artifact, everything, listed, make_artifact, make_repo, push_of, refs, serve

from millpond.core import limits
from millpond.core.clock import wall_clock
from millpond.core.errors import NoSpace
from millpond.store.ostree import evicting, room
from millpond.store.ostree.closure import closure, verify_stored
from millpond.store.ostree.evicting import Eviction, older_or_over
from millpond.store.ostree.repository import open_repository
from millpond.store.ostree.room import objects_bytes
from millpond.store.ostree.uses import Uses

HOUR_MS = 3_600_000


class Time:
    """A clock that moves when somebody sleeps; things may be made to happen meanwhile."""

    def __init__(self) -> None:
        self.now_ms = wall_clock()
        self.slept: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def clock(self) -> int:
        return self.now_ms

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_ms += int(1000 * seconds) + 1
        self.meanwhile()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers do not wait for those who have just read the old summary."""
    monkeypatch.setattr(evicting, "OSTREE_LEAVING_SECONDS", 0)


def artifact(name: str) -> Artifact:
    return make_artifact(name, files=12, size=1)


def push(repo: Path, name: str, *, hours_ago: float = 0, ref: str = "") -> Artifact:
    """Push something with a file of its own of about 80 kB."""
    made = artifact(name)
    ended = serve(repo, push_of(made, ref or f"project/{name}"))
    assert ended.is_done, ended
    at = wall_clock() / 1000 - hours_ago * 3600
    os.utime(repo / "refs/heads" / (ref or f"project/{name}"), (at, at))
    return made


def whole(repo: Path, made: Artifact) -> bool:
    try:
        closure(made.commit, lambda key: verify_stored(str(repo), key))
    except Exception:
        return False
    return True


def prune(
    repo: Path, time: Time | None = None, *, before_ms: int | None = None, quota_bytes: int | None = None
) -> evicting.Evicted:
    time = time or Time()
    return Eviction(open_repository(str(repo)), time.clock, sleep=time.sleep).run(older_or_over(before_ms, quota_bytes))


def taken(repo: Path) -> int:
    """What ``du`` says of objects and refs."""
    return sum(path.lstat().st_blocks * 512 for top in ("objects", "refs") for path in (repo / top).rglob("*"))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    make_repo(tmp_path / "repo")
    return tmp_path / "repo"


def test_who_was_not_used_for_long_goes_and_what_others_share_stays(repo: Path) -> None:
    old, kept = push(repo, "old", hours_ago=10), push(repo, "kept", hours_ago=1)
    evicted = prune(repo, before_ms=wall_clock() - 5 * HOUR_MS)
    assert evicted.refs == ["project/old"]
    assert refs(repo) == listed(repo) == {"project/kept": kept.commit}
    assert whole(repo, kept)
    lying = {path.parent.name + path.name for path in (repo / "objects").rglob("*") if path.is_file()}
    assert lying == set(kept.objects)
    assert old.commit not in "".join(lying)


def test_a_pull_is_a_use(repo: Path) -> None:
    pulled, other = push(repo, "pulled", hours_ago=10), push(repo, "other", hours_ago=5)
    Uses(str(repo)).note(pulled.commit, wall_clock() - HOUR_MS)
    evicted = prune(repo, before_ms=wall_clock() - 3 * HOUR_MS)
    assert evicted.refs == ["project/other"]
    assert whole(repo, pulled)
    assert not whole(repo, other)


def test_prune_to_a_quota_lets_the_least_recently_used_go_until_it_holds(repo: Path) -> None:
    for age, name in enumerate("abcd"):
        push(repo, name, hours_ago=10 - age)
    before = prune(repo).left_bytes
    evicted = prune(repo, quota_bytes=before - 1)
    assert evicted.refs == ["project/a"]
    evicted = prune(repo, quota_bytes=evicted.left_bytes - 1)
    assert evicted.refs == ["project/b"]
    assert set(refs(repo)) == set(listed(repo)) == {"project/c", "project/d"}


def test_what_no_ref_names_goes_and_so_do_its_signatures(repo: Path) -> None:
    first = push(repo, "first", ref="project/one")
    (repo / "objects" / first.commit[:2] / f"{first.commit[2:]}.commitmeta").write_bytes(b"")
    second = push(repo, "second", ref="project/one")
    assert whole(repo, first)
    assert prune(repo).refs == []
    assert not list((repo / "objects" / first.commit[:2]).glob(f"{first.commit[2:]}.*"))
    assert whole(repo, second)


def test_refs_of_remotes_and_mirrors_keep_what_they_name(repo: Path) -> None:
    kept = push(repo, "kept", hours_ago=10)
    (repo / "refs/remotes/origin").mkdir()
    (repo / "refs/remotes/origin/x").write_text(kept.commit + "\n")
    assert prune(repo, before_ms=wall_clock()).refs == ["project/kept"]
    assert whole(repo, kept)


def test_the_summary_is_written_before_an_object_goes(repo: Path) -> None:
    gone = push(repo, "gone", hours_ago=10)
    seen = []
    time = Time()
    time.meanwhile = lambda: seen.append((listed(repo), refs(repo), whole(repo, gone)))
    prune(repo, time, before_ms=wall_clock() - HOUR_MS)
    assert seen == [({}, {}, True)]
    assert not whole(repo, gone)


def test_what_is_being_pulled_stays_until_that_is_over(repo: Path) -> None:
    pulled = push(repo, "pulled", hours_ago=10)
    time, uses = Time(), Uses(str(repo))
    states = []

    def meanwhile() -> None:
        states.append(whole(repo, pulled))
        if len(states) < 4:  # somebody who read the old summary came for the commit, and goes on asking for objects
            uses.note(pulled.commit, time.now_ms)

    time.meanwhile = meanwhile
    evicted = prune(repo, time, before_ms=wall_clock() - HOUR_MS)
    assert states == [True] * 4
    assert sum(time.slept) >= limits.OSTREE_PULLING_SECONDS
    assert evicted.pulled_refs == []
    assert not whole(repo, pulled)


def test_who_never_ends_pulling_is_left_to_the_next_prune(repo: Path) -> None:
    pulled = push(repo, "pulled", hours_ago=10)
    time, uses = Time(), Uses(str(repo))
    time.meanwhile = lambda: uses.note(pulled.commit, time.now_ms)
    evicted = prune(repo, time, before_ms=wall_clock() - HOUR_MS)
    assert evicted.pulled_refs == ["project/pulled"]
    assert whole(repo, pulled)
    later = Time()
    later.now_ms = time.now_ms + HOUR_MS
    prune(repo, later)
    assert not whole(repo, pulled)


def test_a_prune_that_is_killed_anywhere_leaves_no_commit_that_is_not_whole(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits go first, so ``ostree fsck`` misses nothing."""
    made = [push(repo, name, hours_ago=10) for name in "abc"]
    real, left = os.unlink, [0]

    def unlink(path: str, **options: int) -> None:
        if "/objects/" in path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        real(path, **options)

    for budget in [*range(6), 1000]:
        left[0] = budget
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", unlink)
            with suppress(KeyboardInterrupt):
                prune(repo, before_ms=wall_clock() - HOUR_MS)
        for one in made:
            path = repo / "objects" / one.commit[:2] / f"{one.commit[2:]}.commit"
            assert not path.exists() or whole(repo, one)
    assert not list((repo / "objects").rglob("*.*"))


# -- quota ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(tmp_path: Path) -> Path:
    """A repository with room for ten artifacts or so."""
    path = tmp_path / "limited"
    make_repo(path)
    push(path, "measure")
    one = sum(room.on_disk(len(data)) for data in artifact("measure").objects.values())
    make_repo(path, quota_bytes=objects_bytes(str(path)) + 2 * one + 600_000)
    return path


def fill(repo: Path) -> list[str]:
    """Push until the quota is nearly taken; the names, the oldest first."""
    names = ["measure"]
    quota_bytes = open_repository(str(repo)).settings.quota_bytes or 0
    one = sum(room.on_disk(len(data)) for data in artifact("measure").objects.values())
    one += 4096 * len(artifact("measure").objects)  # a directory for each, at most
    while objects_bytes(str(repo)) + room.refs_bytes(len(names) + 1) + one < quota_bytes:
        names.append(f"n{len(names)}")
        push(repo, names[-1], hours_ago=100 - len(names))
    at = wall_clock() / 1000 - 200 * 3600
    os.utime(repo / "refs/heads/project/measure", (at, at))
    return names


def test_a_push_that_finds_no_room_makes_the_least_recently_used_go(limited: Path) -> None:
    names = fill(limited)
    quota_bytes = open_repository(str(limited)).settings.quota_bytes or 0
    for number in range(12):
        push(limited, f"more{number}")
        assert taken(limited) <= quota_bytes + 4096 * 300, "directories that became empty are not counted"
        assert objects_bytes(str(limited)) <= quota_bytes
        assert refs(limited) == listed(limited)
    assert f"project/{names[0]}" not in refs(limited)
    assert "project/more11" in refs(limited)
    for ref in refs(limited):
        assert whole(limited, artifact(ref.removeprefix("project/")))


def test_a_push_that_can_never_fit_is_refused_and_nothing_goes(limited: Path) -> None:
    fill(limited)
    before = everything(limited)
    huge = make_artifact("huge", files=400, size=1)
    ended = serve(limited, push_of(huge, "project/huge"))
    assert isinstance(ended.failure, NoSpace)
    assert everything(limited) == before


def test_the_same_push_again_needs_no_room(limited: Path) -> None:
    names = fill(limited)
    for _ in range(3):
        push(limited, names[-1])
    assert {f"project/{name}" for name in names} == set(refs(limited))


def test_the_ref_that_is_pushed_does_not_go_for_its_own_sake(limited: Path) -> None:
    """Its old commit stays until the new one is there, even if it was used before all others."""
    names = fill(limited)
    renewed = make_artifact("renewed", files=60, size=1)
    assert serve(limited, push_of(renewed, f"project/{names[0]}")).is_done
    assert refs(limited)[f"project/{names[0]}"] == renewed.commit
    assert f"project/{names[1]}" not in refs(limited)


def test_the_count_is_what_lies_there_whoever_put_it_there_or_took_it_away(limited: Path) -> None:
    fill(limited)

    def counted_anew() -> int:
        (limited / "state/millpond/sizes").unlink()
        return objects_bytes(str(limited))

    assert objects_bytes(str(limited)) == counted_anew()
    victim = next(path for path in (limited / "objects").rglob("*.filez"))
    victim.unlink()
    assert objects_bytes(str(limited)) == counted_anew()
    (limited / "objects/00").mkdir(exist_ok=True)
    (limited / "objects/00" / ("0" * 62 + ".filez")).write_bytes(bytes(100_000))
    assert objects_bytes(str(limited)) == counted_anew()


def test_a_reserve_is_left_to_others(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = push(repo, "old", hours_ago=10)
    make_repo(repo, reserve_bytes=100 * limits.MIB)
    free = [50 * limits.MIB]

    def free_bytes(_: str) -> int:
        return free[0] if "project/old" in refs(repo) else 500 * limits.MIB

    monkeypatch.setattr(room, "free_bytes", free_bytes)
    monkeypatch.setattr(evicting.Evicted, "freed_bytes", property(lambda _: 1 << 40))
    monkeypatch.setattr(room.Room, "make", _making(room.Room.make))
    push(repo, "new")
    assert set(refs(repo)) == {"project/new"}
    assert not whole(repo, old)


def _making(real: Callable[..., None]) -> Callable[..., None]:
    def make(self: room.Room, short_bytes: int, **options: object) -> None:
        del short_bytes  # what these tiny artifacts take is less than what the pretended disk lacks
        real(self, 1, **options)

    return make


def test_a_reserve_that_cannot_be_kept_refuses_the_push_with_a_status(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repo(repo, reserve_bytes=100 * limits.MIB)
    monkeypatch.setattr(room, "free_bytes", lambda _: 50 * limits.MIB)
    ended = serve(repo, push_of(artifact("x"), "project/x") + b"")
    assert ended.messages[1][1]["result"] is False
    assert refs(repo) == listed(repo) == {}


# -- uses -------------------------------------------------------------------------------------------------------------


def test_uses_are_kept_short_and_none_is_lost(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.store.ostree.uses.OSTREE_LOG_BYTES", 10_000)
    uses = Uses(str(repo))
    commits = [f"{number:064x}" for number in range(20)]
    for at in range(50):
        for commit in commits:
            uses.note(commit, at)
    assert uses.last() == dict.fromkeys(commits, 49)
    assert (repo / "state/millpond/uses").stat().st_size < 12_000


def test_a_use_that_cannot_be_noted_is_not(tmp_path: Path) -> None:
    Uses(str(tmp_path / "nothing")).note("a" * 64, 1)
    (tmp_path / "state").write_text("a file")
    Uses(str(tmp_path)).note("a" * 64, 1)
    assert Uses(str(tmp_path)).last() == {}


def test_rubbish_among_the_uses_is_passed_over(repo: Path) -> None:
    (repo / "state/millpond/uses").write_bytes(b"\xff\n" + b"a" * 64 + b" 5\n" + b"b" * 64 + b" x\n" + b"c" * 64)
    assert Uses(str(repo)).last() == {"a" * 64: 5}
