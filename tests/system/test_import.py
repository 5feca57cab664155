"""Moving in from the real thing: stores that real servers have written, with damage among them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contract.rpc_client import Client, message_of
from google.protobuf.timestamp_pb2 import Timestamp
from system.bst_client import Remote
from system.build_site import BuildSite
from system.millpond_command import millpond
from system.old_clients import ARTIFACTS, BASE, Made, OldClient, Release, despite_hangs, expected
from system.old_servers import OldServer
from system.project_maker import GREETING
from system.server_process import Millpond
from system.small_cache import MB, Artifacts, taken_bytes
from unit.importing.old_stores import NOW_S, Bst1
from unit.store.repositories import flip, noise

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond.core.digest import Digest
from millpond.core.names import REFERENCE_URN

CLASSIC, SNAPSHOT = Release("1.6.9"), Release("1.93.4")
SECONDS = 60
LARGE = noise(3_000_000, "large")


def imported(kind: str, old: Path, repo: Path, *options: str) -> dict[str, Any]:
    said = millpond("import", kind, "--json", *options, old, repo)
    assert said.errors == "", said
    document: dict[str, Any] = said.json
    return {"status": said.status, "left_for": document["left"]["by_reason"], **document}


def refs(old: Path) -> dict[str, Path]:
    heads = old / "cas" / "refs" / "heads"
    return {str(path.relative_to(heads)): path for path in heads.rglob("*") if path.is_file()}


def root_of(ref: Path) -> re_pb2.Digest:
    return re_pb2.Digest.FromString(ref.read_bytes())


def object_path(old: Path, digest: re_pb2.Digest) -> Path:
    return old / "cas" / "objects" / digest.hash[:2] / digest.hash[2:]


def directories(old: Path, root: re_pb2.Digest) -> Iterator[re_pb2.Directory]:
    directory = re_pb2.Directory.FromString(object_path(old, root).read_bytes())
    yield directory
    for node in directory.directories:
        yield from directories(old, node.digest)


@contextmanager
def client_of(server: Millpond) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client


def own_content(name: str) -> bytes:
    """Of a file that no other project has."""
    return f"only {name} has this\n".encode() * 20


def built(site: BuildSite, client: OldClient, name: str, *, demanding: bool = False) -> Made:
    project = client.release.project(site.place("project"), name, demanding=demanding)
    (project.files(BASE) / "own").write_bytes(own_content(name))
    made = client.make(project)
    assert made.outcome.pushes == ARTIFACTS, made.outcome.output
    return made


def old_server(site: BuildSite, release: Release) -> OldServer:
    return site._keep(OldServer(release, site.place("old"), site.place("log")))


def assert_all_is_served(server: Millpond, old: Path) -> int:
    """Every ref of an old store and every blob below it, byte for byte; how many blobs."""
    compared = 0
    with client_of(server) as client:
        for name, path in refs(old).items():
            answer = client.call("FetchDirectory", uris=[REFERENCE_URN + name])
            assert answer.root_directory_digest == root_of(path)
            for directory in directories(old, root_of(path)):
                for node in (*directory.files, *directory.directories):
                    digest = Digest.parse(node.digest.hash, node.digest.size_bytes)
                    assert client.read(client.read_name(digest)) == object_path(old, node.digest).read_bytes()
                    compared += 1
    return compared


@pytest.mark.parametrize(
    ("release", "puller"),
    [("1.6.9", "1.6.9"), ("1.6.9", "1.4.3"), ("1.4.3", "1.6.9"), ("1.2.8", "1.2.8"), ("1.1.7", "1.1.7")],
)
@despite_hangs
def test_a_team_of_buildstream_1_moves_in_with_all_it_has(site: BuildSite, release: str, puller: str) -> None:
    old = old_server(site, Release(release))
    client = site.old_client(Release(release), artifacts=[Remote(url=old.url, push=True)])
    made = built(site, client, "moving", demanding=release == "1.6.9")
    old.stop()
    repo = site.place("repo")
    facts = imported("bst1", old.repo, repo)
    assert (facts["status"], facts["imported"]["names"]) == (0, len(refs(old.repo)))
    server = site.server(repo=repo)
    assert assert_all_is_served(server, old.repo) > (500 if release == "1.6.9" else 5)
    newcomer = site.old_client(Release(puller), artifacts=[Remote(url=server.url)])
    assert newcomer.bring(made).pulls == ARTIFACTS
    assert newcomer.tree(made) == expected(made.project)


def test_what_is_damaged_in_a_real_store_stays_there_and_is_built_again(site: BuildSite) -> None:
    old = old_server(site, CLASSIC)
    client = site.old_client(CLASSIC, artifacts=[Remote(url=old.url, push=True)])
    sound, flipped, cut, lost = [built(site, client, name) for name in ("sound", "flipped", "cut", "lost")]
    old.stop()
    paths = {
        made.project.name: object_path(old.repo, message_of(Digest.of(own_content(made.project.name))))
        for made in (flipped, cut, lost)
    }
    for path in paths.values():
        path.chmod(0o644)
    flip(paths["flipped"], 30)
    os.truncate(paths["cut"], 5)
    paths["lost"].unlink()
    (old.repo / "cas/refs/heads/empty").write_bytes(b"")
    facts = imported("bst1", old.repo, repo := site.place("repo"))
    assert facts["status"] == 1
    left = {each["path"].split("/")[3]: each["reason"] for each in facts["left"]["each"]}
    assert left == {"flipped": "damaged", "cut": "damaged", "lost": "incomplete", "empty": "garbage"}
    server = site.server("--enable-push", repo=repo)
    client.wipe()
    client.configure(artifacts=[Remote(url=server.url, push=True)])
    assert client.bring(sound).pulls == ARTIFACTS
    again = client.make(flipped.project)  # what is not there is built and pushed, which heals it
    assert again.outcome.pushes > 0
    client.wipe()
    assert client.bring(flipped).pulls == ARTIFACTS
    assert client.tree(flipped) == expected(flipped.project)


@pytest.mark.parametrize(("kind", "release"), [("bst1", CLASSIC), ("bst19", SNAPSHOT)], ids=["1.6.9", "1.93.4"])
def test_a_rehearsal_of_a_real_store_says_what_then_comes(site: BuildSite, kind: str, release: Release) -> None:
    old = old_server(site, release)
    remote = Remote(url=old.url, push=True)
    client = site.old_client(release, artifacts=[remote], **({} if release == CLASSIC else {"sources": [remote]}))
    _, flipped = [built(site, client, name) for name in ("sound", "flipped")]
    path = object_path(old.repo, message_of(Digest.of(own_content(flipped.project.name))))
    path.chmod(0o644)
    flip(path, 30)
    repo = site.place("repo")
    rehearsed = imported(kind, old.repo, repo, "--dry-run")
    assert not repo.exists()
    assert (rehearsed["status"], rehearsed["dry_run"]) == (1, True)
    assert rehearsed["left_for"]["damaged"] > 0
    assert {**rehearsed, "dry_run": False} == imported(kind, old.repo, repo)


def test_a_second_run_brings_what_came_since_while_both_servers_run(site: BuildSite) -> None:
    old = old_server(site, CLASSIC)
    client = site.old_client(CLASSIC, artifacts=[Remote(url=old.url, push=True)])
    first = built(site, client, "first")
    server = site.server("--enable-push")
    repo = Path(server.command[-1])
    facts = imported("bst1", old.repo, repo)
    assert facts["imported"]["names"] == len(refs(old.repo))
    before = len(refs(old.repo))
    second = built(site, client, "second")
    facts = imported("bst1", old.repo, repo)
    assert (facts["imported"]["names"], facts["here_before"]) == (len(refs(old.repo)) - before, before)
    client.wipe()
    client.configure(artifacts=[Remote(url=server.url)])
    for made in (first, second):
        assert client.bring(made).pulls == ARTIFACTS
        assert client.tree(made) == expected(made.project)


def test_the_time_of_last_use_is_that_of_the_old_server(site: BuildSite) -> None:
    """A pull there makes a ref younger, and that is what counts here."""
    old = old_server(site, CLASSIC)
    client = site.old_client(CLASSIC, artifacts=[Remote(url=old.url, push=True)])
    made = built(site, client, "used")
    for age, path in enumerate(refs(old.repo).values()):
        os.utime(path, (1_600_000_000 - age, 1_600_000_000 - age))
    client.wipe()
    begun = time.time()
    client.bring(made)
    old.stop()
    imported("bst1", old.repo, repo := site.place("repo"))
    used = {one["name"]: one["last_used_ms"] for one in millpond("names", "show", "--json", repo, "*").json}
    assert used == {name: path.stat().st_mtime_ns // 1_000_000 for name, path in refs(old.repo).items()}
    assert sum(time_ms >= (begun - 1) * 1000 for time_ms in used.values()) >= ARTIFACTS


def test_a_store_of_casd_moves_in_with_qualifiers_and_expiry(site: BuildSite) -> None:
    casd = site.casd()
    repo = site.place("repo")
    small, broken = noise(5000, "small"), noise(5000, "broken")
    with Client(f"127.0.0.1:{casd.port}") as client:
        digests = [*client.put(small, broken, b""), Digest.of(LARGE)]
        client.upload(LARGE)
        file = [re_pb2.FileNode(name="large", digest=message_of(digests[3]))]
        (root,) = client.put(re_pb2.Directory(files=file).SerializeToString())
        qualifiers = [asset_pb2.Qualifier(name="b", value="2"), asset_pb2.Qualifier(name="a", value="1")]
        later = Timestamp(seconds=int(time.time()) + 86_400)
        blobs = message_of(digests[0])
        client.call("PushBlob", uris=["urn:small", "urn:other"], blob_digest=blobs, qualifiers=qualifiers)
        client.call("PushBlob", uris=["urn:ends"], blob_digest=blobs, expire_at=later)
        client.call("PushBlob", uris=["urn:broken"], blob_digest=message_of(digests[1]))
        client.call("PushDirectory", uris=["urn:tree"], root_directory_digest=message_of(root))
    casd_directory = Path(casd.command[-1])
    path = object_path(casd_directory, message_of(digests[1]))
    path.chmod(0o644)
    flip(path, 4000)
    facts = imported("casd", casd_directory, repo)
    assert (facts["imported"]["names"], facts["left_for"]) == (4, {"damaged": 1})
    assert facts["left"]["each"][0]["uri"] == "urn:broken"
    with client_of(site.server(repo=repo)) as client:
        for uri in ("urn:small", "urn:other"):
            assert client.call("FetchBlob", uris=[uri], qualifiers=qualifiers[::-1]).blob_digest == blobs
        assert client.call("FetchBlob", uris=["urn:ends"]).expires_at.seconds == later.seconds
        assert client.call("FetchDirectory", uris=["urn:tree"]).root_directory_digest == message_of(root)
        assert client.read(client.read_name(digests[3])) == LARGE
        assert client.get([digests[0]]) == [small]


def test_artifacts_that_buildstream_2_pushed_to_casd_move_in(site: BuildSite) -> None:
    casd = site.casd()
    client = site.client(artifacts=[Remote(url=casd.url, push=True)], sources=[Remote(url=casd.url, push=True)])
    project = site.project()
    artifact = client.build(project, GREETING)
    repo = site.place("repo")
    facts = imported("casd", Path(casd.command[-1]), repo)
    assert (facts["status"], facts["left_for"]) == (0, {})
    casd.stop()
    server = site.server(repo=repo)
    client.wipe()
    client.configure(artifacts=[Remote(url=server.url)], sources=[Remote(url=server.url)])
    place = client.fetch(artifact)
    for path in (one for one in project.files(GREETING).rglob("*") if one.is_file()):
        assert (place / path.relative_to(project.files(GREETING))).read_bytes() == path.read_bytes()
    assert millpond("check", "--deep", repo).status == 0


@pytest.mark.parametrize(
    "release", [SNAPSHOT, Release("1.91.3"), Release("1.93.6")], ids=lambda release: release.number
)
def test_a_snapshot_team_moves_in_with_messages_as_they_were(site: BuildSite, release: Release) -> None:
    old = old_server(site, release)
    remote = Remote(url=old.url, push=True)
    client = site.old_client(release, artifacts=[remote], sources=[remote])
    made = built(site, client, "snapshot")
    facts = imported("bst19", old.repo, repo := site.place("repo"))
    assert (facts["status"], facts["left_for"]) == (0, {})
    assert facts["imported"]["names"] >= ARTIFACTS
    old.stop()
    server = site.server(repo=repo)
    client.wipe()
    client.configure(artifacts=[Remote(url=server.url)], sources=[Remote(url=server.url)])
    assert client.bring(made).pulls == ARTIFACTS
    assert client.tree(made) == expected(made.project)


def test_what_moves_into_a_cache_that_is_nearly_full_takes_nothing_from_it(site: BuildSite) -> None:
    """Nothing is evicted for what moves in, however much of it there is, while upkeep watches and clients pull."""
    server = site.server("--enable-push", "--quota", "24M", "--reserve", "0")
    pushed = Artifacts(server.port)
    for number in range(4):
        pushed.push(f"urn:pushed:{number}", [3 * MB, 50_000])
    old = Bst1(site.place("old"))
    for number in range(12):
        old.name(f"p/e/{number}", old.tree(f"{number}", [MB]), used_s=NOW_S - number)
    facts = imported("bst1", old.root, Path(server.command[-1]))
    assert 0 < facts["imported"]["names"] < 12
    assert (facts["status"], facts["left_for"]) == (1, {"no-room": 12 - facts["imported"]["names"]})
    assert pushed.whole() == [f"urn:pushed:{number}" for number in range(4)]
    # What clients bring later has what moved in go, which was used longest ago.
    for number in range(4, 6):
        pushed.push(f"urn:pushed:{number}", [3 * MB])
    assert pushed.whole() == [f"urn:pushed:{number}" for number in range(6)]
    pushed.close()


NAMES = 800


@pytest.fixture
def large_store(site: BuildSite) -> Bst1:
    """One that takes a while."""
    old = Bst1(site.place("old"))
    for number in range(NAMES):
        old.name(f"p/e/{number}", old.tree(f"{number}", range(3000, 3010)), used_s=NOW_S - number)
    return old


@contextmanager
def half_way(old: Bst1, repo: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """An import of which some is there and some is not."""
    command = [sys.executable, "-m", "millpond", "import", "bst1", *options, old.root, repo]
    # Whoever runs these tests in the background of a shell has SIGINT ignored, and so would the import.
    with subprocess.Popen(
        ["env", "--default-signal=INT", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        deadline = time.monotonic() + SECONDS
        while taken_bytes(repo / "segments") < 4 * MB and time.monotonic() < deadline:
            time.sleep(0.001)
        yield running


def test_an_import_that_is_killed_goes_on_where_it_was(site: BuildSite, large_store: Bst1) -> None:
    repo = site.place("repo")
    with half_way(large_store, repo) as running:
        running.kill()
    assert running.returncode == -signal.SIGKILL
    facts = imported("bst1", large_store.root, repo)
    assert facts["here_before"] > 0
    assert facts["imported"]["names"] > 0
    assert facts["here_before"] + facts["imported"]["names"] == NAMES
    assert millpond("check", "--deep", repo).status == 0


def test_an_import_that_is_interrupted_says_what_it_did(site: BuildSite, large_store: Bst1) -> None:
    repo = site.place("repo")
    with half_way(large_store, repo, "--json") as running:
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=SECONDS)
    assert (running.returncode, errors.strip()) == (130, b"")
    facts = json.loads(output)
    assert not facts["ended"]
    assert 0 < facts["imported"]["names"] < NAMES
    assert imported("bst1", large_store.root, repo)["here_before"] == facts["imported"]["names"]
