"""``millpond names`` beside running servers, and what becomes of a repository whose names are damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system.build_site import BuildSite
from system.millpond_command import SECONDS, millpond
from system.server_process import Millpond
from system.small_cache import Artifacts

URN = "urn:fdc:buildstream.build:2020:source:"  # whose blobs may be anything
PAGE_BYTES = 4096


class Cache(Artifacts):
    def __init__(self, site: BuildSite) -> None:
        self.site, self.repo = site, site.place("repo")
        self.server = self.start()
        super().__init__(self.server.port)

    def start(self) -> Millpond:
        return self.site.server("--enable-push", "--quota", "100M", repo=self.repo)

    def restart(self) -> Artifacts:
        """The same cache, served again."""
        again = Artifacts(self.start().port)
        again.made = self.made
        return again

    def push_named(self, *called: str) -> None:
        for one in called:
            self.push(URN + one, [1000, 2000])


@pytest.fixture
def cache(site: BuildSite) -> Iterator[Cache]:
    cache = Cache(site)
    yield cache
    cache.close()


def copied(repo: Path) -> None:
    """Wait for the first copy of the names, which has what was pushed before it was begun."""
    deadline = time.monotonic() + 30
    while not list((repo / "backup").glob("names-*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def refusal(repo: Path) -> str:
    """What a server says that does not start."""
    command = [sys.executable, "-m", "millpond", "serve", "--listen", "127.0.0.1:0", "--enable-push", str(repo)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("opening ")]
    assert (ended.returncode, ended.stdout, len(lines)) == (2, "", 1), ended
    return lines[0]


# -- looking ------------------------------------------------------------------------------------------------------


def test_names_are_listed_and_shown_beside_a_running_server(cache: Cache) -> None:
    cache.push_named("git/1", "git/2", "tar/1")
    listed = millpond("names", "list", cache.repo)
    assert [line.split()[:4] for line in listed.output.splitlines()] == [
        ["source", one, "3", "kB"] for one in ("git/1", "git/2", "tar/1")
    ]
    assert len(millpond("names", "list", cache.repo, "git/*").output.splitlines()) == 2
    assert millpond("names", "list", cache.repo, "--namespace", "asset-directory").status == 1
    first = json.loads(millpond("names", "list", cache.repo, "git/1", "--json").output)
    assert (first["key"], first["closure_bytes"]) == (f"{URN}git/1", 3000)

    assert millpond("pin", cache.repo, "git/*").status == 0
    (shown,) = millpond("names", "show", cache.repo, "git/1", "--json").json
    assert shown["digest"] == str(cache.made[f"{URN}git/1"][0])
    assert (shown["whole"], shown["pinned_by"], shown["foreign"]) == (True, ["git/*"], False)
    assert shown["last_used_ms"] >= shown["pushed_at_ms"]
    time.sleep(0.5)
    assert cache.fetch(f"{URN}git/1")
    time.sleep(1)  # what a server notes reaches its log within a second
    (again,) = millpond("names", "show", cache.repo, "git/1", "--json").json
    assert again["last_used_ms"] > shown["last_used_ms"]
    text = millpond("names", "show", cache.repo, "git/1").output
    assert "whole      yes" in text
    assert "pinned     yes, by git/*" in text


def test_what_is_not_there_is_status_1(cache: Cache) -> None:
    cache.push_named("git/1")
    for command in ("list", "show", "remove"):
        assert millpond("names", command, cache.repo, "nothing/*").status == 1
    said = millpond("names", "remove", cache.repo, "nothing", "git/1")
    assert (said.status, said.output) == (1, "removed source git/1\n")
    assert "is called nothing" in said.errors


# -- removing -----------------------------------------------------------------------------------------------------


def test_a_removed_name_is_a_miss_at_once_and_its_content_stays(cache: Cache) -> None:
    cache.push_named("git/1", "git/2")
    assert millpond("names", "remove", cache.repo, "git/1").output == "removed source git/1\n"
    assert not cache.fetch(f"{URN}git/1")
    assert cache.is_whole(f"{URN}git/2")
    assert cache.client.find_missing(cache.made[f"{URN}git/1"]) == []


def test_what_is_purged_cannot_be_read_when_the_command_ends(cache: Cache) -> None:
    cache.push_named("secret/1", "git/1")
    shared = cache.made[f"{URN}git/1"][0]
    cache.bind(f"{URN}secret/2", [*cache.made[f"{URN}secret/1"], shared])
    said = millpond("names", "remove", "--purge", cache.repo, "secret/*")
    assert said.status == 0, said
    assert "purged 2 blobs: 3 kB were overwritten" in said.output
    assert "1 blob (1 kB) stay: other names need them" in said.output
    missing = cache.made[f"{URN}secret/1"]
    assert cache.client.find_missing([*missing, shared]) == missing
    assert cache.client.get(missing) == [5, 5]
    assert not cache.fetch(f"{URN}secret/1")
    assert cache.is_whole(f"{URN}git/1")
    assert millpond("check", "--deep", cache.repo).status == 0
    cache.push_named("secret/1")  # whoever has it may bring it back
    assert cache.is_whole(f"{URN}secret/1")


# -- restoring ----------------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    """One bit of the page that says where the newest state begins."""
    newest = max((0, PAGE_BYTES), key=lambda page: int.from_bytes(data[page + 144 : page + 152], "little"))
    return data[: newest + 144] + bytes([data[newest + 144] ^ 2]) + data[newest + 145 :]


def zeroed(data: bytes) -> bytes:
    """The page of the newest state where its tables stand."""
    newest = max((0, PAGE_BYTES), key=lambda page: int.from_bytes(data[page + 144 : page + 152], "little"))
    root = int.from_bytes(data[newest + 128 : newest + 136], "little") * PAGE_BYTES
    return data[:root] + bytes(PAGE_BYTES) + data[root + PAGE_BYTES :]


HARM: dict[str, Callable[[bytes], bytes | None]] = {
    "truncated": lambda data: data[: len(data) // 2],
    "a zeroed page": zeroed,
    "a flipped bit in a meta page": flipped,
    "missing": lambda data: None,
    "empty": lambda data: b"",
}


@pytest.fixture(scope="module")
def stopped(shared_site: BuildSite) -> Cache:
    """One that holds two names and a copy of them, and is not served any more."""
    cache = Cache(shared_site)
    cache.push_named("git/1", "git/2")
    copied(cache.repo)
    cache.close()
    cache.server.stop()
    return cache


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_damaged_names_are_refused_and_restored_from_the_copy(
    site: BuildSite, stopped: Cache, harm: Callable[[bytes], bytes | None]
) -> None:
    repo = shutil.copytree(stopped.repo, site.place("repo"))
    file = repo / "names" / "data.mdb"
    damaged = harm(file.read_bytes())
    file.unlink() if damaged is None else file.write_bytes(damaged)
    sentence = refusal(repo)
    assert sentence.endswith(f"millpond names restore {repo}")
    assert millpond("names", "list", repo).status == 2
    said = millpond("names", "restore", repo)
    assert said.status == 0, said
    assert "restored" in said.output
    again = Artifacts(site.server("--enable-push", repo=repo).port)
    again.made = dict(stopped.made)
    held = [uri for uri in stopped.made if again.is_whole(uri)]
    assert held, "the copy was made before the first push"
    again.push(f"{URN}git/3", [1000])  # and it takes pushes: numbers of segments go on
    assert again.is_whole(f"{URN}git/3")
    again.close()


def test_names_are_restored_only_by_whoever_is_alone_and_only_if_they_need_it(cache: Cache) -> None:
    cache.push_named("git/1")
    copied(cache.repo)
    said = millpond("names", "restore", cache.repo)
    assert said.status == 2
    assert "stop its servers" in said.errors
    cache.server.stop()
    assert "are sound" in millpond("names", "restore", cache.repo).errors
    assert "it holds 1" in millpond("names", "restore", cache.repo, "--from", "9").errors
    assert "leave one out" in millpond("names", "restore", cache.repo, "--from", "1", "--empty").errors
    assert millpond("names", "restore", cache.repo, "--from", "1").status == 0
    assert (cache.repo / "names.damaged" / "data.mdb").exists()


def test_without_a_copy_one_can_begin_without_names(cache: Cache) -> None:
    cache.push_named("git/1")
    copied(cache.repo)
    cache.server.stop()
    shutil.rmtree(cache.repo / "names")
    shutil.rmtree(cache.repo / "backup")
    assert "millpond names restore" in refusal(cache.repo)
    assert "--empty" in millpond("names", "restore", cache.repo).errors
    assert millpond("names", "restore", cache.repo, "--empty").status == 0
    again = cache.restart()
    assert again.whole() == []
    assert again.client.find_missing(cache.made[f"{URN}git/1"]) == []  # content stays
    again.bind(f"{URN}git/1", cache.made[f"{URN}git/1"])
    assert again.is_whole(f"{URN}git/1")
    again.close()


def test_where_there_is_no_repository_there_are_no_names(tmp_path: Path) -> None:
    for command in (["list"], ["show", "x"], ["remove", "x"], ["restore"]):
        said = millpond("names", command[0], tmp_path, *command[1:])
        assert said.status == 2
        assert "no repository" in said.errors
    assert not list(tmp_path.iterdir())
