"""What servers of BuildStream 1.2 to 1.93 answered, call by call, and what Millpond answers.

Theirs was measured with the server of 1.6.9 (of ArtifactService and SourceService: with that of 1.93.4). Where ours is the
same, a client cannot tell them apart; where it is not, the row says which rule asks for it: a row of this folder's README
(a rule of the Remote Execution API), or an invariant of ARCHITECTURE.md. ``test_old_servers.py`` goes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import grpc
from contract.loopback import INSTANCE
from contract.rpc_client import Client, digest_of, message_of
from contract.trees import Tree, new_tree

from millpond._protos.google.bytestream import bytestream_pb2
from millpond.core.digest import EMPTY, Digest
from millpond.names.interface import NameIndex

MIB = 1 << 20
DATA = b"of the blob that is written"
REF = "project/element/0123abcd"
"""Bound, whole."""
BROKEN = {"file": "project/element/lacks-a-file", "below": "project/element/lacks-a-directory"}
"""Bound, and something of the tree has gone."""
ARTIFACT, BROKEN_ARTIFACT, SOURCE = "project/element/artifact", "project/element/broken", "local/source"


@dataclass(frozen=True)
class Scene:
    """A server, what it holds, and whether it takes pushes."""

    client: Client
    tree: Tree
    public_data: Digest
    names: NameIndex
    push: bool
    full: Client
    """Of a server whose quota is 3 MB."""


@dataclass(frozen=True)
class Row:
    """``upstream`` and ``ours``: the answer in words, of a server with push and of one without where that differs."""

    call: str
    act: Callable[[Scene], object]
    upstream: str | tuple[str, str]
    ours: str | tuple[str, str] | None = None
    because: str = ""

    def expected(self, *, push: bool) -> str:
        """What ours answers."""
        expected = self.ours or self.upstream
        return expected if isinstance(expected, str) else expected[not push]


def outcome_of(row: Row, scene: Scene) -> str:
    """``OK``, with what the answer says behind it; or the status."""
    try:
        said = row.act(scene)
    except grpc.RpcError as refusal:
        return str(refusal.code().name)
    return "OK" if said is None else f"OK {said}"


# -- what clients say -------------------------------------------------------------------------------------------------


def call(name: str, **fields: Any) -> Callable[[Scene], object]:
    """A call whose answer says nothing more."""

    def act(scene: Scene) -> None:
        scene.client.call(name, **fields)

    return act


def reference(key: str, **fields: Any) -> Callable[[Scene], object]:
    def act(scene: Scene) -> str:
        found = digest_of(scene.client.call("GetReference", key=key, **fields).digest)
        return "its root" if found == scene.tree.root else str(found)

    return act


def update(scene: Scene, digest: Digest, *keys: str) -> None:
    scene.client.call("UpdateReference", keys=keys, digest=message_of(digest))


def overwrite(scene: Scene) -> str:
    one, two = scene.tree, new_tree().put(scene.client)
    key = uuid4().hex
    update(scene, one.root, key)
    update(scene, two.root, key)
    return "the later" if digest_of(scene.client.call("GetReference", key=key).digest) == two.root else "the first"


def batch(*blobs: tuple[Digest, bytes]) -> Callable[[Scene], object]:
    return lambda scene: scene.client.update(blobs) or None


def batch_of(size_bytes: int) -> Callable[[Scene], object]:
    """In blobs of 64 KiB, each unlike the others."""

    def act(scene: Scene) -> str:
        contents = [uuid4().bytes * 4096 for _ in range(size_bytes >> 16)]
        contents += [uuid4().bytes[: size_bytes & 0xFFFF]] if size_bytes & 0xFFFF else []
        codes = scene.client.update([(Digest.of(content), content) for content in contents])
        return f"{set(codes)}"

    return act


def read_batch_of(size_bytes: int) -> Callable[[Scene], object]:
    """Asked for by their sizes; they are not there."""
    asked = [Digest(Digest.of(b"%d" % number).key, size_bytes // 4) for number in range(3)]
    asked.append(Digest(Digest.of(b"last").key, size_bytes - 3 * (size_bytes // 4)))
    return lambda scene: set(scene.client.get(asked))


def no_room(by: str) -> Callable[[Scene], object]:
    """A blob that cannot fit, beside a small one."""
    large, small = uuid4().bytes * 220_000, uuid4().bytes

    def act(scene: Scene) -> object:
        if by == "Write":
            return scene.full.upload(large)
        return scene.full.update([(Digest.of(content), content) for content in (small, large)])

    return act


def missing(by: int) -> Callable[[Scene], object]:
    def act(scene: Scene) -> str:
        asked = Digest(scene.tree.file.key, scene.tree.file.size_bytes + by)
        return "missing" if scene.client.find_missing([asked, EMPTY]) == [asked] else "present"

    return act


def capabilities(scene: Scene) -> str:
    told = scene.client.call("GetCapabilities")
    cache = told.cache_capabilities
    versions = "-".join(f"{one.major}.{one.minor}" for one in (told.low_api_version, told.high_api_version))
    return (
        f"functions {list(cache.digest_functions)}, update {cache.action_cache_update_capabilities.update_enabled},"
        f" batch {cache.max_batch_total_size_bytes}, symlinks {cache.symlink_absolute_path_strategy}, {versions}"
    )


def read(name: Callable[[Tree], str], **range_: int) -> Callable[[Scene], object]:
    def act(scene: Scene) -> str:
        data = scene.client.read(name(scene.tree), **range_)
        whole = scene.tree.contents.get(scene.tree.file, b"")
        return "all" if data == whole else "the rest" if whole.endswith(data) and data else f"{len(data)} bytes"

    return act


def read_chunks(scene: Scene) -> str:
    data = uuid4().bytes * 160_000
    digest = Digest.of(data)
    scene.client.upload(data)
    request = bytestream_pb2.ReadRequest(resource_name=f"blobs/{digest}")
    return f"{max(len(one.data) for one in scene.client.rpc('Read')(request, timeout=30)) <= MIB}"


def write(name: str, *messages: dict[str, Any]) -> Callable[[Scene], object]:
    """A Write of ``DATA``; ``{digest}`` in the name is its digest, ``{uuid}`` a version 4 UUID."""

    def act(scene: Scene) -> int:
        given = {"digest": Digest.of(DATA), "short": Digest(Digest.of(DATA).key, 9), "uuid": uuid4()}
        filled = [{"resource_name": name, **message} for message in messages or ({"data": DATA, "finish_write": True},)]
        return scene.client.write(
            bytestream_pb2.WriteRequest(**{**one, "resource_name": one["resource_name"].format(**given)})
            for one in filled
        )

    return act


def status(scene: Scene) -> object:
    return scene.client.status(scene.client.write_name(scene.tree.file))[1]


def walked(scene: Scene) -> object:
    return sum(len(page.directories) for page in scene.client.tree(scene.tree.root))


def artifact(key: str) -> Callable[[Scene], object]:
    def act(scene: Scene) -> str:
        found = scene.client.call("GetArtifact", cache_key=key)
        return "its files" if digest_of(found.files) == scene.tree.root else "?"

    return act


def update_artifact(**fields: Digest) -> Callable[[Scene], object]:
    """One that has its files, and what is given instead or besides."""

    def act(scene: Scene) -> str:
        given = {"files": scene.tree.root, "public_data": scene.public_data, **fields}
        log = given.pop("log", scene.public_data)
        made = {name: message_of(digest) for name, digest in given.items()}
        made["logs"] = [{"name": "log", "digest": message_of(log)}]  # type: ignore[assignment]
        answer = scene.client.call("UpdateArtifact", cache_key=uuid4().hex, artifact=made)
        return "the artifact" if digest_of(answer.files) == given["files"] else "?"

    return act


def update_source(scene: Scene) -> str:
    files = message_of(Digest.of(b"a directory that nobody brought"))
    answer = scene.client.call("UpdateSource", cache_key=uuid4().hex, source={"files": files})
    return "the source" if answer.files == files else "?"


def bst_capabilities(scene: Scene) -> str:
    told = scene.client.call("buildstream.v2.Capabilities")
    return f"{told.artifact_capabilities.allow_updates} {told.source_capabilities.allow_updates}"


ABSENT = Digest.of(b"nobody brought it")
WRONG = Digest(Digest.of(DATA).key, len(DATA) + 1)
UPLOAD = "uploads/{uuid}/blobs/{digest}"
HEAD, REST = {"data": DATA[:9]}, {"data": DATA[9:], "write_offset": 9, "finish_write": True}
DENIED = "PERMISSION_DENIED"
NO_PUSH = ("OK", DENIED)


def rows() -> Iterator[Row]:
    """All of them."""
    yield from references()
    yield from storage()
    yield from streams()
    yield from messages()


def references() -> Iterator[Row]:
    yield Row("Status", lambda scene: scene.client.call("Status").allow_updates, ("OK True", "OK False"))
    yield Row(
        "Status of an instance that is not there",
        lambda scene: scene.client.call("Status", instance_name="x").allow_updates,
        ("OK True", "OK False"),
        "NOT_FOUND",
        "ByteStream names",
    )
    yield Row("GetReference, absent", reference("project/element/nothing"), "NOT_FOUND")
    yield Row("GetReference, whole", reference(REF), "OK its root")
    yield Row("GetReference, a file gone", reference(BROKEN["file"]), "NOT_FOUND")
    yield Row("GetReference, a directory gone", reference(BROKEN["below"]), "NOT_FOUND")
    yield Row("GetReference, an empty key", reference(""), "UNKNOWN", "INVALID_ARGUMENT", "Asset Fetch")
    yield Row(
        "GetReference, another instance",
        reference(REF, instance_name=INSTANCE),
        "OK its root",
        "NOT_FOUND",
        "Asset Fetch",
    )
    yield Row("UpdateReference", lambda scene: update(scene, scene.tree.root, uuid4().hex), NO_PUSH)
    yield Row("UpdateReference, again", overwrite, ("OK the later", DENIED))
    yield Row("UpdateReference without keys", call("UpdateReference"), NO_PUSH)
    yield Row(
        "UpdateReference to a tree that is not there",
        lambda scene: update(scene, ABSENT, uuid4().hex),
        NO_PUSH,
        ("FAILED_PRECONDITION", DENIED),
        "Asset Push",
    )


def storage() -> Iterator[Row]:
    yield Row("GetCapabilities", capabilities, "OK functions [1], update False, batch 1048576, symlinks 2, 2.0-2.0",
              "OK functions [1], update False, batch 3932160, symlinks 2, 2.0-2.12", "versions")  # fmt: skip
    yield Row("BatchUpdateBlobs, empty", call("BatchUpdateBlobs"), NO_PUSH)
    yield Row("BatchReadBlobs, empty", call("BatchReadBlobs"), "OK")
    yield Row("BatchUpdateBlobs of 1 MiB", batch_of(MIB), ("OK {0}", DENIED))
    yield Row("BatchUpdateBlobs of 1 MiB + 1", batch_of(MIB + 1), ("INVALID_ARGUMENT", DENIED), ("OK {0}", DENIED),
              "BatchUpdateBlobs")  # fmt: skip
    yield Row("BatchUpdateBlobs beyond what is advertised", batch_of(3932161), ("INVALID_ARGUMENT", DENIED))
    yield Row("BatchReadBlobs of 1 MiB", read_batch_of(MIB), "OK {5}")
    yield Row("BatchReadBlobs of 1 MiB + 1", read_batch_of(MIB + 1), "INVALID_ARGUMENT", "OK {5}", "versions")
    yield Row("BatchReadBlobs beyond what is advertised", read_batch_of(3932161), "INVALID_ARGUMENT")
    yield Row("BatchReadBlobs, absent", lambda scene: scene.client.get([ABSENT]), "OK [5]")
    yield Row(
        "BatchReadBlobs, another size",
        lambda scene: scene.client.get([Digest(scene.tree.file.key, scene.tree.file.size_bytes + 1)]),
        "OK [5]",
    )
    for what, blob in (("hash", (ABSENT, DATA)), ("size", (WRONG, DATA))):
        yield Row(f"BatchUpdateBlobs, wrong {what}", batch(blob), ("UNKNOWN", DENIED), ("OK [3]", DENIED),
                  "BatchUpdateBlobs")  # fmt: skip
    yield Row("BatchUpdateBlobs, no room", no_room("Batch"), "UNKNOWN", "RESOURCE_EXHAUSTED", "BatchUpdateBlobs")
    yield Row("FindMissingBlobs, held", missing(0), "OK present")
    yield Row("FindMissingBlobs, another size", missing(1), "OK present", "OK missing", "digest")
    yield Row("GetTree", walked, "UNIMPLEMENTED", "OK 2", "GetTree")


def streams() -> Iterator[Row]:
    yield Row("Read", read(lambda tree: f"blobs/{tree.file}"), "OK all")
    yield Row("Read HASH/SIZE", read(lambda tree: f"{tree.file}"), "OK all")
    yield Row("Read, an instance", read(lambda tree: f"{INSTANCE}/blobs/{tree.file}"), "NOT_FOUND", "OK all",
              "ByteStream names")  # fmt: skip
    yield Row("Read, absent", read(lambda _: f"blobs/{ABSENT}"), "NOT_FOUND")
    yield Row("Read HASH/SIZE, absent", read(lambda _: f"{ABSENT}"), "NOT_FOUND")
    yield Row("Read, another size", read(lambda tree: f"blobs/{tree.file.hash}/1"), "NOT_FOUND")
    for bad in ("blobs", "blobs/x/1", "blobs/../../etc/passwd", "nothing/of/the/kind"):
        yield Row(f"Read {bad}", read(lambda _, bad=bad: bad), "NOT_FOUND", "INVALID_ARGUMENT", "ByteStream names")  # type: ignore[misc]
    yield Row("Read, offset", read(lambda tree: f"blobs/{tree.file}", offset=3), "OK the rest")
    yield Row("Read, offset beyond the end", read(lambda tree: f"blobs/{tree.file}", offset=10**6), "OUT_OF_RANGE")
    yield Row("Read, limit", read(lambda tree: f"blobs/{tree.file}", limit=3), "OK all", "OK 3 bytes", "Read")
    yield Row("Read, the empty blob", read(lambda _: f"blobs/{EMPTY}"), "OK 0 bytes")
    yield Row("Read, chunks of at most 1 MiB", read_chunks, ("OK True", DENIED))
    committed, refused = f"OK {len(DATA)}", ("FAILED_PRECONDITION", DENIED)
    yield Row("Write", write(UPLOAD), (committed, DENIED))
    yield Row("Write of what is there", write(UPLOAD), (committed, DENIED))
    yield Row("Write HASH/SIZE", write("{digest}"), (committed, DENIED))
    yield Row("Write, more behind the size", write(UPLOAD + "/any/thing"), (committed, DENIED))
    for bad in ("uploads/{uuid}", "blobs/{digest}", "uploads/{uuid}/blobs/x/1"):
        yield Row(f"Write {bad}", write(bad), ("NOT_FOUND", DENIED), ("INVALID_ARGUMENT", DENIED), "ByteStream names")
    yield Row("Write, no UUID", write("uploads/u/blobs/{digest}"), ("NOT_FOUND", DENIED), (committed, DENIED),
              "ByteStream names")  # fmt: skip
    fresh = "uploads/{uuid}/blobs/" + f"{Digest.of(DATA + b'!')}"
    ours = ("INVALID_ARGUMENT", DENIED)
    for what, messages_ in {
        "a gap": (HEAD, {**REST, "write_offset": 10}),
        "another name later": (HEAD, {**REST, "resource_name": f"uploads/u/blobs/{ABSENT}"}),
        "too long": ({"data": DATA + b"!?", "finish_write": True},),
        "short at the finish": ({"data": DATA, "finish_write": True},),
        "a wrong hash": ({"data": DATA + b"?", "finish_write": True},),
    }.items():
        yield Row(f"Write, {what}", write(fresh, *messages_), refused, ours, "Write")
    finish = ({"data": DATA + b".", "finish_write": True}, {"data": b".", "write_offset": len(DATA) + 1})
    yield Row("Write, data after the finish", write("uploads/{uuid}/blobs/" + str(Digest.of(DATA + b".")), *finish),
              refused, (f"OK {len(DATA) + 1}", DENIED), "Write")  # fmt: skip
    yield Row("Write without a finish", write(fresh, HEAD), ("UNKNOWN", DENIED), ours, "Write")
    yield Row("Write, no room", no_room("Write"), "RESOURCE_EXHAUSTED")
    yield Row("QueryWriteStatus", status, "UNIMPLEMENTED", ("OK True", DENIED),
              "QueryWriteStatus")  # fmt: skip


def messages() -> Iterator[Row]:
    yield Row("GetArtifact, absent", artifact("nothing"), "NOT_FOUND")
    yield Row("GetArtifact, whole but for its build tree", artifact(ARTIFACT), "OK its files")
    yield Row("GetArtifact, a file gone", artifact(BROKEN_ARTIFACT), "NOT_FOUND")
    taken = "OK the artifact"
    yield Row("UpdateArtifact", update_artifact(), taken, (taken, DENIED), "I7")
    yield Row("UpdateArtifact, no build tree", update_artifact(buildtree=ABSENT), taken, (taken, DENIED), "I7")
    for field in ("files", "public_data", "log"):
        yield Row(f"UpdateArtifact, no {field}", update_artifact(**{field: ABSENT}), "FAILED_PRECONDITION",
                  ("FAILED_PRECONDITION", DENIED), "I7")  # fmt: skip
    yield Row("GetSource, absent", call("GetSource", cache_key="nothing"), "NOT_FOUND")
    yield Row("GetSource", call("GetSource", cache_key=SOURCE), "OK")
    yield Row("UpdateSource to a tree that is not there", update_source, "OK the source",
              ("FAILED_PRECONDITION", DENIED), "Asset Push")  # fmt: skip
    yield Row("buildstream.v2.Capabilities", bst_capabilities, ("OK True True", "OK False False"))
