"""The parsers of the OSTree generation: whoever may push or pull chooses these bytes.

The rule is that of ``targets.py``; what is accepted is encoded again as it was, so that no hash stands for two readings.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable

from fuzz.targets import Target
from millpond.core.errors import InvalidRequest, RefusedToStart, TooMuch
from millpond.protocol.gvariant import NotNormal, Variant, decode, encode
from millpond.protocol.ostree import frames, names, objects, summary, tar
from millpond.protocol.ostree.filez import FilezCheck, stored_file
from millpond.store.ostree import config

_TYPES = ["a{sv}", "(ss)", "v", objects.COMMIT_TYPE, objects.DIRTREE_TYPE, objects.STORED_FILE_TYPE, "(ma{is}a(yt)aad)"]
_A, _B = "a" * 64, "b" * 64
_COMMIT = objects.Commit("", 1_500_000_000, _A, _B)
_TREE = objects.DirTree([("a", _A), ("b", _B)], [("c", _A, _B)])
_META = objects.DirMeta(0, 0, 0o40755, [(b"user.a\0", b"b")])
_HEADER = objects.FileHeader(5, 0, 0, 0o100644, "", [(b"user.a\0", b"b")])
_FILE = stored_file(_HEADER, b"hello")


def fuzz_gvariant(data: bytes) -> None:
    for order in ("little", "big"):
        for kind in _TYPES:
            with contextlib.suppress(NotNormal):
                assert encode(kind, decode(kind, data, order=order), order=order) == data
    with contextlib.suppress(NotNormal, UnicodeDecodeError):
        decode(data[:20].decode("ascii"), data[20:])


GVARIANTS = (
    encode("a{sv}", [("mode", Variant("i", 1)), ("refs", Variant("a{ss}", [("a", "b")]))]),
    objects.encode_commit(_COMMIT),
    objects.encode_dirtree(_TREE),
    _HEADER.encode()[8:],
)


def fuzz_ostree_frame(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        order, command, size = frames.parse_header(data[: frames.HEADER_BYTES])
        assert 0 <= size <= frames.BODY_BYTES
        message = frames.parse_body(command, data[frames.HEADER_BYTES :], order)
        if command == frames.UPDATE:
            again = frames.update(message, order=order)  # type: ignore[arg-type]
            assert frames.parse_body(command, again[frames.HEADER_BYTES :], order) == message


FRAMES = (
    frames.info(1, {"a/b": _A}, "https://x"),
    frames.info(0, {}, order="big"),
    frames.update({"project/element/key": (names.NOTHING, _A), "b": (_A, _B)}),
    frames.status(result=False, message="no"),
    frames.done(),
)


def fuzz_ostree_metadata(data: bytes) -> None:
    encoders: dict[str, Callable[..., bytes]] = {
        "dirtree": objects.encode_dirtree,
        "dirmeta": objects.encode_dirmeta,
    }
    for kind in names.METADATA_TYPES:
        with contextlib.suppress(InvalidRequest):
            found = objects.parse_metadata(kind, data)
            if kind in encoders:
                assert encoders[kind](found) == data
    with contextlib.suppress(InvalidRequest):
        objects.check_commitmeta(data)


METADATA = (objects.encode_commit(_COMMIT), objects.encode_dirtree(_TREE), objects.encode_dirmeta(_META))


def fuzz_ostree_file(data: bytes) -> None:
    """Nothing but the true file has the name, however it is cut into pieces, but for what lies in no hash."""
    check = FilezCheck(_FILE[0])
    with contextlib.suppress(InvalidRequest, TooMuch):
        for at in range(0, len(data), 7):
            check.feed(data[at : at + 7])
        assert check.finish() == _HEADER


def fuzz_ostree_tar(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest, TooMuch):
        member = tar.parse_member(data[: tar.BLOCK_BYTES].ljust(tar.BLOCK_BYTES, b"\0"))
        if member is not None and not member.is_pax:
            names.parse_object(member.name)
            assert member.size >= 0
    with contextlib.suppress(InvalidRequest):
        size = tar.parse_pax(data)
        assert size is None or size >= 0


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(mode="w", fileobj=stream, format=tarfile.PAX_FORMAT) as made:
        member = tarfile.TarInfo(f"{_A}.filez")
        member.mtime = 1.5
        made.addfile(member)
    return stream.getvalue()


def fuzz_ostree_summary(data: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        found = summary.decode_summary(data)
        with contextlib.suppress(NotNormal, OverflowError):
            assert summary.decode_summary(summary.encode_summary(found)) == found


def fuzz_ostree_names(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    if names.is_ref(text):
        assert text.isascii()
        assert not {"", ".", ".."} & set(text.split("/"))
    with contextlib.suppress(InvalidRequest):
        checksum, kind = names.parse_object(text)
        assert names.loose_path(checksum, kind).count("/") == 2


def fuzz_ostree_config(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(RefusedToStart):
        before = config.parse(text)
        changed = config.with_keys(text, config.SECTION, {"quota-bytes": "5"})
        after = config.parse(changed)
        assert (after.quota_bytes, after.reserve_bytes) == (5, before.reserve_bytes)
        assert (after.has_tombstones, after.updates_summary) == (before.has_tombstones, before.updates_summary)


OSTREE_TARGETS = {
    "gvariant": Target(fuzz_gvariant, GVARIANTS),
    "ostree_frame": Target(fuzz_ostree_frame, FRAMES),
    "ostree_metadata": Target(fuzz_ostree_metadata, METADATA),
    "ostree_file": Target(fuzz_ostree_file, (_FILE[1],)),
    "ostree_tar": Target(
        fuzz_ostree_tar, (_tar()[:512], _tar()[512:530], _tar()[1024:1536], b"11 mtime=1\n9 size=5\n")
    ),
    "ostree_summary": Target(
        fuzz_ostree_summary,
        (summary.encode_summary(summary.Summary({"a": summary.Listed(_A, 5, 7)}, 9, has_tombstones=False)),),
    ),
    "ostree_names": Target(fuzz_ostree_names, (b"project/element/key", f"objects/{_A[:2]}/{_A[2:]}.filez".encode())),
    "ostree_config": Target(
        fuzz_ostree_config,
        (config.NEW.encode(), b"[core]\nrepo_version=1\nmode=archive\n\n[millpond]\nquota-bytes=9\n# x\n"),
    ),
}
