"""``buildstream.v2.ArtifactService``, ``SourceService`` and ``Capabilities``, and the names that they share (ADR 0010)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from contract.loopback import INSTANCE, LoopbackServer
from contract.rpc_client import Client, digest_of, message_of, refused
from contract.trees import Tree, new_tree

from millpond._protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from millpond._protos.buildstream.v2 import artifact_pb2, source_pb2
from millpond.core import limits
from millpond.core.digest import Digest
from millpond.core.names import ARTIFACT_URN, SOURCE_URN, Name, Namespace
from millpond.names.binding import Binding
from millpond.wire.artifacts import SERVICE as ARTIFACTS
from millpond.wire.sources import SERVICE as SOURCES

ABSENT = Digest.of(b"what nobody brings")
UNKNOWN = b"\x9a\x06\x03new"
"""Field 99 with three bytes in it: what a later client may add."""
BOTH = pytest.mark.parametrize("kind", ["Artifact", "Source"])


def key() -> str:
    return f"project/element/{uuid4().hex}"


class Messages:
    """Gets and updates of one kind, byte for byte."""

    def __init__(self, client: Client, kind: str, instance: str = "") -> None:
        self._client, self._kind, self._instance = client, kind, instance
        self._service = {"Artifact": ARTIFACTS, "Source": SOURCES}[kind].full_name

    def _call(self, method: str, request: bytes) -> bytes:
        rpc = self._client.channel.unary_unary(f"/{self._service}/{method}{self._kind}", None, None)
        answer: bytes = rpc(request, timeout=30)
        return answer

    def get(self, cache_key: str) -> bytes:
        return self._call("Get", _field(1, self._instance.encode()) + _field(2, cache_key.encode()))

    def update(self, cache_key: str, *parts: bytes) -> bytes:
        """``parts``: the message, which may come in several."""
        message = b"".join(_field(3, part) for part in parts)
        return self._call("Update", message + _field(2, cache_key.encode()) + _field(1, self._instance.encode()))


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), b""
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@pytest.fixture
def messages(client: Client, kind: str) -> Messages:
    return Messages(client, kind)


@pytest.fixture
def tree(client: Client) -> Tree:
    return new_tree().put(client)


def artifact(tree: Tree, client: Client, **fields: Any) -> artifact_pb2.Artifact:
    """Whole, like one of BuildStream 1.93.4; its public data and log are put."""
    log, public = client.put(f"log {uuid4()}".encode(), f"public {uuid4()}".encode())
    made = artifact_pb2.Artifact(
        build_success=True,
        build_error="succeeded",
        strong_key="strong",
        weak_key="weak",
        files=message_of(tree.root),
        build_deps=[{"project_name": "p", "element_name": "e", "cache_key": "k"}],
        public_data=message_of(public),
        logs=[{"name": "build.log", "digest": message_of(log)}],
        buildtree=message_of(ABSENT),
    )
    for name, value in fields.items():
        getattr(made, name).CopyFrom(value) if isinstance(value, re_pb2.Digest) else setattr(made, name, value)
    return made


def source(tree: Tree) -> source_pb2.Source:
    return source_pb2.Source(files=message_of(tree.root))


def message(kind: str, tree: Tree, client: Client) -> bytes:
    made = artifact(tree, client) if kind == "Artifact" else source(tree)
    return made.SerializeToString()


# -- messages ---------------------------------------------------------------------------------------------------------


@BOTH
def test_a_message_comes_back_byte_for_byte_whatever_is_in_it(
    messages: Messages, kind: str, client: Client, tree: Tree
) -> None:
    plain = message(kind, tree, client)
    # Not as any encoder would write them: unknown fields first, a field twice, a version that is the default.
    for odd in (plain, plain + UNKNOWN, UNKNOWN + plain, b"\x08\x00" + plain, UNKNOWN + b"\x08\x01" + plain + UNKNOWN):
        assert messages.update(name := key(), odd) == odd
        assert messages.get(name) == odd
        assert messages.update(name, plain) == messages.get(name) == plain


@BOTH
def test_a_message_that_comes_in_parts_is_their_sum(messages: Messages, kind: str, client: Client, tree: Tree) -> None:
    plain = message(kind, tree, client)
    assert messages.update(name := key(), plain, UNKNOWN, b"\x08\x07") == plain + UNKNOWN + b"\x08\x07"
    assert messages.get(name) == plain + UNKNOWN + b"\x08\x07"


@BOTH
def test_what_is_not_there_is_not_found(messages: Messages) -> None:
    with refused("NOT_FOUND"):
        messages.get(key())


@BOTH
def test_the_last_update_counts(messages: Messages, kind: str, client: Client, tree: Tree) -> None:
    first, last = (message(kind, one, client) for one in (tree, new_tree().put(client)))
    messages.update(name := key(), first + UNKNOWN)
    messages.update(name, last)
    assert messages.get(name) == last


@BOTH
@pytest.mark.parametrize("part", ["root", "below", "file"])
def test_a_name_is_written_only_when_its_tree_is_whole(
    messages: Messages, kind: str, client: Client, part: str
) -> None:
    name, tree = key(), new_tree()
    lacking: Digest = getattr(tree, part)
    tree.put(client, without=lacking)
    content = message(kind, tree, client)
    with refused("FAILED_PRECONDITION", str(lacking)):
        messages.update(name, content)
    with refused("NOT_FOUND"):
        messages.get(name)
    client.put(tree.contents[lacking])
    assert messages.update(name, content) == messages.get(name) == content


@BOTH
def test_a_name_none_of_whose_blobs_are_here_is_not_written(messages: Messages, kind: str, client: Client) -> None:
    with refused("FAILED_PRECONDITION"):
        messages.update(key(), message(kind, new_tree(), client))


def test_of_an_artifact_the_trees_for_debugging_may_lack_and_nothing_else(client: Client, tree: Tree) -> None:
    artifacts, absent = Messages(client, "Artifact"), message_of(ABSENT)
    for optional in ("buildtree", "sources"):
        made = artifact(tree, client, **{optional: absent}).SerializeToString()
        assert artifacts.update(name := key(), made) == artifacts.get(name) == made
    lacking = [artifact(tree, client, **{field: absent}) for field in ("files", "public_data")]
    lacking.append(artifact(tree, client))
    lacking[-1].logs.add(name="another.log", digest=absent)
    for one in lacking:
        with refused("FAILED_PRECONDITION", str(ABSENT)):
            artifacts.update(key(), one.SerializeToString())


def test_an_artifact_may_have_no_files_no_public_data_and_no_logs(client: Client) -> None:
    # A failed build; and fields that are there and empty refer to nothing.
    artifacts = Messages(client, "Artifact")
    for made in (
        artifact_pb2.Artifact(build_error="no"),
        artifact_pb2.Artifact(files={}, public_data={}, buildtree={}),
    ):
        content = made.SerializeToString()
        assert artifacts.update(name := key(), content) == artifacts.get(name) == content


@BOTH
@pytest.mark.parametrize("part", ["root", "below", "file"])
def test_a_name_is_answered_only_while_it_is_whole(
    server: LoopbackServer, messages: Messages, kind: str, client: Client, part: str
) -> None:
    name, tree = key(), new_tree()
    lacking: Digest = getattr(tree, part)
    tree.put(client, without=lacking)
    content = message(kind, tree, client)
    client.put(content)
    namespace, urn = _name_of(kind)
    digest = Digest.of(content) if kind == "Artifact" else tree.root
    server.cache.names.bind([(Name("", namespace, urn + name), Binding(digest, server.cache.clock()))])
    with refused("NOT_FOUND"):
        messages.get(name)
    client.put(tree.contents[lacking])
    assert messages.get(name) == content


def _name_of(kind: str) -> tuple[Namespace, str]:
    return {"Artifact": (Namespace.ASSET_BLOB, ARTIFACT_URN), "Source": (Namespace.ASSET_DIRECTORY, SOURCE_URN)}[kind]


BAD = re_pb2.Digest(hash="../../etc/passwd", size_bytes=1)


@BOTH
@pytest.mark.parametrize("bad", ["", "a\0b", "k" * 16_384], ids=["empty", "NUL", "too long"])
def test_a_key_that_cannot_be_is_refused(messages: Messages, kind: str, client: Client, tree: Tree, bad: str) -> None:
    with refused("INVALID_ARGUMENT", "key"):
        messages.get(bad)
    with refused("INVALID_ARGUMENT", "key"):
        messages.update(bad, message(kind, tree, client))


@BOTH
def test_what_is_no_such_message_is_refused(messages: Messages, kind: str, client: Client, tree: Tree) -> None:
    with refused("INVALID_ARGUMENT", "missing"):
        messages.update(key())
    with refused("INVALID_ARGUMENT", kind):
        messages.update(key(), b"\xff\xff\xff")
    with refused("INVALID_ARGUMENT", "at most"):
        messages.update(key(), *[b""] * 4_000_000)
    files = _field({"Artifact": 8, "Source": 2}[kind], BAD.SerializeToString())
    with refused("INVALID_ARGUMENT", "hash"):
        messages.update(key(), files)


@BOTH
def test_a_message_may_be_as_long_as_the_limit_and_no_longer(
    messages: Messages, kind: str, client: Client, tree: Tree
) -> None:
    limit = {"Artifact": limits.ARTIFACT_MESSAGE_BYTES, "Source": limits.SOURCE_MESSAGE_BYTES}[kind]
    plain, name = message(kind, tree, client), key()
    # A field that nobody knows fills it up; its tag takes two bytes and its length up to four.
    fills = (plain + UNKNOWN[:2] + _field(0, bytes(limit - len(plain) - taken))[1:] for taken in range(3, 7))
    longest = next(one for one in fills if len(one) == limit)
    assert messages.update(name, longest) == messages.get(name) == longest
    with refused("INVALID_ARGUMENT", str(limit)):
        messages.update(name, longest + b"\x08\x01")


def test_a_source_has_files(client: Client) -> None:
    with refused("INVALID_ARGUMENT", "files"):
        Messages(client, "Source").update(key(), b"\x08\x01")


@BOTH
def test_instances_have_names_of_their_own(
    server: LoopbackServer, messages: Messages, kind: str, client: Client, tree: Tree
) -> None:
    name, here, there = key(), message(kind, tree, client), message(kind, new_tree().put(client), client)
    messages.update(name, here)
    elsewhere = Messages(client, kind, INSTANCE)
    with refused("NOT_FOUND"):
        elsewhere.get(name)
    elsewhere.update(name, there)
    assert (messages.get(name), elsewhere.get(name)) == (here, there)
    with refused("NOT_FOUND", "instance name"):
        Messages(client, kind, "nowhere").get(name)


# -- one name with the Remote Asset API (ADR 0010) ----------------------------------------------------------------------

RECORDED = {
    "1.93.4": (
        "10011a097375636365656465642a4031386361613031636663636332323631396261653039373638656661356465343565643938"
        "65333530303836666233656331346131333935626661643861623432403138636161303163666363633232363139626165303937"
        "363865666135646534356564393865333530303836666233656331346131333935626661643861623442440a4065623864366639"
        "35343565343138616538343963633633313963663064383130643764643465303165306562356436303338313765656236346238"
        "3762396633104f52450a406261613630393936336565663230613830363766373637323466616366303938323738313532313330"
        "666664336661353733663366646632306263383635386110cf055a610a1831386361613031632d6275696c642e31343139332e6c"
        "6f6712450a4037646565343038353733343063313431323935643231373530313066333539373736643331313539366635383234"
        "61623836303735353735396162666336626610c703"
    ),
    "1.93.5": (
        "10011a097375636365656465642a4031366230353462643231633834653835396566323535323162343933303139393364306237"
        "37633432646135306561363066363235643138646666316431653332403136623035346264323163383465383539656632353532"
        "316234393330313939336430623737633432646135306561363066363235643138646666316431653342440a4038343133363431"
        "64393834633163303638613935343662323830353731663666656533623038366433663633336332303463363134626266386335"
        "3437643861104f52450a406261613630393936336565663230613830363766373637323466616366303938323738313532313330"
        "666664336661353733663366646632306263383635386110cf055a610a1831366230353462642d6275696c642e31353433302e6c"
        "6f6712450a4037646565343038353733343063313431323935643231373530313066333539373736643331313539366635383234"
        "61623836303735353735396162666336626610c703"
    ),
    "1.93.6": (
        "080110011a097375636365656465642a406334613739353762353863366565313761326666386430666664326434383638323539"
        "32656364646531393034663464386237393237643639633534306263393240633461373935376235386336656531376132666638"
        "6430666664326434383638323539326563646465313930346634643862373932376436396335343062633942440a403834313336"
        "34316439383463316330363861393534366232383035373166366665653362303836643366363333633230346336313462626638"
        "63353437643861104f52450a40626161363039393633656566323061383036376637363732346661636630393832373831353231"
        "3330666664336661353733663366646632306263383635386110cf055a610a1863346137393537622d6275696c642e3135363034"
        "2e6c6f6712450a406664613730346438346539303761313238626361363866613637306263326464346335363931626233623133"
        "633365343962636137653136636662343963666210fe0372450a4034383162653239613264313665616134316439623131633261"
        "63383732346532366331383362353330326362653533666334666434653336363636353632376110ff017a450a40393233396437"
        "32336564393734343132653663643539383538636338636437376331666436356632313736343631366336366639333766343932"
        "32653531323710ad0582014063346137393537623538633665653137613266663864306666643264343836383235393265636464"
        "653139303466346438623739323764363963353430626339"
    ),
}
"""What clients of these versions sent as the artifact of one ``import`` element; 1.93.4 by UpdateArtifact, the others as the
blob of a PushBlob. 1.93.4 and 1.93.5 make one cache key of the same element, 1.93.6 makes another."""


def recorded(version: str) -> artifact_pb2.Artifact:
    return artifact_pb2.Artifact.FromString(bytes.fromhex(RECORDED[version]))


def test_1_93_4_and_1_93_5_write_the_same_fields_and_1_93_6_others() -> None:
    fields = {version: {field.name for field, _ in recorded(version).ListFields()} for version in RECORDED}
    assert fields["1.93.4"] == fields["1.93.5"]
    assert recorded("1.93.4").version == recorded("1.93.5").version == 0
    more = {"version", "strict_key", "low_diversity_meta", "high_diversity_meta"}
    assert fields["1.93.6"] - fields["1.93.5"] == more
    assert recorded("1.93.6").version == 1


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Client]:
    """A server without blobs."""
    with LoopbackServer(tmp_path / "repo", index_only=True) as server, Client(server.target) as client:
        yield client


@pytest.mark.parametrize("version", RECORDED)
def test_an_index_keeps_messages_and_answers_their_bytes(index: Client, version: str) -> None:
    artifacts, content, name = Messages(index, "Artifact"), bytes.fromhex(RECORDED[version]), key()
    assert artifacts.update(name, content) == artifacts.get(name) == content
    answer = index.call("FetchBlob", uris=[ARTIFACT_URN + name])
    assert digest_of(answer.blob_digest) == Digest.of(content)
    files = source_pb2.Source(files=recorded(version).files).SerializeToString()
    sources = Messages(index, "Source")
    assert sources.update(name, files) == sources.get(name) == files
    answer = index.call("FetchDirectory", uris=[SOURCE_URN + name])
    assert answer.root_directory_digest == recorded(version).files


def test_an_index_does_not_have_the_message_of_what_was_pushed_without_it(index: Client) -> None:
    index.call("PushBlob", uris=[ARTIFACT_URN + (name := key())], blob_digest=message_of(ABSENT))
    with refused("NOT_FOUND"):
        Messages(index, "Artifact").get(name)


def test_an_artifact_that_one_service_was_given_the_other_finds(client: Client, tree: Tree) -> None:
    artifacts, name, urn = Messages(client, "Artifact"), key(), ARTIFACT_URN
    content = artifact(tree, client).SerializeToString() + UNKNOWN
    artifacts.update(name, content)
    found = digest_of(client.call("FetchBlob", uris=[urn + name]).blob_digest)
    assert (found, client.get([found])) == (Digest.of(content), [content])
    later = artifact(tree, client).SerializeToString() + UNKNOWN
    (digest,) = client.put(later)
    client.call("PushBlob", uris=[urn + name], blob_digest=message_of(digest))
    assert artifacts.get(name) == later


def test_a_source_that_one_service_was_given_the_other_finds(client: Client, tree: Tree) -> None:
    sources, name, later = Messages(client, "Source"), key(), new_tree().put(client)
    sources.update(name, source(tree).SerializeToString() + UNKNOWN)
    answer = client.call("FetchDirectory", uris=[SOURCE_URN + name])
    assert digest_of(answer.root_directory_digest) == tree.root
    client.call("PushDirectory", uris=[SOURCE_URN + name], root_directory_digest=message_of(later.root))
    assert sources.get(name) == source(later).SerializeToString()


def test_an_artifact_that_lives_elsewhere_has_no_message_here(client: Client) -> None:
    client.call("PushBlob", uris=[ARTIFACT_URN + (name := key())], blob_digest=message_of(ABSENT))
    client.call("PushDirectory", uris=[SOURCE_URN + name], root_directory_digest=message_of(ABSENT))
    with refused("NOT_FOUND"):
        Messages(client, "Artifact").get(name)
    # A source's message says nothing but where its files are, so it is known.
    assert Messages(client, "Source").get(name) == source_pb2.Source(files=message_of(ABSENT)).SerializeToString()


def test_the_kinds_share_no_names_with_each_other(client: Client, tree: Tree) -> None:
    name = key()
    Messages(client, "Artifact").update(name, artifact(tree, client).SerializeToString())
    client.call("UpdateReference", keys=[name], digest=message_of(tree.root))
    with refused("NOT_FOUND"):
        Messages(client, "Source").get(name)


# -- Capabilities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("push", [True, False])
@pytest.mark.parametrize("index_only", [True, False])
def test_capabilities_say_whether_one_may_push(tmp_path: Path, push: bool, index_only: bool) -> None:
    with (
        LoopbackServer(tmp_path / "repo", push=push, index_only=index_only) as server,
        Client(server.target) as client,
    ):
        for instance in ("", INSTANCE):
            told = client.call("buildstream.v2.Capabilities", instance_name=instance)
            assert told.HasField("artifact_capabilities")
            assert told.HasField("source_capabilities")
            assert told.artifact_capabilities.allow_updates is push
            assert told.source_capabilities.allow_updates is push
        with refused("NOT_FOUND", "instance name"):
            client.call("buildstream.v2.Capabilities", instance_name="nowhere")
        for kind in () if push else ("Artifact", "Source"):
            for content in (b"", b"\xff", source_pb2.Source().SerializeToString()):
                with refused("PERMISSION_DENIED", "push"):
                    Messages(client, kind).update("", content)
