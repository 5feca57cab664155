"""What ``millpond import`` brings, what it leaves, and in which order what it brought goes again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.cli.test_check import millpond
from unit.importing.old_stores import KEY, KINDS, NOW_S, Bst1, Bst19, Casd, Here, Import, OldStore, reasons
from unit.services.artifacts import message
from unit.store.repositories import flip, noise

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core.digest import Digest
from millpond.core.names import ARTIFACT_URN, SOURCE_URN, Name, Namespace, asset_key
from millpond.names.binding import Binding
from millpond.services import assets
from millpond.services.cache import Cache
from millpond.store.repository.layout import MARKER

NAME = f"project/element/{KEY}"
MB = 1_000_000
Bring = Callable[[OldStore], Import]


@pytest.fixture
def bring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bring:
    return lambda old: Import(old, tmp_path / "repo", capsys)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path / "repo")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.kind)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> OldStore:
    made: OldStore = request.param(tmp_path / "old")
    return made


# -- all of it --------------------------------------------------------------------------------------------------------------


def test_everything_comes_and_is_what_it_was(old: OldStore, bring: Bring, here: Here) -> None:
    root = old.tree("a", [900, 3 * MB, 0])
    old.name(NAME, root)
    done = bring(old)
    first = done()
    assert done.status == 0
    assert first["imported"]["names"] == 1
    assert first["left"]["total"] == 0
    closure = here.closure(old.bound(NAME))
    assert {root, *old.files_of("a", [900, 3 * MB, 0])} <= {*closure, Digest.of(b"")}
    assert first["imported"]["bytes"] == sum(digest.size_bytes for digest in closure)


def test_the_second_run_finds_everything_here(old: OldStore, bring: Bring) -> None:
    old.name(NAME, old.tree("a"))
    done = bring(old)
    done()
    again = done()
    assert done.status == 0
    assert again["imported"] == {"names": 0, "blobs": 0, "bytes": 0}
    assert again["here_before"] == 1


def test_a_later_run_brings_what_came_since(old: OldStore, bring: Bring, here: Here) -> None:
    old.name(NAME, old.tree("a"))
    done = bring(old)
    done()
    old.name("project/other/1", old.tree("b"))
    assert done()["imported"]["names"] == 1
    assert here.closure(old.bound("project/other/1"))


def test_names_are_bound_in_the_instance_that_was_given(old: OldStore, bring: Bring, here: Here) -> None:
    old.name(NAME, old.tree("a"))
    bring(old)("--instance", "team/main")
    bound = old.bound(NAME)
    assert here.binding(bound) is None
    assert here.binding(Name("team/main", bound.namespace, bound.key)) is not None


def test_the_old_store_is_left_as_it_was(old: OldStore, bring: Bring) -> None:
    old.name(NAME, old.tree("a"))

    def seen() -> list[tuple[str, float, int]]:
        return sorted((str(path), path.stat().st_mtime, path.stat().st_size) for path in old.root.rglob("*"))

    before = seen()
    bring(old)()
    assert seen() == before


def test_two_names_of_one_tree_bring_it_once(old: OldStore, bring: Bring, here: Here) -> None:
    root = old.tree("a")
    old.name("project/element/strong", root)
    old.name("project/element/weak", root)
    facts = bring(old)()
    assert facts["imported"]["names"] == 2
    assert facts["imported"]["blobs"] == len(
        {*here.closure(old.bound("project/element/strong")), *here.closure(old.bound("project/element/weak"))}
    )


# -- damage -----------------------------------------------------------------------------------------------------------------


def damaged(old: OldStore, how: str) -> None:
    """Break one file of the name."""
    digest = Digest.of(noise(900, "a"))
    path = old.path_of(digest)
    if how == "a flipped bit":
        flip(path, 100)
    elif how == "cut off":
        os.truncate(path, 400)
    elif how == "too long":
        os.truncate(path, 4000)
    elif how == "gone":
        path.unlink()
    elif how == "a link":
        path.rename(path.with_name("moved"))
        path.symlink_to(path.with_name("moved"))
    elif how == "a directory":
        path.unlink()
        path.mkdir()
    elif how == "a damaged directory":
        flip(old.path_of(old.tree("a")), 3)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("a flipped bit", "damaged"),
        ("cut off", "damaged"),
        ("too long", "damaged"),
        ("gone", "incomplete"),
        ("a link", "incomplete"),
        ("a directory", "incomplete"),
        ("a damaged directory", "damaged"),
    ],
)
def test_a_name_that_lacks_something_is_left_and_its_sister_comes(
    old: OldStore, bring: Bring, here: Here, how: str, reason: str
) -> None:
    old.name(NAME, old.tree("a"))
    old.name("project/sound/1", old.tree("b"))
    damaged(old, how)
    done = bring(old)
    facts = done()
    assert done.status == 1
    assert facts["imported"]["names"] == 1
    assert reasons(facts) == {reason: 1}
    (left,) = facts["left"]["each"]
    assert left["uri"] == old.bound(NAME).key.partition("\0")[0]
    assert here.binding(old.bound(NAME)) is None
    assert here.closure(old.bound("project/sound/1"))


def test_what_was_damaged_comes_when_the_old_server_has_it_again(old: OldStore, bring: Bring, here: Here) -> None:
    old.name(NAME, old.tree("a"))
    damaged(old, "a flipped bit")
    done = bring(old)
    done()
    old.path_of(Digest.of(noise(900, "a"))).write_bytes(noise(900, "a"))
    assert done()["imported"] == {"names": 1, "blobs": 1, "bytes": 900} or done.status == 0
    assert here.closure(old.bound(NAME))


def test_a_large_blob_that_is_damaged_leaves_nothing_behind(old: OldStore, bring: Bring, tmp_path: Path) -> None:
    old.name(NAME, old.tree("a", [3 * MB]))
    flip(old.path_of(Digest.of(noise(3 * MB, "a"))), 2_500_000)
    assert reasons(bring(old)()) == {"damaged": 1}
    assert list((tmp_path / "repo" / "uploads").iterdir()) == []


def test_a_file_that_may_not_be_read_is_told(
    old: OldStore, bring: Bring, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the file system is made to refuse."""
    old.name(NAME, old.tree("a"))
    name = Digest.of(noise(900, "a")).hash[2:]
    opened = os.open

    def refusing(path: str, *arguments: object, **more: object) -> int:
        if path == name:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refusing)
    facts = bring(old)()
    assert reasons(facts) == {"unreadable": 1}
    assert "Permission denied" in facts["left"]["each"][0]["detail"]


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(100)], ids=repr)
def test_a_file_that_says_nothing_is_left(old: OldStore, bring: Bring, content: bytes) -> None:
    old.name(NAME, old.tree("a")).write_bytes(content)
    assert reasons(bring(old)()) == {"garbage": 1}


def test_a_tree_that_is_no_tree_is_left(old: OldStore, bring: Bring) -> None:
    old.name(NAME, old.directory(below={"d": old.blob(b"\xff\xff\xff")}))
    assert reasons(bring(old)()) == {"garbage": 1}


@pytest.mark.parametrize("name", ["..project/el..ement/..", "p/e/" + "k" * 255, "a/b/c/d/e/f", "p/ü/…", "one"])
def test_odd_names_come_as_they_are_and_lead_nowhere(bring: Bring, here: Here, tmp_path: Path, name: str) -> None:
    old = Bst1(tmp_path / "old")
    name = name.removesuffix("/..") + "..x" if name.endswith("/..") else name
    old.name(name, old.tree("a"))
    assert bring(old)()["imported"]["names"] == 1
    assert here.closure(old.bound(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "repo"]


def test_what_the_cache_holds_is_not_read_from_the_old_store(old: OldStore, bring: Bring, here: Here) -> None:
    """Damage there does no harm to what was brought once."""
    root = old.tree("a")
    old.name(NAME, root)
    done = bring(old)
    done()
    damaged(old, "a flipped bit")
    old.name("project/later/1", root)
    assert done()["imported"]["names"] == 1
    assert here.closure(old.bound("project/later/1"))


def test_a_blob_that_goes_while_it_comes_is_a_hole(
    old: OldStore, bring: Bring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old server evicts while we walk: what was there a moment ago is not there any more."""
    from millpond.services.both_stores import BothStores

    old.name(NAME, old.tree("a"))
    path = old.path_of(Digest.of(noise(900, "a")))
    unverified = BothStores.unverified

    def going(self: BothStores, digest: Digest) -> bytes | None:
        if digest.size_bytes == 900:
            path.unlink(missing_ok=True)
        return unverified(self, digest)

    monkeypatch.setattr(BothStores, "unverified", going)
    assert reasons(bring(old)()) == {"incomplete": 1}


# -- names that are here ----------------------------------------------------------------------------------------------------


def test_a_name_that_is_here_is_not_replaced_unless_told_so(old: OldStore, bring: Bring, here: Here) -> None:
    old.name(NAME, old.tree("a"))
    done = bring(old)
    done()
    before = here.binding(old.bound(NAME))
    old.name(NAME, old.tree("b"), used_s=NOW_S + 1000)
    facts = done()
    assert reasons(facts) == {"bound-here": 1}
    assert done.status == 0  # nobody misses anything
    assert here.binding(old.bound(NAME)) == before
    assert done("--overwrite")["imported"]["names"] == 1
    after = here.binding(old.bound(NAME))
    assert after is not None
    assert before is not None
    assert after.digest != before.digest


def test_a_name_that_a_client_binds_in_this_very_moment_is_not_replaced(
    old: OldStore, bring: Bring, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = old.bound(NAME)
    pushed = Binding(Digest.of(b"a client's"), 7, foreign=True)
    settled = assets._settled

    def meanwhile(cache: Cache, *arguments: Any, **options: Any) -> Any:
        found = settled(cache, *arguments, **options)
        cache.names.bind([(name, pushed)])
        return found

    monkeypatch.setattr(assets, "_settled", meanwhile)
    old.name(NAME, old.tree("a"))
    bring(old)()
    assert here.binding(name) == pushed


# -- room and order -----------------------------------------------------------------------------------------------------------


def test_the_newest_come_until_the_quota_is_reached_and_nothing_goes_for_the_rest(
    old: OldStore, bring: Bring, here: Here
) -> None:
    for number in range(12):
        old.name(f"p/e/{number}", old.tree(f"{number}", [MB]), used_s=NOW_S - 100 * number)
    done = bring(old)
    facts = done("--quota", "9M")
    count = facts["imported"]["names"]
    assert 3 <= count <= 8
    assert done.status == 1
    assert reasons(facts) == {"no-room": 12 - count}
    for number in range(12):
        assert (here.binding(old.bound(f"p/e/{number}")) is not None) == (number < count)
    again = done("--quota", "9M")
    assert again["here_before"] == count
    assert again["imported"]["blobs"] == 0


def test_names_stop_coming_before_any_of_them_had_to_go(bring: Bring, tmp_path: Path) -> None:
    """Names may hold so much, and beyond it the least recently used are removed."""
    old = Bst1(tmp_path / "old")
    root = old.tree("a")
    for number in range(900):
        old.name(f"p/{'e' * 200}/{number}", root, used_s=NOW_S - number)
    done = bring(old)
    facts = done("--quota", "2M")
    assert 100 < facts["imported"]["names"] < 900
    assert "names hold" in facts["left"]["each"][0]["detail"]


def test_what_is_here_does_not_go_for_what_moves_in(bring: Bring, here: Here, tmp_path: Path) -> None:
    first, second = Bst1(tmp_path / "first"), Bst1(tmp_path / "second")
    for number in range(4):
        first.name(f"p/first/{number}", first.tree(f"first {number}", [MB]), used_s=NOW_S - 10**6)
        second.name(f"p/second/{number}", second.tree(f"second {number}", [MB]), used_s=NOW_S)
    assert bring(first)("--quota", "8M")["imported"]["names"] == 4
    facts = bring(second)("--quota", "8M")
    assert facts["imported"]["names"] < 4
    assert millpond("check", "--deep", here._repository.path) == 0
    for number in range(4):
        assert here.closure(first.bound(f"p/first/{number}"))


def test_a_name_that_could_never_fit_holds_up_no_other(old: OldStore, bring: Bring, here: Here) -> None:
    old.name("p/huge/1", old.tree("huge", [9 * MB]), used_s=NOW_S)
    old.name("p/small/1", old.tree("small", [MB]), used_s=NOW_S - 100)
    facts = bring(old)("--quota", "8M")
    assert facts["imported"]["names"] == 1
    assert reasons(facts) == {"no-room": 1}
    assert here.closure(old.bound("p/small/1"))


def test_what_was_used_last_in_the_old_store_goes_last_here(old: OldStore, bring: Bring, here: Here) -> None:
    order = [3, 0, 5, 1, 4, 2]
    for age, number in enumerate(order):
        old.name(f"p/e/{number}", old.tree(f"{number}", [MB]), used_s=NOW_S - 1000 * age)
    bring(old)("--quota", "40M")
    assert millpond("evict", "--to", "4M", here._repository.path) in (0, 1)
    whole = [
        number for number in order if not here.missing(old.files_of(f"{number}", [MB]))
    ]  # looked at once, afterwards
    assert 0 < len(whole) < 6
    assert whole == order[: len(whole)]


def test_a_blob_that_several_names_share_is_as_young_as_the_youngest(old: OldStore, bring: Bring, here: Here) -> None:
    """The logs carry times that fall, so the later line is not the later use."""
    shared = noise(MB, "shared")
    for age, number in enumerate(range(5)):
        files = [old.blob(noise(MB, f"own {number}")), *([old.blob(shared)] if number in (0, 4) else [])]
        old.name(f"p/e/{number}", old.directory(files), used_s=NOW_S - 1000 * age)
    bring(old)("--quota", "40M")
    millpond("evict", "--to", "3500K", here._repository.path)
    assert here.missing([Digest.of(noise(MB, "own 4")), Digest.of(noise(MB, "own 3"))])
    assert here.missing([Digest.of(shared)]) == []


def test_what_clients_pushed_is_younger_than_what_moved_in(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Bst1(tmp_path / "old")
    old.name("p/e/1", old.tree("1", [2 * MB]))
    with here._open() as repository:
        data = noise(2 * MB, "pushed")
        assert repository.store.put_many([(Digest.of(data), data)]) == [None]
    bring(old)("--quota", "40M")
    millpond("evict", "--older-than", "1h", here._repository.path)
    assert here.missing([Digest.of(noise(2 * MB, "pushed"))]) == []
    assert here.missing(old.files_of("1", [2 * MB])) != []


def test_a_use_of_an_old_name_since_the_last_run_makes_it_younger(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Bst1(tmp_path / "old")
    files = {}
    for number in range(3):
        files[number] = old.name(f"p/e/{number}", old.tree(f"{number}", [MB]), used_s=NOW_S - 1000 * number)
    done = bring(old)
    done("--quota", "40M")
    os.utime(files[2], (NOW_S + 5, NOW_S + 5))
    assert done("--quota", "40M")["here_before"] == 3
    millpond("evict", "--to", "2500K", here._repository.path)
    assert here.missing(old.files_of("1", [MB])) != []
    assert here.missing(old.files_of("2", [MB])) == []


def test_times_that_are_still_to_come_make_nothing_young_for_ever(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Bst1(tmp_path / "old")
    old.name(NAME, old.tree("a"), used_s=NOW_S + 10**10)
    bring(old)()
    binding = here.binding(old.bound(NAME))
    assert binding is not None
    assert binding.pushed_at_ms < (NOW_S + 10**9) * 1000


# -- kinds ------------------------------------------------------------------------------------------------------------------


def test_messages_of_artifacts_move_byte_for_byte(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Bst19(tmp_path / "old")
    log = old.blob(b"log")
    path = old.name(NAME, old.tree("a"), logs=[artifact_pb2.Artifact.LogFile(name="log", digest=message(log))])
    assert bring(old)()["imported"]["names"] == 1
    binding = here.binding(old.bound(NAME))
    assert binding is not None
    assert binding.digest == Digest.of(path.read_bytes())
    assert {binding.digest, log} <= set(here.closure(old.bound(NAME)))


@pytest.mark.parametrize("more", [b"", b"\xfa\x3f\x04kept"], ids=["plain", "with unknown fields"])
def test_messages_of_sources_move_byte_for_byte(bring: Bring, here: Here, tmp_path: Path, more: bytes) -> None:
    old = Bst19(tmp_path / "old")
    root = old.tree("a")
    path = old.source("git/key", root, more=more)
    assert bring(old)()["imported"]["names"] == 1
    binding = here.binding(Name("", Namespace.ASSET_DIRECTORY, SOURCE_URN + "git/key"))
    assert binding is not None
    assert binding.digest == root
    assert binding.message == path.read_bytes()


def test_an_optional_tree_may_be_damaged_and_a_log_may_not(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Bst19(tmp_path / "old")
    buildtree = old.tree("buildtree", [700])
    old.name("p/e/1", old.tree("a"), buildtree=message(buildtree))
    flip(old.path_of(Digest.of(noise(700, "buildtree"))), 5)
    log = old.blob(b"the log")
    old.name("p/e/2", old.tree("b"), logs=[artifact_pb2.Artifact.LogFile(name="log", digest=message(log))])
    flip(old.path_of(log), 2)
    facts = bring(old)()
    assert reasons(facts) == {"damaged": 1}
    assert buildtree not in here.closure(old.bound("p/e/1"))
    assert here.binding(old.bound("p/e/2")) is None


def test_refs_and_assets_of_a_mixed_server_come_along(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Bst19(tmp_path / "old")
    older, newer = Bst1(tmp_path / "old"), Casd(tmp_path / "old")
    for store, seed in ((old, "a"), (older, "b"), (newer, "c")):
        store.name(NAME, store.tree(seed))
    assert bring(old)()["imported"]["names"] == 3
    for store in (old, older, newer):
        assert here.closure(store.bound(NAME))


def test_assets_keep_their_qualifiers_and_their_end(bring: Bring, here: Here, tmp_path: Path) -> None:
    old = Casd(tmp_path / "old")
    file = old.blob(b"file")
    qualifiers = [asset_pb2.Qualifier(name="b", value="2"), asset_pb2.Qualifier(name="a", value="1")]
    old.blob_asset("https://example.org/x", file, qualifiers=qualifiers, expires_at={"seconds": 4_000_000_000})
    old.blob_asset("https://example.org/over", file, expires_at={"seconds": NOW_S})
    done = bring(old)
    facts = done()
    assert (facts["imported"]["names"], reasons(facts), done.status) == (1, {"expired": 1}, 0)
    key = asset_key("https://example.org/x", [("a", "1"), ("b", "2")])
    binding = here.binding(Name("", Namespace.ASSET_BLOB, key))
    assert binding is not None
    assert binding.expires_at_ms == 4_000_000_000_000


@pytest.mark.parametrize(
    ("uri", "qualifiers"),
    [("", []), ("u" * 20_000, []), ("urn:\0", []), ("urn:x", ["a", "a"]), ("urn:x", [""])],
    ids=["empty", "too long", "NUL", "a qualifier twice", "a qualifier without a name"],
)
def test_names_that_nobody_could_ask_for_are_left(
    bring: Bring, tmp_path: Path, uri: str, qualifiers: list[str]
) -> None:
    old = Casd(tmp_path / "old")
    old.blob_asset(uri, old.blob(b"file"), qualifiers=[asset_pb2.Qualifier(name=name) for name in qualifiers])
    assert reasons(bring(old)()) == {"unusable-name": 1}


def test_what_a_name_is_called_cannot_command_a_terminal(
    bring: Bring, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = Casd(tmp_path / "old")
    old.blob_asset("urn:\x1b[2J\n", Digest.of(b"never"))
    assert millpond("import", "casd", old.root, tmp_path / "repo", "--quota", "200M") == 1
    assert "urn:\\x1b[2J\\n (assets" in capsys.readouterr().out


def test_what_casd_forgot_of_artifacts_and_sources_is_found_in_them(bring: Bring, here: Here, tmp_path: Path) -> None:
    """casd keeps no references; without them the content would not be part of the name."""
    old = Casd(tmp_path / "old")
    files, source, meta = old.tree("files"), old.tree("source"), old.blob(b"meta")
    artifact = artifact_pb2.Artifact(files=message(files), low_diversity_meta=message(meta)).SerializeToString()
    old.blob_asset(ARTIFACT_URN + NAME, old.blob(artifact))
    old.blob_asset(SOURCE_URN + "key", old.blob(source_pb2.Source(files=message(source)).SerializeToString()))
    assert bring(old)()["imported"]["names"] == 2
    assert {files, meta, *old.files_of("files")} <= set(
        here.closure(Name("", Namespace.ASSET_BLOB, ARTIFACT_URN + NAME))
    )
    assert {source, *old.files_of("source")} <= set(here.closure(Name("", Namespace.ASSET_BLOB, SOURCE_URN + "key")))


def test_blobs_without_a_name_come_when_asked_for(old: OldStore, bring: Bring, here: Here) -> None:
    blobs = [old.blob(noise(size, "unnamed")) for size in (1, 5000, 3 * MB)]
    done = bring(old)
    assert done()["imported"]["blobs"] == 0
    facts = done("--all-blobs")
    assert facts["imported"] == {"names": 0, "blobs": 3, "bytes": sum(digest.size_bytes for digest in blobs)}
    assert here.missing(blobs) == []


def test_a_damaged_blob_without_a_name_is_told_and_the_others_come(old: OldStore, bring: Bring, here: Here) -> None:
    blobs = [old.blob(noise(5000 + number, "unnamed")) for number in range(5)]
    flip(old.path_of(blobs[2]), 7)
    facts = bring(old)("--all-blobs")
    assert (facts["imported"]["blobs"], reasons(facts)) == (4, {"damaged": 1})
    assert here.missing(blobs) == [blobs[2]]


# -- a rehearsal ------------------------------------------------------------------------------------------------------------


def told(facts: dict[str, Any]) -> dict[str, Any]:
    """All but whether it was done."""
    return {key: value for key, value in facts.items() if key != "dry_run"}


@pytest.mark.parametrize("how", ["a flipped bit", "cut off", "gone", "a link", "a damaged directory", "nothing"])
def test_a_rehearsal_says_what_then_happens_and_makes_nothing(
    old: OldStore, bring: Bring, tmp_path: Path, how: str
) -> None:
    old.name(NAME, old.tree("a"))
    old.name("project/sound/1", old.tree("b", [900, 3 * MB, 0]))
    old.name("project/large/1", old.tree("c", [3 * MB + 1]))
    flip(old.path_of(Digest.of(noise(3 * MB + 1, "c"))), 2 * MB)
    damaged(old, how)
    done = bring(old)
    rehearsed = done("--dry-run")
    status = done.status
    assert rehearsed["dry_run"]
    assert not (tmp_path / "repo").exists()
    assert told(rehearsed) == told(done())
    assert status == done.status == 1


def test_a_rehearsal_beside_what_is_here_leaves_it_as_it_was(old: OldStore, bring: Bring, here: Here) -> None:
    old.name(NAME, old.tree("a"))
    old.name("project/other/1", old.tree("b"))
    done = bring(old)
    done()
    old.name(NAME, old.tree("c"))
    old.name("project/new/1", old.tree("d"))
    for options in [], ["--overwrite"]:
        rehearsed = done("--dry-run", "--quota", "150M", *options)
        assert here.binding(old.bound("project/new/1")) is None
        assert millpond("check", "--deep", here._repository.path) == 0
        assert json.loads((here._repository.path / MARKER).read_bytes())["quota_bytes"] == 200 * MB
    assert told(rehearsed) == told(done("--overwrite"))


def test_a_rehearsal_tells_blobs_without_a_name_too(old: OldStore, bring: Bring) -> None:
    blobs = [old.blob(noise(5000 + number, "unnamed")) for number in range(5)]
    flip(old.path_of(blobs[2]), 7)
    done = bring(old)
    assert told(done("--dry-run", "--all-blobs")) == told(done("--all-blobs"))


@pytest.mark.parametrize("before", [0, 3])
def test_a_rehearsal_estimates_where_the_quota_is_reached(bring: Bring, tmp_path: Path, before: int) -> None:
    first, second = Bst1(tmp_path / "first"), Bst1(tmp_path / "second")
    for number in range(before):
        first.name(f"p/first/{number}", first.tree(f"first {number}", [4 * MB]))
    second.name("p/huge/1", second.tree("huge", [50 * MB]))
    for number in range(20):
        second.name(f"p/second/{number}", second.tree(f"second {number}", [4 * MB]), used_s=NOW_S - 100 * number)
    if before:
        bring(first)("--quota", "30M")
    rehearsed = bring(second)("--dry-run", "--quota", "45M")
    facts = bring(second)("--quota", "45M")
    assert abs(rehearsed["imported"]["names"] - facts["imported"]["names"]) <= 1
    assert reasons(rehearsed) == {"no-room": 21 - rehearsed["imported"]["names"]}


# -- telling ----------------------------------------------------------------------------------------------------------------


def test_the_facts_are_told_in_words(bring: Bring, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old = Bst1(tmp_path / "old")
    old.name(NAME, old.tree("a"))
    old.name("p/broken/1", Digest.of(b"never"))
    assert millpond("import", "bst1", old.root, tmp_path / "repo", "--quota", "200M") == 1
    out = capsys.readouterr().out
    assert "cas/refs/heads/p/broken/1: incomplete, blob" in out
    assert "imported 1 name: 5 blobs, " in out
    assert "left in " in out
    assert "  1 incomplete\n" in out
    assert millpond("import", "bst1", "--dry-run", old.root, tmp_path / "another", "--quota", "200M") == 1
    out = capsys.readouterr().out
    assert "would import 1 name: 5 blobs, " in out
    assert "would stay in " in out


def test_a_repository_of_something_else_is_refused(
    bring: Bring, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = Bst1(tmp_path / "old")
    assert millpond("import", "bst1", old.root, Casd(tmp_path / "casd").root) == 2
    assert "is the store of buildbox-casd" in capsys.readouterr().err
    assert millpond("import", "bst1", tmp_path / "nothing", tmp_path / "repo") == 2
    assert not (tmp_path / "repo").exists()
