"""A store that is closed while threads still work on it says so, and touches nothing of anybody else's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unit.store.repositories import Repository, blob, noise, read

from millpond.core.digest import Digest
from millpond.core.errors import NotReady


def test_what_comes_too_late_is_told_to_come_again(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "repo")
    store = repository.open()
    outcomes: list[Any] = []

    def put(caller: int) -> None:
        for i in range(100):
            data = noise(300_000 if i % 2 else 1000, f"{caller}/{i}")
            try:
                outcomes.append(store.put_many([blob(data)])[0] or data)
            except NotReady as why:
                outcomes.append(why)
            if len(outcomes) == 20:
                store.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(4)))
    stored = [outcome for outcome in outcomes if isinstance(outcome, bytes)]
    assert all(isinstance(outcome, bytes | NotReady) for outcome in outcomes)
    assert len(outcomes) == 400
    store = repository.open()
    assert len(stored) >= 20
    assert all(read(store, Digest.of(data)) == data for data in stored)
    repository.close()
