"""One bit flipped in every kind of place under a REPO: never a wrong byte, never a traceback.

What was damaged is right, or a miss, or refused in a sentence that says what to do; everything else is untouched, and
the next upload heals it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from system.build_site import BuildSite
from system.server_process import Millpond
from system.small_cache import KB, MB, Artifacts
from unit.store.repositories import flip, noise

from millpond.core.digest import Digest
from millpond.core.names import Name, Namespace

RECORD = {"magic": 1, "size": 8, "own offset": 16, "digest": 24, "header checksum": 57, "data": 64 + 150 * KB}
"""Where in a record each of its parts lies."""
OWN_SEGMENT = ["segment header", *RECORD, "footer entry", "footer end"]
"""Artifacts of one blob of 300 KB in a segment of its own, each named after what is to be damaged of it."""
STREAMED = {"large data": 64 + 2 * MB, "large digest": 30, "checksum table": 64 + 4 * MB + 9}
"""The same of one blob of 4 MB, which is read and checked piece by piece."""
QUOTA = "64M"


@dataclass(frozen=True)
class Pushed:
    """A REPO that no server has open, and what was pushed to it."""

    repo: Path
    made: dict[str, list[Digest]]

    def copy(self, to: Path) -> Pushed:
        shutil.copytree(self.repo, to)
        return Pushed(to, dict(self.made))

    def record(self, uri: str) -> tuple[Path, int]:
        """The segment and the offset of the record of an artifact's first blob."""
        wanted = self.made[uri][0].key[1:]
        for segment in sorted((self.repo / "segments").iterdir()):
            at = segment.read_bytes().find(wanted)
            if at >= 0:
                return segment, at - 24
        raise AssertionError(f"{uri} lies nowhere")

    def flip_everywhere(self, file: str, wanted: bytes, ahead: int) -> None:
        """Flip a bit so far ahead of each occurrence of some bytes; LMDB leaves old copies about."""
        path = self.repo / file
        content, at, found = path.read_bytes(), -1, 0
        while (at := content.find(wanted, at + 1)) >= 0:
            flip(path, at + ahead, bit=2)
            found += 1
        assert found, f"nothing to damage in {file}"


@pytest.fixture(scope="module")
def pushed(shared_site: BuildSite) -> Pushed:
    repo = shared_site.place("repo")
    server = shared_site.server("--enable-push", "--quota", QUOTA, repo=repo)
    artifacts = Artifacts(server.port)
    for uri in OWN_SEGMENT:
        artifacts.push(uri, [300 * KB])
    for uri in STREAMED:
        artifacts.push(uri, [4 * MB])
    artifacts.push("neighbours", [900] * 40)
    artifacts.push("small", [20 * KB] * 5)
    artifacts.close()
    await_copy_of_names(repo)
    server.stop()
    return Pushed(repo, artifacts.made)


def await_copy_of_names(repo: Path) -> None:
    """Upkeep makes one as soon as there is a name."""
    deadline = time.monotonic() + 30
    while not any((repo / "backup").iterdir()):
        assert time.monotonic() < deadline, "names were not copied"
        time.sleep(0.05)


@pytest.fixture
def damaged(pushed: Pushed, site: BuildSite) -> Pushed:
    return pushed.copy(site.place("repo"))


def begin(site: BuildSite, repo: Path) -> Millpond:
    return site.server("--enable-push", "--quota", QUOTA, repo=repo)


def check(server: Millpond, damaged: Pushed, *, touched: set[str]) -> None:
    """What was not touched is whole; what was is right or missing; a push heals it; nobody saw a traceback."""
    artifacts = Artifacts(server.port)
    artifacts.made = dict(damaged.made)
    for uri, digests in damaged.made.items():
        for number, digest in enumerate(digests):
            data = read(artifacts, digest)
            assert data in (None, noise(digest.size_bytes, f"{uri}/{number}")), f"{uri} came with wrong bytes"
            assert data is not None or uri in touched, f"{uri} was lost"
        assert uri in touched or artifacts.fetch(uri), f"the name {uri} was lost"
    for uri, digests in damaged.made.items():
        artifacts.push(uri, [digest.size_bytes for digest in digests])
        assert artifacts.is_whole(uri), f"{uri} does not heal"
    artifacts.close()
    server.stop()
    assert "Traceback" not in server.stderr
    assert "incident" not in server.stderr


def read(artifacts: Artifacts, digest: Digest) -> bytes | None:
    try:
        return artifacts.client.read(artifacts.client.read_name(digest))
    except grpc.RpcError as why:
        if why.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


# -- segments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["kept", "lost"])
def test_a_bit_in_any_part_of_a_segment_costs_no_more_than_its_blob(
    site: BuildSite, damaged: Pushed, index: str
) -> None:
    for part, ahead in {**RECORD, **STREAMED}.items():
        segment, at = damaged.record(part)
        flip(segment, at + ahead, bit=1)
    flip(damaged.record("segment header")[0], 30)
    for part, from_end in (("footer entry", 48 + 20), ("footer end", 10)):
        segment, _ = damaged.record(part)
        flip(segment, segment.stat().st_size - from_end)
    if index == "lost":
        (damaged.repo / "index" / "data.mdb").unlink()
    check(begin(site, damaged.repo), damaged, touched={*OWN_SEGMENT, *STREAMED})


def test_a_bit_in_a_shared_segment_costs_no_neighbour_even_when_the_index_is_lost(
    site: BuildSite, damaged: Pushed
) -> None:
    segment, at = damaged.record("neighbours")
    flip(segment, at + 64 + 450)
    (damaged.repo / "index" / "data.mdb").unlink()
    server = begin(site, damaged.repo)
    artifacts = Artifacts(server.port)
    held = [read(artifacts, digest) is not None for digest in damaged.made["neighbours"]]
    assert held == [False] + [True] * 39
    artifacts.close()
    check(server, damaged, touched={"neighbours"})


# -- databases ----------------------------------------------------------------------------------------------------


def entry(damaged: Pushed) -> None:
    """Where a blob lies, says the index, in the wrong place."""
    damaged.flip_everywhere("index/data.mdb", damaged.made["small"][0].key, 33 + 5)


def pages_of(file: str) -> Callable[[Pushed], None]:
    def harm(damaged: Pushed) -> None:
        """The header of every other page but the first two."""
        path = damaged.repo / file
        for page in range(2, path.stat().st_size // 4096, 2):
            flip(path, 4096 * page + 12, bit=3)

    return harm


def meta_of(file: str, *, both: bool) -> Callable[[Pushed], None]:
    def harm(damaged: Pushed) -> None:
        """Where the tables begin."""
        for page in range(2) if both else [0]:
            flip(damaged.repo / file, 4096 * page + 16 + 24 + 48 + 40, bit=1)

    return harm


def touch_logs(damaged: Pushed) -> None:
    for log in (damaged.repo / "touch").iterdir():
        flip(log, 20)


def refusals(damaged: Pushed) -> None:
    for byte in range(8):
        flip(damaged.repo / "refusals", byte, bit=byte)


UNNAMED: dict[str, Callable[[Pushed], None]] = {
    "index entry": entry,
    "index pages": pages_of("index/data.mdb"),
    "index meta page": meta_of("index/data.mdb", both=False),
    "index meta pages": meta_of("index/data.mdb", both=True),
    "uses pages": pages_of("uses/data.mdb"),
    "uses meta pages": meta_of("uses/data.mdb", both=True),
    "touch logs": touch_logs,
    "refusals": refusals,
}


@pytest.mark.parametrize("what", UNNAMED)
def test_a_bit_in_what_may_be_lost_loses_nothing_else(site: BuildSite, damaged: Pushed, what: str) -> None:
    UNNAMED[what](damaged)
    # A page that LMDB takes for a sound one may hide any of its rows: a miss, like an entry that points elsewhere.
    touched = {"index entry": {"small"}, "index pages": set(damaged.made)}.get(what, set())
    check(begin(site, damaged.repo), damaged, touched=touched)


def test_a_bit_in_a_names_value_is_a_name_that_is_not_bound(site: BuildSite, damaged: Pushed) -> None:
    row = Name("", Namespace.ASSET_BLOB, "small").row
    damaged.flip_everywhere("names/data.mdb", row, 32 + 30)
    server = begin(site, damaged.repo)
    artifacts = Artifacts(server.port)
    assert not artifacts.fetch("small")
    artifacts.close()
    check(server, damaged, touched={"small"})


@pytest.mark.parametrize(
    "harm",
    [pages_of("names/data.mdb"), meta_of("names/data.mdb", both=True)],
    ids=["names pages", "names meta pages"],
)
def test_damaged_names_are_refused_in_a_sentence_and_restored_from_their_copy(
    site: BuildSite, damaged: Pushed, harm: Callable[[Pushed], None]
) -> None:
    harm(damaged)
    said = refusal_of(damaged.repo)
    assert "millpond names restore" in said
    subprocess.run([sys.executable, "-m", "millpond", "names", "restore", damaged.repo], check=True)
    # A copy is made as names come, so what was pushed last may be missing from it.
    check(begin(site, damaged.repo), damaged, touched=set(damaged.made))


@pytest.mark.parametrize("byte", [0, 5, 12])
def test_a_damaged_marker_is_refused_in_a_sentence_or_means_what_it_says(
    site: BuildSite, damaged: Pushed, byte: int
) -> None:
    flip(damaged.repo / "millpond.json", byte, bit=0)
    said = refusal_of(damaged.repo)
    assert "millpond.json" in said


def refusal_of(repo: Path) -> str:
    """What a server says that does not start."""
    command = [sys.executable, "-m", "millpond", "serve", "--listen", "127.0.0.1:0", "--quota", QUOTA, repo]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 2, outcome
    assert "Traceback" not in outcome.stderr
    return outcome.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[BuildSite]:
    site = BuildSite(tmp_path)
    yield site
    site.close()


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildSite]:
    site = BuildSite(tmp_path_factory.mktemp("shared"))
    yield site
    site.close()
