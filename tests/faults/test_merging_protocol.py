"""A touch log is begun while upkeep merges: no promise is noted where nobody looks (I8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from faults.turns import Choice, Pauses, Turns, orders
from unit.store.repositories import known

from millpond.disk import locks
from millpond.store.uses import merging
from millpond.store.uses.merging import Merger
from millpond.store.uses.table import Uses
from millpond.store.uses.touch_log import Kind, TouchLog

KEYS = [bytes([1]) + bytes([number]) * 32 for number in range(3)]
NOW_MS = 1_700_000_000_000


@pytest.fixture
def uses(tmp_path: Path) -> Iterator[Uses]:
    uses = Uses(str(tmp_path / "uses"))
    yield uses
    uses.close()


@pytest.mark.parametrize("log_bytes", [1, 4096], ids=["a log for each line", "one log"])
def test_every_promise_is_seen_in_every_order(
    uses: Uses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_bytes: int
) -> None:
    pauses = Pauses(monkeypatch)
    real = locks.lock

    def lock(descriptor: int, *, exclusive: bool) -> None:
        pauses.pause("having made a log that is not locked yet")
        while pauses.turns is not None and not locks.try_lock(descriptor, exclusive=exclusive):
            pauses.pause("waiting for a lock", waits=True)
        real(descriptor, exclusive=exclusive)

    monkeypatch.setattr(locks, "lock", lock)
    monkeypatch.setattr(merging, "_NEWBORN_SECONDS", -1)  # every log is old enough to go
    pauses.after(merging, "_names", "knowing the logs")
    pauses.after(merging._Fold, "write", "having merged")
    pauses.before(merging.os, "unlink", "before removing")
    pauses.after(TouchLog, "append", "having noted")
    runs = 0

    def run(prefix: Sequence[Choice]) -> Turns:
        nonlocal runs
        runs += 1
        directory = tmp_path / f"touch{runs}"
        directory.mkdir()
        merger = Merger(str(directory), uses, lambda: NOW_MS)
        logs: list[TouchLog] = []

        def notes() -> None:
            logs.append(TouchLog(str(directory), lambda: NOW_MS + runs, log_bytes=lambda: log_bytes))
            for key in KEYS:
                logs[0].append(Kind.LEASED, [key])

        def merges() -> None:
            for _ in range(2):
                merger.merge()

        turns = Turns(prefix)
        turns.begin("worker", notes)
        turns.begin("merger", merges)
        pauses.turns = turns
        try:
            turns.run()
        finally:
            pauses.turns = None
        seen = set(known(uses, KEYS)) | merger.reader().read().keys
        assert seen == set(KEYS), turns.story
        logs[0].close()
        merger.merge()
        uses.forget(KEYS)
        return turns

    for _ in orders(run, switches=3):
        pass
    assert runs > 50
