"""Remote assets: ``build.bazel.remote.asset.v1`` Fetch and Push."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, message_of, refused
from google.protobuf.timestamp_pb2 import Timestamp

from millpond._protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as ra_pb2
from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2
from millpond.core.digest import EMPTY, Digest
from millpond.services.closure import ARTIFACT_URN

ABSENT = Digest.of(b"a blob that nobody ever brings")
BOTH = pytest.mark.parametrize("kind", ["Blob", "Directory"])


def uri() -> str:
    return f"urn:test:{uuid4()}"


class Assets:
    """Pushes and fetches of one kind: ``Blob`` or ``Directory``."""

    def __init__(self, client: Client, kind: str) -> None:
        self._client = client
        self._kind = kind
        self._field = {"Blob": "blob_digest", "Directory": "root_directory_digest"}[kind]

    def push(self, *uris: str, digest: Digest, **fields: Any) -> None:
        self._client.call(f"Push{self._kind}", uris=uris, **{self._field: message_of(digest)}, **fields)

    def fetch(self, *uris: str, **fields: Any) -> Any:
        return self._client.call(f"Fetch{self._kind}", uris=uris, **fields)

    def fetched(self, *uris: str, **fields: Any) -> Digest:
        answer = self.fetch(*uris, **fields)
        assert answer.status.code == 0
        assert answer.digest_function == re_pb2.DigestFunction.SHA256
        digest = getattr(answer, self._field)
        return Digest.parse(digest.hash, digest.size_bytes)


@pytest.fixture
def new(client: Client) -> Callable[[], Digest]:
    """A blob that is an empty-looking Directory as well, and unlike all others."""

    def store() -> Digest:
        directory = re_pb2.Directory()
        directory.symlinks.add(name="salt", target=str(uuid4()))
        return client.put(directory.SerializeToString())[0]

    return store


@pytest.fixture
def assets(client: Client, kind: str) -> Assets:
    return Assets(client, kind)


def at(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(int(seconds * 1000))
    return stamp


# -- Fetch ------------------------------------------------------------------------------------------------------------


@pytest.mark.row("Asset Fetch")
@BOTH
def test_what_was_pushed_is_fetched_with_the_uri_that_matched(assets: Assets, new: Callable[[], Digest]) -> None:
    one, two, digest = uri(), uri(), new()
    assets.push(one, two, digest=digest)
    assert assets.fetched(one) == assets.fetched(two) == digest
    assert assets.fetch(uri(), two, one).uri == two
    assert assets.fetch(uri(), one, uri()).uri == one
    assets.push(one, digest=(again := new()))
    assert (assets.fetched(one), assets.fetched(two)) == (again, digest)


@pytest.mark.row("Asset Fetch")
@BOTH
def test_a_miss_is_the_status_of_the_call(assets: Assets) -> None:
    with refused("NOT_FOUND"):
        assets.fetch(uri(), uri())


@pytest.mark.row("Asset Fetch")
def test_blobs_and_directories_are_separate_name_spaces(client: Client, new: Callable[[], Digest]) -> None:
    blobs, directories = Assets(client, "Blob"), Assets(client, "Directory")
    name, blob, directory = uri(), new(), new()
    blobs.push(name, digest=blob)
    with refused("NOT_FOUND"):
        directories.fetch(name)
    directories.push(name, digest=directory)
    assert (blobs.fetched(name), directories.fetched(name)) == (blob, directory)


@pytest.mark.row("Asset Fetch")
@BOTH
def test_instances_have_names_of_their_own(
    server: LoopbackServer, assets: Assets, kind: str, new: Callable[[], Digest]
) -> None:
    name, here, there = uri(), new(), new()
    assets.push(name, digest=here)
    with Client(server.target, instance=INSTANCE) as client:
        other = Assets(client, kind)
        with refused("NOT_FOUND"):
            other.fetch(name)
        other.push(name, digest=there)
        assert (assets.fetched(name), other.fetched(name)) == (here, there)


@pytest.mark.row("Asset Fetch")
@BOTH
def test_all_qualifiers_must_match_in_any_order(assets: Assets, new: Callable[[], Digest]) -> None:
    name, digest, plain = uri(), new(), new()
    qualifiers = [{"name": f"q{n}", "value": f"v{n}"} for n in range(3)]
    assets.push(name, digest=digest, qualifiers=qualifiers)
    for order in itertools.permutations(qualifiers):
        assert assets.fetched(name, qualifiers=order) == digest
    for others in ([], qualifiers[:2], [*qualifiers, {"name": "q", "value": "v"}], [{"name": "q0", "value": "v1"}]):
        with refused("NOT_FOUND"):
            assets.fetch(name, qualifiers=others)
    assets.push(name, digest=plain)
    assert (assets.fetched(name), assets.fetched(name, qualifiers=qualifiers)) == (plain, digest)


@pytest.mark.row("Asset Fetch")
@BOTH
def test_qualifiers_cannot_be_made_to_look_like_others(assets: Assets, new: Callable[[], Digest]) -> None:
    name = uri()
    assets.push(name, digest=new(), qualifiers=[{"name": "a", "value": "b=c"}])
    for lookalike in ([{"name": "a=b", "value": "c"}], [{"name": "a", "value": "b"}, {"name": "c", "value": ""}]):
        with refused("NOT_FOUND"):
            assets.fetch(name, qualifiers=lookalike)


@pytest.mark.row("Asset Fetch")
@BOTH
def test_content_older_than_what_is_accepted_is_a_miss(assets: Assets, new: Callable[[], Digest]) -> None:
    before, name, digest = time.time() - 1, uri(), new()
    assets.push(name, digest=digest)
    after = time.time() + 1
    assert assets.fetched(name, oldest_content_accepted=at(before)) == digest
    with refused("NOT_FOUND"):
        assets.fetch(name, oldest_content_accepted=at(after))
    fresh = uri()
    assets.push(fresh, digest=digest)
    assert assets.fetched(name, fresh, oldest_content_accepted=at(0)) == digest


@pytest.mark.row("Asset Fetch")
@BOTH
def test_what_has_expired_is_a_miss_and_what_has_not_says_when_it_will(
    assets: Assets, new: Callable[[], Digest]
) -> None:
    gone, soon, never, digest = uri(), uri(), uri(), new()
    assets.push(gone, digest=digest, expire_at=at(time.time() - 1))
    assets.push(soon, digest=digest, expire_at=at(time.time() + 1.2))
    assets.push(never, digest=digest)
    with refused("NOT_FOUND"):
        assets.fetch(gone)
    assert abs(assets.fetch(soon).expires_at.ToMilliseconds() - (time.time() + 1.2) * 1000) < 1000
    assert not assets.fetch(never).HasField("expires_at")
    assert assets.fetch(gone, soon).uri == soon
    time.sleep(1.3)
    with refused("NOT_FOUND"):
        assets.fetch(soon)
    assert assets.fetch(soon, never).uri == never
    assets.push(soon, digest=digest)
    assert not assets.fetch(soon).HasField("expires_at")


BAD_REQUESTS: dict[str, dict[str, Any]] = {
    "no URI": {"uris": []},
    "an empty URI": {"uris": [""]},
    "an empty URI beside a good one": {"uris": ["urn:x", ""]},
    "a NUL in a URI": {"uris": ["urn:\0"]},
    "a URI of 20 000 characters": {"uris": ["u" * 20_000]},
    "a hundred URIs": {"uris": [f"urn:{n}" for n in range(100)]},
    "a qualifier without a name": {"uris": ["urn:x"], "qualifiers": [{"value": "v"}]},
    "a qualifier named twice": {"uris": ["urn:x"], "qualifiers": [{"name": "q"}, {"name": "q", "value": "v"}]},
    "a NUL in a qualifier": {"uris": ["urn:x"], "qualifiers": [{"name": "q", "value": "\0"}]},
    "a hundred qualifiers": {"uris": ["urn:x"], "qualifiers": [{"name": f"q{n}"} for n in range(100)]},
}


@pytest.mark.row("Asset Fetch")
@BOTH
@pytest.mark.parametrize("fields", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_request_errors_are_statuses_of_the_call(assets: Assets, new: Callable[[], Digest], fields: Any) -> None:
    fields = dict(fields)
    uris = fields.pop("uris")
    with refused("INVALID_ARGUMENT"):
        assets.fetch(*uris, **fields)
    with refused("INVALID_ARGUMENT"):
        assets.push(*uris, digest=new(), **fields)


@pytest.mark.row("Asset Fetch")
@BOTH
@pytest.mark.parametrize("seconds", [2**60, -(2**60), 253402300800])
def test_a_time_that_is_no_time_is_refused_or_lies_in_the_future(
    client: Client, assets: Assets, new: Callable[[], Digest], seconds: int
) -> None:
    name, digest = uri(), new()
    assets.push(name, digest=digest)
    for call in (
        lambda: assets.fetch(name, oldest_content_accepted=Timestamp(seconds=seconds)),
        lambda: assets.push(uri(), digest=digest, expire_at=Timestamp(seconds=seconds)),
    ):
        with refused("INVALID_ARGUMENT", "timestamp"):
            call()


# -- Push -------------------------------------------------------------------------------------------------------------


@pytest.mark.row("Asset Push")
@BOTH
@pytest.mark.parametrize("field", ["references_blobs", "references_directories"])
def test_what_is_not_all_held_does_not_become_a_name(assets: Assets, new: Callable[[], Digest], field: str) -> None:
    name, digest = uri(), new()
    with refused("FAILED_PRECONDITION", str(ABSENT)):
        assets.push(name, digest=digest, **{field: [message_of(ABSENT)]})
    with refused("FAILED_PRECONDITION"):
        assets.push(name, digest=ABSENT, references_blobs=[message_of(digest)])
    with refused("NOT_FOUND"):
        assets.fetch(name)
    assets.push(name, digest=digest, **{field: [message_of(new())]})
    assert assets.fetched(name) == digest


@pytest.mark.row("Asset Push")
def test_of_pushes_that_come_at_once_each_is_answered_for_itself(client: Client, new: Callable[[], Digest]) -> None:
    """They are promised and committed together: what one lacks is nobody else's trouble, how much one names neither."""
    assets, names = Assets(client, "Blob"), [uri() for _ in range(24)]
    held = client.put(*(f"{at}/{uuid4()}".encode() for at in range(1200)))
    more = {"none": [], "hole": [ABSENT], "much": held}
    kinds = list(more) * 8
    digests = [new() for _ in names]
    client.call("PushBlob", uris=[uri()], blob_digest=message_of(digests[-1]), references_blobs=map(message_of, held))

    def push(number: int) -> None:
        references = [message_of(digest) for digest in more[kinds[number]]]
        with refused("FAILED_PRECONDITION", str(ABSENT)) if kinds[number] == "hole" else nullcontext():
            assets.push(names[number], digest=digests[number], references_blobs=references)

    with ThreadPoolExecutor(8) as callers:
        list(callers.map(push, range(len(names))))
    for name, kind, digest in zip(names, kinds, digests, strict=True):
        with refused("NOT_FOUND") if kind == "hole" else nullcontext():
            assert assets.fetched(name) == digest


@pytest.mark.row("Asset Push")
def test_a_tree_with_a_hole_does_not_become_a_name(client: Client) -> None:
    directories = Assets(client, "Directory")
    for hole in ({"files": [{"name": "f", "digest": message_of(ABSENT)}]}, _below({"name": "d"})):
        (root,) = client.put(re_pb2.Directory(**hole).SerializeToString())
        with refused("FAILED_PRECONDITION", str(ABSENT)):
            directories.push(name := uri(), digest=root)
        with refused("NOT_FOUND"):
            directories.fetch(name)
        blobs = Assets(client, "Blob")
        with refused("FAILED_PRECONDITION", str(ABSENT)):
            blobs.push(name, digest=EMPTY, references_directories=[message_of(root)])


def _below(fields: dict[str, Any]) -> dict[str, Any]:
    return {"directories": [{**fields, "digest": message_of(ABSENT)}]}


@pytest.mark.row("Asset Push")
@BOTH
def test_a_size_that_lies_is_not_held(assets: Assets, new: Callable[[], Digest]) -> None:
    digest = new()
    lie = Digest(digest.key, digest.size_bytes + 1)
    with refused("FAILED_PRECONDITION"):
        assets.push(uri(), digest=lie, references_blobs=[message_of(digest)])


@pytest.mark.row("Asset Push")
@BOTH
def test_digests_that_are_none_and_a_missing_one_are_refused(client: Client, assets: Assets, kind: str) -> None:
    with refused("INVALID_ARGUMENT", "digest"):
        client.call(f"Push{kind}", uris=[uri()])
    bad = re_pb2.Digest(hash="../../etc/passwd", size_bytes=1)
    for field in ("references_blobs", "references_directories"):
        with refused("INVALID_ARGUMENT"):
            assets.push(uri(), digest=EMPTY, **{field: [bad]})
    # BuildStream lists fields that its artifact does not have: they refer to nothing.
    assets.push(uri(), digest=EMPTY, references_blobs=[re_pb2.Digest()])


@pytest.mark.row("Asset Push")
@BOTH
def test_more_references_than_a_name_may_have_are_refused(assets: Assets) -> None:
    many = [message_of(EMPTY)] * 100_001
    with refused("INVALID_ARGUMENT", "references"):
        assets.push(uri(), digest=EMPTY, references_blobs=many)


@pytest.mark.row("Asset Push")
def test_of_a_buildstream_artifact_only_the_build_tree_the_sources_and_the_root_may_lack(client: Client) -> None:
    blobs = Assets(client, "Blob")
    (log, data) = client.put(b"a log", b"public data")
    (files,) = client.put(re_pb2.Directory(files=[{"name": "log", "digest": message_of(log)}]).SerializeToString())

    def push(**fields: Any) -> str:
        artifact = artifact_pb2.Artifact(**{"files": message_of(files), "public_data": message_of(data)} | fields)
        artifact.strong_key = str(uuid4())
        (digest,) = client.put(artifact.SerializeToString())
        name = f"{ARTIFACT_URN}project/element/{artifact.strong_key}"
        referenced = [value for _, value in artifact.ListFields() if isinstance(value, re_pb2.Digest)]
        blobs.push(name, digest=digest, references_directories=[one for one in referenced if one != message_of(data)])
        assert blobs.fetched(name) == digest
        return name

    push()
    for optional in ("buildtree", "sources", "buildroot"):
        push(**{optional: message_of(ABSENT)})
    for required in ({"files": message_of(ABSENT)}, {"public_data": message_of(ABSENT)}):
        with refused("FAILED_PRECONDITION", str(ABSENT)):
            push(**required)
    with refused("FAILED_PRECONDITION", str(ABSENT)):
        push(logs=[{"name": "build.log", "digest": message_of(ABSENT)}])
    with refused("INVALID_ARGUMENT", "Artifact"):
        blobs.push(f"{ARTIFACT_URN}a/b/c", digest=client.put(b"\xff\xff no artifact")[0])


@pytest.mark.row("Asset Push")
@BOTH
def test_all_uris_of_a_push_are_bound_or_none(assets: Assets, new: Callable[[], Digest]) -> None:
    one, two = uri(), uri()
    with refused("FAILED_PRECONDITION"):
        assets.push(one, two, digest=new(), references_blobs=[message_of(ABSENT)])
    for name in (one, two):
        with refused("NOT_FOUND"):
            assets.fetch(name)


@pytest.mark.row("Asset Push")
@BOTH
def test_a_name_all_of_whose_blobs_live_elsewhere_is_foreign(assets: Assets) -> None:
    assets.push(name := uri(), digest=ABSENT, references_blobs=[message_of(Digest.of(b"elsewhere too"))])
    assert assets.fetched(name) == ABSENT


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Client]:
    """A server that takes no foreign names."""
    with LoopbackServer(tmp_path / "repo", foreign=False) as server, Client(server.target) as client:
        yield client


@pytest.mark.row("Asset Push")
def test_without_foreign_names_every_name_needs_its_blobs(strict: Client) -> None:
    for kind in ("Blob", "Directory"):
        with refused("FAILED_PRECONDITION", str(ABSENT)):
            Assets(strict, kind).push(name := uri(), digest=ABSENT)
        with refused("NOT_FOUND"):
            Assets(strict, kind).fetch(name)


@pytest.mark.row("Asset Push")
@BOTH
def test_an_index_takes_names_without_their_blobs(tmp_path: Path, kind: str) -> None:
    with LoopbackServer(tmp_path / "repo", index_only=True) as server, Client(server.target) as client:
        assets = Assets(client, kind)
        assets.push(name := uri(), digest=ABSENT, references_directories=[message_of(EMPTY)])
        assert assets.fetched(name) == ABSENT


@pytest.mark.row("Asset Push")
def test_what_was_pushed_says_nothing_more_than_was_asked(client: Client, new: Callable[[], Digest]) -> None:
    name = uri()
    answer = client.call("PushBlob", uris=[name], blob_digest=message_of(new()))
    assert answer == ra_pb2.PushBlobResponse()
