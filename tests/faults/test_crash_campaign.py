"""The crash campaign in short: two servers on one repository under load, and something killed or stopped every moment.

``make soak`` is the long one. Each test prints its seed when something was found, and the command that draws the same
lots again.
"""

import itertools
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.campaign.campaign import ROOMY, TIGHT, Block, Kind
from faults.campaign.ledger import Ledger
from faults.campaign.load import until
from faults.campaign.watch import Watch
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


def test_the_watch_sees_what_is_taken_removed_files_that_are_open_included(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    (repo / "segments").mkdir(parents=True)
    ledger = Ledger(safe_bytes=0)
    watch = Watch(ledger, repo, quota_bytes=1 << 20)
    watch.start()
    try:
        (repo / "segments" / "00000001.seg").write_bytes(bytes(900_000))
        reader = [
            sys.executable,
            "-c",
            "import sys, time; held = open(sys.argv[1]); print(); time.sleep(60)  # millpond",
        ]
        with subprocess.Popen([*reader, repo / "segments" / "00000001.seg"], stdout=subprocess.PIPE) as reading:
            try:
                assert reading.stdout
                reading.stdout.readline()
                (repo / "segments" / "00000001.seg").unlink()
                (repo / "other").write_bytes(bytes(200_000))
                assert until(lambda: bool(ledger.findings), 30)
            finally:
                reading.kill()
    finally:
        watch.stop()
    assert "'removed and still open': 901120" in ledger.findings[0]
    assert watch.peak_bytes > 1_100_000


def test_the_watch_accuses_nobody_of_files_that_were_not_there_at_one_time(tmp_path: Path) -> None:
    """One goes, another comes, all the time: never more than one of them is there."""
    repo = tmp_path / "repo"
    for directory in ("a", "b"):
        (repo / directory).mkdir(parents=True)
        for number in range(2000):  # so that a look lasts
            (repo / directory / f"{number}").touch()
    ledger = Ledger(safe_bytes=0)
    watch = Watch(ledger, repo, quota_bytes=1 << 20)
    watch.start()
    try:
        end, names = time.monotonic() + 2, itertools.count()
        while time.monotonic() < end:
            for directory in ("a", "b"):
                file = repo / directory / f"file {next(names)}"
                file.write_bytes(bytes(1 << 19))
                time.sleep(0.01)
                file.unlink()
    finally:
        watch.stop()
    assert not ledger.findings
    assert watch.peak_bytes < 1 << 20


def _processes_of(repo: Path) -> list[int]:
    """Every process that has something of ``repo`` on its command line or open."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            held = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if os.fsencode(repo) in command or any(target.startswith(str(repo)) for target in held):
            found.append(int(pid))
    return found


def test_a_campaign_that_is_ended_while_it_starts_a_server_leaves_none(tmp_path: Path) -> None:
    repo = tmp_path / "block-0" / "repo"
    command = [sys.executable, "-m", "faults.campaign", "--rounds", "1", "--directory", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    campaign = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: bool(_processes_of(repo)), 30)
        campaign.send_signal(signal.SIGTERM)
        assert campaign.wait(60) == 128 + signal.SIGTERM
        assert _processes_of(repo) == []
    finally:
        campaign.kill()
        for pid in _processes_of(repo):
            os.kill(pid, signal.SIGKILL)
