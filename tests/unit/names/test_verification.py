"""Damage of each class: what is opened is sound, what is not is refused in a sentence that says what to do."""

import fcntl
import os
import shutil
from pathlib import Path

import lmdb
import pytest

from millpond.core.digest import Digest
from millpond.core.errors import RefusedToStart
from millpond.core.names import Name, Namespace
from millpond.names import verification
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames

PAGE_BYTES = 4096
META_BYTES = 16 + 136
COMMIT_AT, FLAGS_AT = 16 + 128, (44, 92)


def name(key: object) -> Name:
    return Name("", Namespace.ASSET_BLOB, str(key))


def binding(key: object) -> Binding:
    return Binding(Digest.of(str(key).encode()), 1)


@pytest.fixture(params=[5, 6], ids=["newest state in the first page", "in the second"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Names in a handful of commits, closed."""
    index = LmdbNames(tmp_path / "names")
    for key in range(request.param):
        index.bind([(name(key), binding(key))])
    index.close()
    return tmp_path / "names"


def held(path: Path) -> dict[Name, Binding]:
    index = LmdbNames(path, must_exist=True, read_only=True)
    try:
        return dict(index.names())
    finally:
        index.close()


def refusal(path: Path) -> str:
    with pytest.raises(RefusedToStart) as refused:
        LmdbNames(path, must_exist=True)
    sentence = str(refused.value)
    assert sentence.endswith(f"stop every server of {path.parent}, then run: millpond names restore {path.parent}")
    assert "\n" not in sentence
    return sentence


def test_a_flipped_bit_of_the_meta_pages_is_refused_or_changes_nothing(path: Path) -> None:
    whole, before = (path / "data.mdb").read_bytes(), held(path)
    refused = 0
    for at in (page + offset for page in (0, PAGE_BYTES) for offset in range(META_BYTES)):
        for bit in range(8) if at % PAGE_BYTES in (COMMIT_AT, *FLAGS_AT) else (1, 2):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            (path / "data.mdb").write_bytes(damaged)
            try:
                verification.check(path, must_exist=True)
            except verification.Unsound:
                refused += 1
            else:
                assert held(path) == before, (at, bit)
    assert refused > META_BYTES


def test_a_zeroed_page_is_refused(path: Path) -> None:
    whole = (path / "data.mdb").read_bytes()
    refused = 0
    for at in range(0, len(whole), PAGE_BYTES):
        (path / "data.mdb").write_bytes(whole[:at] + bytes(PAGE_BYTES) + whole[at + PAGE_BYTES :])
        try:
            verification.check(path, must_exist=True)
        except verification.Unsound:
            assert "damaged" in refusal(path)
            refused += 1
    assert refused >= 5  # two meta pages, and the roots of the tables; what else there is was free


def test_a_truncated_file_is_refused(path: Path) -> None:
    size = (path / "data.mdb").stat().st_size
    for length in (1, 100, PAGE_BYTES, 2 * PAGE_BYTES, size // 2):
        copy = path.with_name(f"cut-{length}")
        shutil.copytree(path, copy)
        os.truncate(copy / "data.mdb", length)
        assert "damaged" in refusal(copy)


@pytest.mark.parametrize("missing", ["the file", "its content", "the directory"])
def test_missing_names_are_refused_where_there_must_be_some(path: Path, missing: str) -> None:
    (path / "data.mdb").unlink()
    if missing == "its content":
        (path / "data.mdb").touch()
    if missing == "the directory":
        shutil.rmtree(path)
    assert "they are missing" in refusal(path)


def test_an_environment_without_names_is_refused_where_there_must_be_some(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path / "names")).close()
    assert "they hold nothing" in refusal(tmp_path / "names")


def test_a_power_loss_while_they_are_made_leaves_none(tmp_path: Path) -> None:
    (tmp_path / "names" / "new").mkdir(parents=True)
    (tmp_path / "names" / "new" / "data.mdb").write_bytes(bytes(8192))
    index = LmdbNames(tmp_path / "names")
    index.bind([(name(1), binding(1))])
    index.close()
    assert held(tmp_path / "names") == {name(1): binding(1)}


def test_a_file_that_others_write_to_is_not_judged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(directory: Path, *, must_exist: bool) -> None:
        raise verification.Unsound("looked at while it was written to")

    descriptor = os.open(path / "open.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    monkeypatch.setattr(verification, "check", judge)
    index = LmdbNames(path)
    index.close()
    os.close(descriptor)
    with pytest.raises(RefusedToStart):
        LmdbNames(path)


def test_a_reader_verifies_as_well(path: Path) -> None:
    whole = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(whole[: PAGE_BYTES * 2] + bytes(len(whole) - PAGE_BYTES * 2))
    with pytest.raises(RefusedToStart, match="millpond names restore"):
        LmdbNames(path, read_only=True)
