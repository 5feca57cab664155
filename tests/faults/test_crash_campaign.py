"""The crash campaign in short: two servers on one repository under load, and something killed or stopped every moment.

``make soak`` is the long one. Each test prints its seed when something was found, and the command that draws the same
lots again.
"""

import secrets
from pathlib import Path

import pytest
from faults.campaign.campaign import ROOMY, TIGHT, Block, Kind
from system.parts import require

SHORT_STOP_SECONDS = 1.0


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "rounds"), [(ROOMY, 8), (TIGHT, 17)], ids=["without eviction", "evicting"])
def test_whatever_is_killed_what_was_acknowledged_survives_whole(tmp_path: Path, kind: Kind, rounds: int) -> None:
    require("tracing")
    said: list[str] = []
    seed = f"{secrets.token_hex(4)}.0"
    block = Block(seed, kind, rounds, tmp_path / "block", SHORT_STOP_SECONDS, pause_seconds=0.4, tell=said.append)
    outcome = block.fight()
    assert not outcome.findings, "\n".join([f"seed {seed}", *said, *outcome.findings])
    assert outcome.rounds == rounds
    assert outcome.counts["names acknowledged"] > rounds
