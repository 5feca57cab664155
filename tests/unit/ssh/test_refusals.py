"""What a hardened receiver refuses, and that it leaves nothing behind; what it goes on accepting."""

from __future__ import annotations

import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
from unit.ssh.pushing import (
    OLD,
    REF,
    WEAK,
    Artifact,
    conversation,
    directories,
    everything,
    listed,
    make_artifact,
    make_repo,
    push_of,
    refs,
    serve,
    sha256,
    tar_of,
    tar_with,
)

from millpond.core import limits
from millpond.protocol.gvariant import Variant
from millpond.protocol.ostree import frames
from millpond.protocol.ostree.objects import (
    Commit,
    DirMeta,
    DirTree,
    FileHeader,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
)

ART = make_artifact("art")
OTHER = make_artifact("other")
KINDS = ("commit", "dirtree", "dirmeta", "filez")
CHECKSUM = "c" * 64


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository that already holds something."""
    make_repo(tmp_path / "repo")
    assert serve(tmp_path / "repo", push_of(OTHER, "project/other/" + "c" * 64)).is_done
    return tmp_path / "repo"


def refused(repo: Path, data: bytes) -> str:
    """Why; and nothing is there that was not there before."""
    before, places = everything(repo), directories(repo)
    ended = serve(repo, data)
    assert ended.failure is not None
    assert not ended.is_done
    assert (everything(repo), directories(repo)) == (before, places)
    assert str(repo) not in ended.why, "no path of ours to a peer"
    return ended.why


# -- objects ----------------------------------------------------------------------------------------------------------


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_damaged_object_is_refused(repo: Path, kind: str, where: float) -> None:
    name = ART.of(kind)
    data = ART.objects[name]
    at = min(int(len(data) * where), len(data) - 1)
    refused(repo, push_of(ART, tar=tar_of(ART.with_data(name, flipped(data, at)))))


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_that_ends_early_or_late_is_refused(repo: Path, kind: str) -> None:
    name = ART.of(kind)
    for data in (ART.objects[name][:-1], ART.objects[name] + b"\0", b""):
        refused(repo, push_of(ART, tar=tar_of(ART.with_data(name, data))))


@pytest.mark.parametrize("kind", ["dirtree", "filez"])
def test_two_objects_that_were_swapped_are_refused(repo: Path, kind: str) -> None:
    one, other = sorted(name for name in ART.objects if name.endswith(kind))[:2]
    swapped = {**ART.objects, one: ART.objects[other], other: ART.objects[one]}
    assert "not what its name says" in refused(repo, push_of(ART, tar=tar_of(swapped.items())))


def filez(header: FileHeader, payload: bytes) -> bytes:
    return header.encode() + payload


def deflated(content: bytes) -> bytes:
    deflate = zlib.compressobj(9, wbits=-15)
    return deflate.compress(content) + deflate.flush()


PLAIN = FileHeader(5, 0, 0, 0o100644, "", [])
NAME = sha256(PLAIN.hashed() + b"hello") + ".filez"
_LINK = FileHeader(0, 0, 0, 0o120777, "target", [])
_LINK_NAME = sha256(_LINK.hashed()) + ".filez"


def renamed(header: FileHeader, content: bytes, payload: bytes) -> tuple[str, bytes]:
    """A file whose name is right, whatever else is not."""
    return sha256(header.hashed() + content) + ".filez", filez(header, payload)


BAD_FILES = {
    "a size that is too small": (NAME, filez(PLAIN._replace(size=4), deflated(b"hello"))),
    "a size that is too large": (NAME, filez(PLAIN._replace(size=6), deflated(b"hello"))),
    "no end of the compressed stream": (NAME, filez(PLAIN, deflated(b"hello")[:-1])),
    "bytes after its end": (NAME, filez(PLAIN, deflated(b"hello") + b"x")),
    "a second stream after it": (NAME, filez(PLAIN, deflated(b"hello") * 2)),
    "no compressed stream": (NAME, filez(PLAIN, b"hello")),
    "zlib's own header": (NAME, filez(PLAIN, zlib.compress(b"hello"))),
    "a header that is longer than the file": (NAME, struct.pack(">I4x", 1000) + b"x" * 20),
    "an absurd header": (NAME, struct.pack(">I4x", 0xFFFFFFFF) + b"x" * 20),
    "no zeros after the header's length": (NAME, flipped(filez(PLAIN, deflated(b"hello")), 5)),
    "a symlink with content": (_LINK_NAME, filez(_LINK, deflated(b"x"))),
    "a symlink without target": renamed(_LINK._replace(target=""), b"", b""),
    "a symlink with a size": (_LINK_NAME, filez(_LINK._replace(size=1), b"")),
    "a file with a target": renamed(PLAIN._replace(target="t"), b"hello", deflated(b"hello")),
    "a directory's mode": renamed(PLAIN._replace(mode=0o40755), b"hello", deflated(b"hello")),
    "a device's mode": renamed(PLAIN._replace(mode=0o60644), b"hello", deflated(b"hello")),
    "a mode with too many bits": renamed(PLAIN._replace(mode=0o1100644), b"hello", deflated(b"hello")),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_is_none_is_refused(repo: Path, bad: tuple[str, bytes]) -> None:
    refused(repo, push_of(ART, tar=tar_of([*ART.members, bad])))


def test_a_header_in_another_form_than_the_one_that_is_hashed_is_refused(repo: Path) -> None:
    header = PLAIN.encode()
    longer = struct.pack(">I4x", len(header) - 8 + 1) + header[8:-1] + b"\0" + header[-1:]
    refused(repo, push_of(ART, tar=tar_of([*ART.members, (NAME, longer + deflated(b"hello"))])))


def test_a_bomb_is_refused_where_it_passes_its_size_and_needs_little_memory(repo: Path) -> None:
    """256 MiB of zeros that say they are 5 bytes, and some that say they are more than there is."""
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(256)) + deflate.flush()
    for header, why in ((PLAIN, "holds more than"), (PLAIN._replace(size=2**60), "too large")):
        data = push_of(ART, tar=tar_of([*ART.members, (NAME, filez(header, bomb))]))
        tracemalloc.start()
        assert why in refused(repo, data)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 16 << 20


def tree_with(files: list[str], directories: list[str]) -> Artifact:
    """An artifact whose root has these names, in this order."""
    name = ART.of("filez")
    meta = ART.of("dirmeta").partition(".")[0]
    empty = encode_dirtree(DirTree([], []))
    tree = encode_dirtree(
        DirTree([(one, name[:64]) for one in files], [(one, sha256(empty), meta) for one in directories])
    )
    commit = encode_commit(Commit("", 0, sha256(tree), meta))
    objects = {**ART.objects, f"{sha256(empty)}.dirtree": empty, f"{sha256(tree)}.dirtree": tree}
    return Artifact(sha256(commit), {**objects, f"{sha256(commit)}.commit": commit})


@pytest.mark.parametrize(
    ("files", "below"),
    [
        (["a", "a"], []),
        (["b", "a"], []),
        (["a"], ["a"]),
        ([".."], []),
        (["."], []),
        ([""], []),
        (["a/b"], []),
        ([], [".."]),
    ],
)
def test_a_tree_that_no_directory_can_be_is_refused(repo: Path, files: list[str], below: list[str]) -> None:
    """Clients unpack it as root."""
    refused(repo, push_of(tree_with(files, below)))


def test_a_tree_with_the_names_sorted_is_accepted(repo: Path) -> None:
    assert serve(repo, push_of(tree_with(["a", "b"], ["c"]))).is_done


def test_a_directory_with_the_mode_of_a_file_is_refused(repo: Path) -> None:
    for mode in (0o100755, 0o755, 0o1040755):
        data = encode_dirmeta(DirMeta(0, 0, mode, []))
        refused(repo, push_of(ART, tar=tar_of([*ART.members, (f"{sha256(data)}.dirmeta", data)])))


def test_metadata_that_is_too_large_is_refused_before_it_is_read(repo: Path) -> None:
    member = tarfile.TarInfo(f"{CHECKSUM}.dirtree")
    member.size = limits.OSTREE_METADATA_BYTES + 1
    header = member.tobuf(tarfile.GNU_FORMAT)
    assert "the most" in refused(repo, push_of(ART, tar=header + b"x" * 1000))


# -- closures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in ART.objects if name not in OTHER.objects], ids=lambda name: name[-12:]
)
def test_a_commit_that_lacks_anything_is_refused(repo: Path, name: str) -> None:
    assert "missing" in refused(repo, push_of(ART, tar=tar_of(ART.without(name))))


def test_a_commit_whose_stored_part_was_damaged_is_refused(repo: Path) -> None:
    """What is stored is verified before it counts."""
    name = OTHER.of("filez")
    path = repo / "objects" / name[:2] / name[2:]
    path.write_bytes(flipped(path.read_bytes(), 30))
    assert name[:64] in refused(repo, push_of(OTHER, tar=tar_of(OTHER.without(name))))


def test_what_is_stored_and_sound_need_not_be_sent_again(repo: Path) -> None:
    assert serve(repo, push_of(OTHER, tar=tar_of([]))).is_done
    assert refs(repo)[REF] == OTHER.commit


def test_an_object_that_is_there_is_never_replaced(repo: Path) -> None:
    """The same content, otherwise compressed: as good, and whoever is reading it goes on."""
    name = OTHER.of("filez")
    path = repo / "objects" / name[:2] / name[2:]
    header = 8 + int.from_bytes(path.read_bytes()[:4], "big")
    content = zlib.decompress(path.read_bytes()[header:], -15)
    deflate = zlib.compressobj(0, wbits=-15)
    path.write_bytes(path.read_bytes()[:header] + deflate.compress(content) + deflate.flush())
    before = (path.stat().st_ino, path.read_bytes())
    assert before[1] != OTHER.objects[name]
    assert serve(repo, push_of(OTHER)).is_done
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_an_object_that_was_damaged_here_is_healed_by_the_push_that_brings_it(repo: Path) -> None:
    name = OTHER.of("filez")
    path = repo / "objects" / name[:2] / name[2:]
    sound = path.read_bytes()
    path.write_bytes(b"rubbish" + sound)
    ended = serve(repo, push_of(OTHER))
    assert ended.is_done
    assert path.read_bytes() == sound
    assert "damaged here" in ended.said[0]


# -- tar members ------------------------------------------------------------------------------------------------------


def member(name: str, **attributes: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


OBJECT = f"{CHECKSUM}.filez"
BAD_MEMBERS = {
    "above": member("../" + OBJECT),
    "absolute": member("/tmp/" + OBJECT),
    "in a directory": member("objects/" + OBJECT),
    "upper case": member(OBJECT.upper()),
    "no type": member(CHECKSUM),
    "an unknown type": member(f"{CHECKSUM}.file"),
    "a long checksum": member(f"{CHECKSUM}0.filez"),
    "a short checksum": member(f"{CHECKSUM[1:]}.filez"),
    "a ref": member("refs/heads/a"),
    "a long name": member("x" * 200 + OBJECT),
    "a symlink": member(ART.of("filez"), type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": member(ART.of("filez"), type=tarfile.LNKTYPE, linkname="config"),
    "a directory": member(OBJECT, type=tarfile.DIRTYPE),
    "a fifo": member(ART.of("filez"), type=tarfile.FIFOTYPE),
    "a block device": member(ART.of("filez"), type=tarfile.BLKTYPE),
    "a character device": member(ART.of("filez"), type=tarfile.CHRTYPE),
    "a contiguous file": member(ART.of("filez"), type=tarfile.CONTTYPE),
    "a sparse file": member(ART.of("filez"), type=tarfile.GNUTYPE_SPARSE),
    "setuid": member(ART.of("filez"), mode=0o4755),
    "setgid": member(ART.of("filez"), mode=0o2755),
    "sticky": member(ART.of("filez"), mode=0o1644),
    "world-writable": member(ART.of("filez"), mode=0o666),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_a_member_that_is_no_object_is_refused(repo: Path, bad: tarfile.TarInfo, tmp_path: Path) -> None:
    """Whatever else is there: all that the commit needs comes as well."""
    data = ART.objects.get(bad.name, b"")
    bad.size = len(data)
    rest = tar_of(ART.without(bad.name), tar_format=tarfile.GNU_FORMAT)
    why = refused(repo, push_of(ART, tar=tar_with(bad, data, rest)))
    assert "missing" not in why
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_the_same_members_with_the_mode_that_clients_send_are_accepted(repo: Path) -> None:
    name = ART.of("filez")
    good = member(name, mode=0o644, size=len(ART.objects[name]))
    rest = tar_of(ART.without(name), tar_format=tarfile.GNU_FORMAT)
    assert serve(repo, push_of(ART, tar=tar_with(good, ART.objects[name], rest))).is_done


@pytest.mark.parametrize("key", ["path", "linkpath", "GNU.sparse.realsize", "hdrcharset", "SCHILY.xattr.user.a"])
def test_an_extended_header_that_makes_something_else_of_a_member_is_refused(repo: Path, key: str) -> None:
    bad = member(ART.of("filez"), pax_headers={key: "../../evil"})
    bad.size = len(ART.objects[bad.name])
    assert key in refused(repo, push_of(ART, tar=bad.tobuf(tarfile.PAX_FORMAT) + tar_of(ART.members)))


def pax(records: bytes) -> bytes:
    header = member("pax", type=tarfile.XHDTYPE, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    return header + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"9 mtime=1",
        b"0 mtime=1\n",
        b"99 mtime=1\n",
        b"5 a\n\n",
        b"9 size=-1\n",
        b"999999 size=1\n",
        b"11 size=1\xff1\n",
    ],
)
def test_a_damaged_extended_header_is_refused(repo: Path, records: bytes) -> None:
    refused(repo, push_of(ART, tar=pax(records) + tar_of(ART.members)))


def test_extended_headers_of_no_end_of_none_and_doubled_ones_are_refused(repo: Path) -> None:
    huge = member("pax", type=tarfile.XHDTYPE, size=limits.OSTREE_PAX_BYTES + 1).tobuf(tarfile.USTAR_FORMAT)
    good = pax(b"11 mtime=1\n"[:11])
    for tar in (huge + bytes(100_000), good + good + tar_of(ART.members), good + bytes(10_240 - len(good))):
        refused(repo, push_of(ART, tar=tar))


def test_a_global_header_and_gnu_long_names_are_refused(repo: Path) -> None:
    for kind in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        header = member("././@LongLink", type=kind, size=10).tobuf(tarfile.GNU_FORMAT) + bytes(512)
        refused(repo, push_of(ART, tar=header + tar_of(ART.members)))


def test_a_tar_with_a_wrong_checksum_or_of_an_unknown_format_is_refused(repo: Path) -> None:
    tar = tar_of(ART.members, tar_format=tarfile.USTAR_FORMAT)
    refused(repo, push_of(ART, tar=flipped(tar, 0)))
    refused(repo, push_of(ART, tar=flipped(tar, 150)))
    old = bytearray(tar[:512])
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    old[148:155] = b"%06o\0" % sum(old)
    assert "format" in refused(repo, push_of(ART, tar=bytes(old) + tar[512:]))


def test_sizes_that_no_object_has_are_refused(repo: Path) -> None:
    for size in (2**63 - 1, 2**40):
        header = member(OBJECT, size=size).tobuf(tarfile.GNU_FORMAT)
        refused(repo, push_of(ART, tar=header + b"x" * 10_000))
    negative = bytearray(member(OBJECT, size=10).tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b" " * 8
    negative[148:155] = b"%06o\0" % sum(negative)
    refused(repo, push_of(ART, tar=bytes(negative) + bytes(10_000)))


def test_the_same_object_twice_is_refused(repo: Path) -> None:
    assert "twice" in refused(repo, push_of(ART, tar=tar_of([*ART.members, ART.members[0]])))


# -- what was refused before ------------------------------------------------------------------------------------------


def test_a_push_that_ends_anywhere_is_refused(repo: Path) -> None:
    """Every byte of the messages and of the first members, and then one of every block."""
    whole = push_of(ART)
    begin = whole.index(b"ustar") - 257
    points = [*range(begin + 1100), *range(begin + 1100, len(whole) - 10, 509), *range(len(whole) - 10, len(whole))]
    before = everything(repo)
    for at in points:
        ended = serve(repo, whole[:at])
        assert not ended.is_done, at
        assert ended.failure is not None, at
    assert everything(repo) == before
    assert serve(repo, whole).is_done


def frame(command: int, pairs: list[tuple[str, Variant]]) -> bytes:
    return frames.encode_message(command, pairs)


def raw(command: int, body: bytes, *, version: int = 1, order: bytes = b"l") -> bytes:
    return order + bytes([version, command]) + len(body).to_bytes(2, "little") + body


INFO = frames.info(1, {})
WANTED = frames.update({REF: (OLD, ART.commit)})
BAD_STARTS = {
    "no protocol": b"GET / HTTP/1.1\r\n\r\n",
    "another byte order": b"m" + INFO[1:],
    "another version": raw(0, INFO[5:], version=2),
    "an unknown command": raw(9, INFO[5:]),
    "an update first": WANTED,
    "objects first": frames.putobjects(),
    "done first": frames.done(),
    "a status first": frames.status(result=True, message=""),
    "info without keys": raw(0, b""),
    "info without refs": frame(0, [("mode", Variant("i", 1))]),
    "info without mode": frame(0, [("refs", Variant("a{ss}", []))]),
    "info with a mode of another type": frame(0, [("mode", Variant("u", 1)), ("refs", Variant("a{ss}", []))]),
    "info with more": frame(0, [("mode", Variant("i", 1)), ("refs", Variant("a{ss}", [])), ("x", Variant("i", 1))]),
    "info with a key twice": frame(0, [("mode", Variant("i", 1))] * 2 + [("refs", Variant("a{ss}", []))]),
    "info of rubbish": raw(0, b"\x07rubbish" * 9),
    "info with a ref that is none": frames.info(1, {"../config": "x"}),
    "info twice": INFO + INFO,
    "objects without update": INFO + frames.putobjects() + tar_of(ART.members) + frames.done(),
    "an update of rubbish": INFO + raw(1, b"\xff" * 40),
    "an update of texts": INFO + frame(1, [(REF, Variant("s", ART.commit))]),
    "done with more in it": INFO + frame(4, [("x", Variant("i", 1))]),
    "an update twice": INFO + WANTED + WANTED,
    "info after the update": INFO + WANTED + INFO,
    "objects with more in it": INFO + WANTED + frame(2, [("x", Variant("i", 1))]),
    "no done after the objects": INFO + WANTED + frames.putobjects() + tar_of(ART.members) + INFO,
    "rubbish in place of objects": INFO + WANTED + frames.putobjects() + b"rubbish" * 3000,
}  # fmt: skip


@pytest.mark.parametrize("data", BAD_STARTS.values(), ids=BAD_STARTS.keys())
def test_messages_that_are_none_or_in_another_order_are_refused(repo: Path, data: bytes) -> None:
    refused(repo, data)


BAD_REFS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    ".hidden",
    "a/.b",
    "-a",
    "a b",
    "a\nb",
    "é",
    "a:b",
    "a\\b",
]
BAD_REFS += ["a/" + "b" * 256, "/".join(["abc"] * 300), "project/other"]


@pytest.mark.parametrize("ref", BAD_REFS, ids=lambda ref: ascii(ref)[:30])
def test_a_bad_ref_is_refused_with_a_status_that_says_why(repo: Path, ref: str) -> None:
    """The last one is a directory of a ref that is here."""
    data = INFO + frames.update({ref: (OLD, ART.commit)}) + frames.done()
    before = everything(repo)
    ended = serve(repo, data)
    assert [command for command, _ in ended.messages] == [frames.INFO, frames.STATUS]
    assert ended.messages[1][1]["result"] is False
    assert "ref" in str(ended.messages[1][1]["message"])
    assert everything(repo) == before


BAD_COMMITS = ["", "x" * 64, "A" * 64, OLD, "a" * 63, "a" * 65, "../" * 21 + "a"]


@pytest.mark.parametrize("commit", BAD_COMMITS)
def test_a_bad_commit_is_refused_with_a_status(repo: Path, commit: str) -> None:
    ended = serve(repo, INFO + frames.update({REF: (OLD, commit)}) + frames.done())
    assert ended.messages[1][1]["result"] is False


def test_no_refs_and_too_many_are_refused_with_a_status(repo: Path) -> None:
    many = {f"p/e/{number}": (OLD, ART.commit) for number in range(limits.OSTREE_REFS + 1)}
    for wanted in ({}, many):
        ended = serve(repo, INFO + frames.update(wanted) + frames.done())
        assert ended.messages[1][1]["result"] is False


def test_a_ref_below_another_is_refused_with_a_status(repo: Path) -> None:
    other = next(iter(refs(repo)))
    for wanted in ({other + "/below": ART.commit}, {"p/a": ART.commit, "p/a/b": ART.commit}):
        ended = serve(
            repo, INFO + frames.update({ref: (OLD, commit) for ref, commit in wanted.items()}) + frames.done()
        )
        assert ended.messages[1][1]["result"] is False


# -- and what it accepts ----------------------------------------------------------------------------------------------

FORMATS = {"PAX": tarfile.PAX_FORMAT, "GNU": tarfile.GNU_FORMAT, "USTAR": tarfile.USTAR_FORMAT}


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS.keys())
def test_every_format_and_byte_order_that_clients_have_is_accepted(repo: Path, tar_format: int, order: str) -> None:
    commits = {REF: ART.commit, WEAK: ART.commit}
    ended = serve(repo, conversation(commits, tar_of(ART.members, tar_format=tar_format), order=order))
    assert ended.is_done, ended.why
    assert [command for command, _ in ended.messages] == [frames.INFO, frames.STATUS, frames.DONE]
    assert refs(repo) == listed(repo)
    assert commits.items() <= refs(repo).items()
    assert not list((repo / "tmp").glob("millpond-*"))


def test_the_same_push_twice_is_accepted_and_the_last_writer_wins(repo: Path) -> None:
    for artifact in (ART, ART, OTHER):
        assert serve(repo, push_of(artifact)).is_done
        assert refs(repo)[REF] == listed(repo)[REF] == artifact.commit


def test_what_belongs_to_no_commit_is_not_stored(repo: Path) -> None:
    more = make_artifact("stray")
    assert serve(
        repo, push_of(ART, tar=tar_of([*ART.members, (more.of("commit"), more.objects[more.of("commit")])]))
    ).is_done
    assert not (repo / "objects" / more.commit[:2] / f"{more.commit[2:]}.commit").exists()


def test_signatures_are_kept_and_who_signed_first_has_signed(repo: Path) -> None:
    from millpond.protocol.gvariant import encode

    first = encode("a{sv}", [("ostree.gpgsigs", Variant("aay", [b"first"]))])
    second = encode("a{sv}", [("ostree.gpgsigs", Variant("aay", [b"second"]))])
    path = repo / "objects" / ART.commit[:2] / f"{ART.commit[2:]}.commitmeta"
    for signature in (first, second):
        assert serve(repo, push_of(ART, tar=tar_of([*ART.members, (f"{ART.commit}.commitmeta", signature)]))).is_done
        assert path.read_bytes() == first
    refused(repo, push_of(ART, tar=tar_of([*ART.members, (f"{ART.commit}.commitmeta", b"rubbish")])))


def test_sig_and_sizes2_are_taken_and_forgotten(repo: Path) -> None:
    members = [*ART.members, (f"{ART.commit}.sig", b"x"), (f"{ART.commit}.sizes2", b"y")]
    assert serve(repo, push_of(ART, tar=tar_of(members))).is_done
    assert not list((repo / "objects").rglob("*.si*"))


def test_nothing_but_the_refs_that_were_asked_for_is_told(repo: Path) -> None:
    """A client that is told another commit for one of its refs sends done, and its objects all the same."""
    ref, commit = next(iter(refs(repo).items()))
    cases: list[tuple[dict[str, str], dict[str, str]]] = [
        ({}, {}),
        ({REF: OLD}, {}),
        ({REF: OLD, ref: OLD}, {ref: commit}),
    ]
    for asked, told in cases:
        ended = serve(repo, frames.info(1, asked) + frames.done())
        assert ended.failure is None
        assert ended.messages == [(frames.INFO, {"mode": 1, "refs": told, "pull_url": "https://cache.test/artifacts"})]


def test_done_in_place_of_objects_is_no_failure_and_changes_nothing(repo: Path) -> None:
    before = everything(repo)
    assert serve(repo, INFO + WANTED + frames.done()).failure is None
    assert everything(repo) == before
