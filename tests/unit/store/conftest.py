"""A repository to look into."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.store.repositories import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """Open, and closed at the end."""
    repository = Repository(tmp_path / "repo")
    repository.open()
    yield repository
    repository.close()
