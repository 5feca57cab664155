"""What goes when room is needed: the least recently used, and nothing that was promised."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic_ns, sleep

import pytest
from unit.store.repositories import known, noise
from unit.store.upkept import Time, Upkept, upkept

from millpond.core.digest import Digest
from millpond.core.errors import IncompleteClosure, NameNotFound, NoSpace
from millpond.core.names import Namespace
from millpond.services import assets
from millpond.store.care.quarantine import quarantine
from millpond.store.eviction import counting, making_room
from millpond.store.eviction.evicted import Evicted, last_eviction
from millpond.store.eviction.forwarding import Forwarder
from millpond.store.eviction.sweeping import Sweeper
from millpond.store.room.spare import Spare
from millpond.store.segments.format import record_bytes
from millpond.store.segments.rebuild import segment_paths


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def small(tmp_path: Path, time: Time) -> Iterator[Upkept]:
    """22 MB: segments of 335 KiB."""
    with upkept(tmp_path / "repo", quota_bytes=22_000_000, clock=time) as one:
        yield one


def artifact(megabytes: int) -> list[int]:
    return [50_000] * (20 * megabytes)


def test_a_small_quota_holds_what_fits_and_gives_up_only_the_oldest(small: Upkept, time: Time) -> None:
    first = small.push("first", artifact(14))
    time.passes(ms=1)
    second = small.push("second", artifact(5))
    assert small.is_whole(first)
    assert small.is_whole(second)
    time.passes(ms=1)
    third = small.push("third", artifact(5))
    assert small.is_whole(second)
    assert small.is_whole(third)
    assert not small.is_whole(first)
    assert small.taken_bytes() <= 22_000_000


def test_a_fetch_saves_the_whole_artifact_from_the_next_eviction(small: Upkept, time: Time) -> None:
    first = small.push("first", artifact(5))
    time.passes(hours=2)
    second = small.push("second", artifact(13))
    time.passes(hours=2)
    small.fetch("first")
    time.passes(hours=2)
    third = small.push("third", artifact(5))
    assert small.is_whole(first)
    assert small.is_whole(third)
    assert not small.is_whole(second)


def test_a_push_ends_no_lease_of_another_client(small: Upkept, time: Time) -> None:
    shared = small.push("first", artifact(1))
    time.passes(days=1)
    assert small.store.find_missing(shared) == []  # a client that will push in five minutes
    time.passes(ms=1000)
    assert small.store.find_missing(shared) == []  # one that pushes now
    request = assets.AssetPush(["second"], shared[0], blobs=shared)
    assets.push(small.cache, "", Namespace.ASSET_BLOB, request, pushed_by="")
    for i in range(10):
        time.passes(ms=30_000)
        small.push(f"more {i}", artifact(4))
    assert small.is_whole(shared)
    time.passes(hours=1)
    for i in range(5):
        time.passes(ms=30_000)
        small.push(f"after {i}", artifact(4))
    assert not small.is_whole(shared)


def test_leases_end_with_their_push(small: Upkept, time: Time) -> None:
    """If they did not, the newest leases would hold their half of the quota against what was used after them."""
    first = small.push("first", artifact(11))
    time.passes(ms=1)
    second = small.push("second", artifact(5))
    time.passes(ms=1)
    small.fetch("first")
    time.passes(ms=1)
    small.push("third", artifact(5))
    assert small.is_whole(first)
    assert not small.is_whole(second)


def test_a_fetch_that_walks_leases_nothing(small: Upkept, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that does not: it is a use. A lease would last for an hour, for no push ends it."""
    first = small.push("first", artifact(5))
    time.passes(ms=1)
    monkeypatch.setattr(small.store, "intact", lambda *_, **__: False)  # as right after a push, say
    small.fetch("first")
    for number in range(5):
        time.passes(ms=1)
        small.push(f"more {number}", artifact(5))
    assert not small.is_whole(first)


def test_where_no_copy_finds_room_a_segment_goes_of_which_nothing_must_be_kept(
    small: Upkept, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leased and cold blobs alternate in what is oldest, and what is younger is cold as a whole."""
    mixed = small.put([10_000] * 1000, "mixed")
    request = assets.AssetPush(["cold"], mixed[0], blobs=mixed[::2])
    assets.push(small.cache, "", Namespace.ASSET_BLOB, request, pushed_by="")
    time.passes(ms=1)
    young = small.push("young", artifact(6))
    time.passes(ms=1)

    def no_room(*_: object) -> None:
        raise NoSpace

    monkeypatch.setattr(Forwarder, "copy", no_room)
    refusals: list[None] = []
    monkeypatch.setattr(small.eviction, "_say_what_is_in_the_way", lambda: refusals.append(None))
    small.push("pushed", artifact(6))
    assert not refusals
    assert small.is_whole(mixed[1::2])
    assert not small.is_whole(young)


def test_what_is_fetched_all_the_time_stays_though_pins_and_leases_leave_little_that_may_go(
    tmp_path: Path, time: Time
) -> None:
    """Of 270 MB leases hold half and pins a quarter; what may go is the artifact, and about as much that is older."""
    with upkept(tmp_path / "repo", quota_bytes=270_000_000, clock=time) as large:
        pinned = large.put([600_000] * 115, "pinned")
        large.uses.pin(2, [digest.key for digest in pinned])
        artifact = large.push("artifact", [600_000] * 40)
        for i in range(50):
            time.passes(ms=1000)
            large.put([600_000] * 8, f"{i}")
            large.fetch("artifact")
        assert large.is_whole(artifact)
        assert large.eviction._episode.segments or last_eviction(large.uses)


def test_what_is_written_all_the_time_goes_in_whole_segments_though_all_of_it_is_leased(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is leased at each moment, the newest; a census that is never made anew must see the older leases end."""
    monkeypatch.setattr(counting, "_SHARE", 1e9)
    monkeypatch.setattr(counting, "_CHEAP_SECONDS", 0)
    with upkept(tmp_path / "repo", quota_bytes=270_000_000, clock=time) as large:
        large.eviction._tell = lambda **_: Evicted()  # type: ignore[method-assign]  # so that all of it is one sum
        for i in range(80):
            time.passes(ms=10)
            large.put([600_000] * 8, f"{i}")
        evicted = large.eviction._episode
    assert evicted.freed_bytes > 100_000_000
    assert evicted.copied_bytes <= evicted.freed_bytes // 50


@pytest.mark.parametrize("somebody_waits", [True, False])
def test_room_that_somebody_waits_for_returns_before_more_goes_ahead_of_need(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch, *, somebody_waits: bool
) -> None:
    with upkept(tmp_path / "repo", quota_bytes=270_000_000, clock=time) as large:
        large.push("old", [600_000] * 300)
        time.passes(hours=2)
        large.settled()
        if somebody_waits:
            large.parts.index_writer.run(lambda txn: large.space.want(txn, 5_000_000))
        steps: list[str] = []
        for name in ("sweep", "remove"):
            monkeypatch.setattr(Sweeper, name, _noted(getattr(Sweeper, name), name, steps))
        pressing = large.space.pressure()._replace(to_free_bytes=5_000_000)  # more than a segment
        monkeypatch.setattr(large.space, "pressure", lambda **_: pressing)
        assert large.eviction.run() == making_room._BUSY_SECONDS
    at_once = steps.index("remove")
    assert at_once == (2 if somebody_waits else steps.count("sweep"))
    assert steps.count("sweep") > 3


def test_where_room_runs_out_again_it_is_made_before_it_must(tmp_path: Path, time: Time) -> None:
    with upkept(tmp_path / "repo", quota_bytes=270_000_000, clock=time) as large:
        large.put([600_000] * 400, "old")
        time.passes(hours=2)
        large.put([600_000] * 50, "new")
        spare, segment_bytes = Spare(large.space, large.layout), large.space.segment_bytes
        while spare.bytes() >= segment_bytes:
            large.put([600_000], f"{spare.bytes()}")
        assert not large.space.pressure().to_free_bytes
        large.eviction._busy_until = 0
        large.eviction.run()
        assert spare.bytes() < segment_bytes
        large.eviction._busy_until = monotonic_ns()
        large.eviction.run()
        assert spare.bytes() > 2 * segment_bytes


def _noted(step: Callable[..., object], name: str, steps: list[str]) -> Callable[..., object]:
    def noted(*arguments: object) -> object:
        steps.append(name)
        return step(*arguments)

    return noted


@pytest.mark.timeout(120)
def test_what_is_fetched_daily_stays_for_weeks(small: Upkept, time: Time) -> None:
    daily = small.push("daily", artifact(5))
    others = []
    for day in range(14):
        time.passes(days=0.5)
        others.append(small.push(f"day {day}", artifact(4)))
        time.passes(days=0.5)
        small.fetch("daily")
        assert small.is_whole(daily)
    assert not any(map(small.is_whole, others[:10]))


def test_hot_and_cold_finely_mixed_cost_at_most_three_bytes_copied_per_byte_freed(small: Upkept, time: Time) -> None:
    """Every tenth blob stays in use; each segment holds 34."""
    hot: list[Digest] = []
    evicted = Evicted()
    small.eviction._tell = lambda **_: Evicted()  # type: ignore[method-assign]  # so that all of it is one sum
    for i in range(40):
        time.passes(ms=100)
        blobs = small.put([10_000] * 200, f"mixed {i}")
        hot += blobs[::10]
        small.store.find_missing(hot)
    evicted = small.eviction._episode
    assert evicted.freed_bytes > 50_000_000
    assert evicted.copied_bytes <= 3 * evicted.freed_bytes
    assert small.taken_bytes() <= 22_000_000


def test_pinned_blobs_move_to_segments_of_their_own_and_are_not_moved_again(small: Upkept, time: Time) -> None:
    pinned: list[Digest] = []
    for i in range(10):
        blobs = small.put([10_000] * 200, f"mixed {i}")
        pinned += blobs[::5]
        small.uses.pin(1, [digest.key for digest in blobs[::5]])
        time.passes(hours=2)
    for i in range(10):
        small.put([10_000] * 200, f"more {i}")
        time.passes(hours=2)
    assert small.is_whole(pinned)
    homes = {small.repository.entry(digest).segment for digest in pinned}
    small.eviction.evict(everything=True)
    assert small.is_whole(pinned)
    moved = {small.repository.entry(digest).segment for digest in pinned} - homes
    assert len(moved) <= 2  # those that had not been moved before
    lying = [key for key, entry in small.everything() if entry.segment in homes & moved]
    assert set(lying) <= {digest.key for digest in pinned}


def test_when_all_is_pinned_or_leased_that_is_said_at_once(small: Upkept, caplog: pytest.LogCaptureFixture) -> None:
    pinned = small.put([50_000] * 200, "pinned")
    small.uses.pin(1, [digest.key for digest in pinned])
    small.put([50_000] * 190, "leased")
    small.settled()
    since = monotonic_ns()
    small.parts.index_writer.run(lambda txn: small.space.want(txn, 5_000_000))
    rounds, slept_seconds = 0, 0.0
    held = None
    while held is None:
        rounds += 1
        slept_seconds += (pause_seconds := small.eviction.run())
        sleep(pause_seconds)
        with small.index.reading() as txn:
            said, said_ns = small.space.held(txn)
            held = said if said_ns >= since else None
    assert slept_seconds < 2
    assert rounds < 30
    assert held.pinned_bytes > 9_000_000
    assert held.leased_bytes > 8_000_000
    assert small.is_whole(pinned)


def test_an_eviction_is_one_line_and_is_remembered(small: Upkept, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="millpond.store.eviction.evicted")
    small.push("first", artifact(14))
    time.passes(days=3)
    small.push("second", artifact(10))
    small.eviction.close()
    (line,) = caplog.messages
    assert "last used 3 d ago or longer; 1 names became incomplete" in line
    last = last_eviction(small.uses)
    assert last is not None
    assert 2.9 < last.age_ms / 86_400_000 < 3.1


def test_a_low_eviction_age_is_a_warning_once_a_day(
    tmp_path: Path, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> int:
        return sum("--warn-age" in message for message in caplog.messages)

    with upkept(tmp_path / "repo", quota_bytes=22_000_000, clock=time, warn_age_ms=7 * 86_400_000) as one:
        for i in range(6):
            time.passes(hours=2)
            one.push(f"{i}", artifact(8))
            one.eviction._tell()
        assert warnings() == 1
        time.passes(days=1)
        one.push("late", artifact(8))
        one.eviction._tell()
        assert warnings() == 2
        assert last_eviction(one.uses)
        time.passes(days=20)
        one.push("later", artifact(18))
        one.eviction._tell()
        assert warnings() == 2


def test_on_demand_what_is_old_goes_or_as_much_as_is_asked_for_or_all(small: Upkept, time: Time) -> None:
    old = small.push("old", artifact(3))
    time.passes(days=40)
    middle = small.push("middle", artifact(3))
    time.passes(days=1)
    new = small.push("new", artifact(3))
    small.settled()
    evicted = small.eviction.evict(older_than_ms=time() - 30 * 86_400_000)
    assert evicted.freed_bytes > 2_500_000
    assert not small.is_whole(old)
    assert small.is_whole([*middle, *new])
    before = small.space.pressure().used_bytes
    small.eviction.evict(to_bytes=before - 2_000_000)
    assert before - 3_000_000 < small.space.pressure().used_bytes <= before - 2_000_000
    assert not small.is_whole(middle)
    assert small.is_whole(new)
    pinned = new[:10]
    small.uses.pin(2, [digest.key for digest in pinned])
    small.eviction.evict(everything=True)
    assert {key for key, _ in small.everything()} == {digest.key for digest in pinned}
    assert last_eviction(small.uses) is None  # nobody lacked room


def test_segments_that_go_together_leave_no_row_no_file_and_no_use(small: Upkept, time: Time) -> None:
    gone = small.push("gone", artifact(3))
    time.passes(days=40)
    kept = small.push("kept", artifact(1))
    small.settled()
    evicted = small.eviction.evict(older_than_ms=time() - 30 * 86_400_000)
    assert evicted.segments >= 8
    assert small.is_whole(kept)
    assert known(small.uses, sorted(digest.key for digest in gone)).keys() <= {key for key, _ in small.everything()}
    with small.index.reading() as txn:
        rows = dict(small.index.all_segments(txn))
    listed = Counter(entry.segment for _, entry in small.everything())
    assert {number: row.live_count for number, row in rows.items() if row.live_count} == listed
    assert {number for number, _ in segment_paths(small.layout.segments)} == rows.keys()


def test_nothing_goes_before_pins_are_known(small: Upkept) -> None:
    small.uses.remember(b"pins-known", None)
    blobs = small.put([50_000] * 350, "first")
    small.settled()
    small.parts.index_writer.run(lambda txn: small.space.want(txn, 10_000_000))
    small.eviction.run()
    assert small.is_whole(blobs)
    small.uses.end_pins_before(1)
    small.eviction.run()
    assert not small.is_whole(blobs)


def test_a_segment_that_could_not_be_synced_goes_though_there_is_room(small: Upkept) -> None:
    blobs = small.put([300_000], "lost")
    small.settled()
    number = small.repository.entry(blobs[0]).segment
    small.store._sealer.suspect(number, OSError("the disk"))
    small.eviction.run()
    small.eviction._looked_for_suspects = float("-inf")
    small.eviction.run()
    assert not small.repository.segment(number).exists()
    assert number not in small.repository.rows()
    assert small.store.put_many([(blobs[0], noise(300_000, "lost/0"))]) == [None]
    assert small.is_whole(blobs)


def test_a_push_whose_leased_blobs_were_taken_is_refused_and_not_kept_as_foreign(small: Upkept) -> None:
    blobs = small.put([50_000] * 20, "promised")
    small.settled()
    small.eviction.evict(everything=True)
    request = assets.AssetPush(["name"], blobs[0], blobs=blobs)
    with pytest.raises(IncompleteClosure):
        assets.push(small.cache, "", Namespace.ASSET_BLOB, request, pushed_by="")


def test_names_in_segments_that_are_still_written_are_told_of_as_well(small: Upkept) -> None:
    small.push("name", [1000])
    small.store._index_writer.run(lambda _: None)  # the closure's row is written with it
    assert small.eviction.evict(everything=True).names == 1
    with pytest.raises(NameNotFound):
        small.fetch("name")


def test_what_turns_out_to_be_damaged_while_it_is_taken_off_is_counted_off_once(
    small: Upkept, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, damaged, *_ = blobs = small.put([10_000] * 5, "written")
    small.uses.pin(2, [pinned.key])
    entry = small.index.entries([damaged.key])[damaged.key]
    listed = Sweeper._listed

    def listed_before_it_is_found(sweeper: Sweeper, number: int, live_count: int = -1) -> dict[bytes, bytes]:
        found = listed(sweeper, number, live_count)
        with small.index.env.begin(write=True) as txn:
            quarantine(small.index, small.layout.segments, txn, damaged.key, entry)
        return found

    monkeypatch.setattr(Sweeper, "_listed", listed_before_it_is_found)
    small.eviction.evict(everything=True)
    assert [key for key, _ in small.everything()] == [pinned.key]
    with small.index.reading() as txn:
        row = small.index.segment(txn, entry.segment)
    assert row is not None
    assert (row.live_count, row.live_bytes) == (1, record_bytes(blobs[0].size_bytes))


@pytest.mark.parametrize("dead", [0, 1], ids=["all of it is listed", "one is dead"])
def test_what_goes_of_a_segment_is_what_the_index_lists_there(small: Upkept, dead: int) -> None:
    blobs = [*small.put([10_000, 1, 70_000, 300], "written"), *small.put([2_000_000], "large")]
    small.settled()
    for digest in blobs[:dead]:
        entry = small.repository.entry(digest)
        with small.index.env.begin(write=True) as txn:
            quarantine(small.index, small.layout.segments, txn, digest.key, entry)
    numbers = {small.repository.entry(digest).segment for digest in blobs[dead:]}
    sweeper = small.eviction._sweeper
    for number in numbers:
        here = {d.key: e.encode() for d in blobs[dead:] if (e := small.repository.entry(d)).segment == number}
        with small.index.reading() as txn:
            row = small.index.segment(txn, number)
        assert row is not None
        assert sweeper._listed(number, row.live_count) == sweeper._listed(number) == here
        assert list(sweeper._listed(number, row.live_count)) == sorted(here)


def test_what_is_listed_here_goes_even_where_another_place_in_it_was_expected(small: Upkept) -> None:
    (digest,) = small.put([10_000], "written")
    small.settled()
    entry = small.repository.entry(digest)
    wrong = entry._replace(offset=entry.offset + 8).encode()
    small.eviction._sweeper._delete_listed({entry.segment: {digest.key: wrong}})
    assert small.index.entries([digest.key]) == {}
