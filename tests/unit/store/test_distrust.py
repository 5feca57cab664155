"""What a power loss may have damaged is not opened: LMDB would die of it, and again at every start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from unit.store.repositories import Repository, blob

from millpond.store.repository import distrust, filesystem, trust
from millpond.store.repository.layout import Layout
from millpond.store.uses.table import Uses

Other = Callable[[], None]


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Other:
    """The machine has another boot id from here on."""
    return lambda: monkeypatch.setattr(filesystem, "boot_id", lambda: "another boot")


@pytest.fixture
def running(tmp_path: Path) -> Repository:
    """A repository as it lies there while it is in use."""
    repository = Repository(tmp_path / "repo")
    repository.open().put_many([blob(b"content")])
    copy = repository.copy(tmp_path / "left")
    repository.close()
    return copy


def never_opened(*_: object, **__: object) -> None:
    raise AssertionError("it was opened")


def test_an_index_of_another_boot_or_another_file_is_not_opened(
    running: Repository, reboot: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "Index", never_opened)
    layout = Layout(str(running.path))
    assert trust.believed(layout) is None  # another file
    distrust.vouch(layout.index, clean=False)
    with pytest.raises(AssertionError, match="was opened"):
        trust.believed(layout)
    reboot()
    assert trust.believed(layout) is None


def test_an_index_that_was_being_made_anew_is_not_opened(running: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(str(running.path))
    (running.path / "index" / "vouched").unlink()
    monkeypatch.setattr(trust, "Index", never_opened)
    assert trust.believed(layout) is None


def test_after_a_clean_end_another_boot_believes_it(tmp_path: Path, reboot: Other) -> None:
    repository = Repository(tmp_path / "repo")
    repository.open().put_many([blob(b"content")])
    repository.close()
    reboot()
    assert distrust.is_vouched(f"{repository.path}/index")
    index = trust.believed(Layout(str(repository.path)))
    assert index is not None
    index.close()
    repository.open()  # from its first write on it vouches for this boot only
    assert (repository.path / "index" / "vouched").read_text().startswith("another boot ")
    repository.close()


def test_uses_of_another_boot_are_not_opened(tmp_path: Path, reboot: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    Uses(f"{tmp_path}").close()
    assert distrust.is_vouched(f"{tmp_path}")
    uses = Uses(f"{tmp_path}")
    reboot()
    assert not distrust.is_vouched(f"{tmp_path}")
    uses.close()
    assert distrust.is_vouched(f"{tmp_path}")
