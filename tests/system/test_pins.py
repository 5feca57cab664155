"""Pins in a cache that is overrun: what is pinned is whole, what is not gives way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.small_cache import KB, MB, Artifacts

URN = "urn:fdc:buildstream.build:2020:source:"  # whose blobs may be anything
QUOTA_BYTES = 40 * MB


class Overrun(Artifacts):
    def __init__(self, site: BuildSite, *flags: str) -> None:
        self.repo: Path = site.place("repo")
        self.site, self.flags = site, flags
        self.server = self.start()
        super().__init__(self.server.port)

    def start(self):  # type: ignore[no-untyped-def]
        return self.site.server("--enable-push", "--quota", str(QUOTA_BYTES), *self.flags, repo=self.repo)

    def release(self, called: str, size_bytes: int = 5 * MB) -> str:
        """Push an artifact of that name."""
        self.push(URN + called, [100 * KB] * (size_bytes // (100 * KB)))
        return URN + called

    def overrun(self, times: float = 2.0) -> None:
        """Write that many quotas of what nobody will miss."""
        for number in range(int(times * QUOTA_BYTES / (5 * MB))):
            self.release(f"noise/{time.monotonic_ns()}/{number}")


@pytest.fixture
def cache(site: BuildSite) -> Iterator[Overrun]:
    cache = Overrun(site)
    yield cache
    cache.close()


def counted(cache: Overrun, held_bytes: int) -> None:
    """Wait until upkeep has marked what is pinned."""
    deadline = time.monotonic() + 20
    while (millpond("pins", cache.repo, "--json").json["held_bytes"] or 0) < held_bytes:
        assert time.monotonic() < deadline, millpond("pins", cache.repo).output
        time.sleep(0.1)


def test_what_is_pinned_outlives_any_number_of_pushes_and_what_is_not_does_not(cache: Overrun) -> None:
    release, other = cache.release("release/base/1"), cache.release("other/base/1")
    said = millpond("pin", cache.repo, "release/*")
    assert said.status == 0
    assert "pinned release/*: 1 name now" in said.output
    counted(cache, 5 * MB)
    cache.overrun()
    assert cache.is_whole(release)
    assert not cache.fetch(other)
    later = cache.release("release/base/2")  # a match of the future
    counted(cache, 10 * MB)
    cache.overrun()
    assert cache.is_whole(release)
    assert cache.is_whole(later)


def test_what_is_unpinned_gives_way(cache: Overrun) -> None:
    release = cache.release("release/base/1")
    assert millpond("pin", cache.repo, "release/*").status == 0
    counted(cache, 5 * MB)
    assert millpond("unpin", cache.repo, "release/*").output == "unpinned release/*\n"
    assert millpond("unpin", cache.repo, "release/*").status == 1
    time.sleep(1)
    cache.overrun()
    assert not cache.fetch(release)


def test_pins_are_kept_by_a_cache_that_was_restarted_and_lost_its_table_of_uses(cache: Overrun) -> None:
    release = cache.release("release/base/1")
    assert millpond("pin", cache.repo, "release/*").status == 0
    cache.server.stop()
    for file in (cache.repo / "uses").iterdir():
        file.unlink()
    server = cache.start()
    again = Artifacts(server.port)
    again.made = cache.made
    for number in range(16):
        again.push(f"noise {number}", [100 * KB] * 50)
    assert again.is_whole(release)
    again.close()


def test_a_pin_that_does_not_fit_is_refused_and_says_by_how_much(cache: Overrun) -> None:
    cache.release("release/base/1", 15 * MB)
    cache.release("release/base/2", 15 * MB)
    said = millpond("pin", cache.repo, "release/*")
    assert said.status == 2
    assert "pins would hold 30" in said.errors
    assert "10" in said.errors.partition("more than")[0]
    assert "--pin-share" in said.errors
    assert millpond("pin", cache.repo, "release/base/2").status == 0
    assert millpond("pins", cache.repo, "--json").json["pins"][0]["pattern"] == "release/base/2"


def test_the_share_is_what_the_server_was_given(site: BuildSite) -> None:
    cache = Overrun(site, "--pin-share", "80%")
    cache.release("release/base/1", 15 * MB)
    cache.release("release/base/2", 10 * MB)
    assert millpond("pin", cache.repo, "release/*").status == 0
    counted(cache, 25 * MB)
    cache.close()


def test_the_newest_of_an_element_are_kept(cache: Overrun) -> None:
    assert millpond("pin", cache.repo, "release/*", "--newest", "1").status == 0
    old = cache.release("release/base/1", 3 * MB)
    new = cache.release("release/base/2", 3 * MB)
    counted(cache, 3 * MB)
    time.sleep(1)
    said = millpond("evict", cache.repo, "--everything", "--yes")
    assert said.status == 0, said
    assert cache.is_whole(new)
    assert not cache.fetch(old)


def test_a_pin_that_was_made_while_no_server_ran_counts(cache: Overrun) -> None:
    release, other = cache.release("release/base/1"), cache.release("other/base/1")
    cache.server.stop()
    assert millpond("pin", cache.repo, "release/*").status == 0
    assert millpond("evict", cache.repo, "--everything", "--yes").status == 0
    server = cache.start()
    again = Artifacts(server.port)
    again.made = cache.made
    assert again.is_whole(release)
    assert not again.fetch(other)
    again.close()


def test_evicting_by_order_gives_pins_the_share_that_the_server_gave_them(site: BuildSite) -> None:
    cache = Overrun(site, "--pin-share", "70%")
    pinned = [cache.release(f"release/base/{number}") for number in range(5)]  # 25 MB of 40
    assert millpond("pin", cache.repo, "release/*").status == 0
    assert millpond("evict", cache.repo, "--everything", "--yes").status == 0
    assert all(map(cache.is_whole, pinned))
    cache.server.stop()
    assert millpond("evict", cache.repo, "--everything", "--yes").status == 0
    cache.server = cache.start()
    again = Artifacts(cache.server.port)
    again.made = cache.made
    assert all(map(again.is_whole, pinned))
    again.close()
    cache.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["*", "--until", "2001-01-01"], "is over"),
        (["*", "--until", "soon"], "not a date"),
        (["*", "--newest", "0"], "0 is not in the range"),
        ([""], "not a pattern"),
    ],
)
def test_what_cannot_be_pinned_is_said_in_a_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    said = millpond("pin", tmp_path, *arguments)
    assert said.status == 2
    assert words in said.errors


def test_where_there_is_no_repository_there_are_no_pins(tmp_path: Path) -> None:
    for command in (["pin", tmp_path, "*"], ["unpin", tmp_path, "*"], ["pins", tmp_path]):
        said = millpond(*command)
        assert said.status == 2
        assert "no repository" in said.errors
