"""The reopened store, looked at from inside: nothing unverified is listed, nothing is forgotten on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from faults.campaign.ledger import Ledger
from unit.store.repositories import Repository, read

from millpond.core.digest import Digest
from millpond.store.segments.files import segment_number

TOUCH_LOGS = 64


def check_reopened(ledger: Ledger, path: Path, *, quota_bytes: int) -> None:
    """Open it, compare the index with the files, read all that it lists, and close it."""
    repository = Repository(path, quota_bytes=quota_bytes)
    repository.open()
    try:
        _check_files(ledger, repository)
        _check_blobs(ledger, repository)
    finally:
        repository.close()
    _check_by_command(ledger, path)
    logs = len(os.listdir(path / "touch"))
    if logs > TOUCH_LOGS:
        ledger.found(f"{logs} touch logs were left")


def _check_by_command(ledger: Ledger, path: Path) -> None:
    """What an operator would do who does not believe us."""
    command = [sys.executable, "-m", "millpond", "check", "--deep", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if checked.returncode:
        ledger.found(f"millpond check --deep ended with {checked.returncode}: {checked.stdout}{checked.stderr}")


def _check_files(ledger: Ledger, repository: Repository) -> None:
    listed = set(repository.rows())
    there = {number for entry in repository.segments() if (number := segment_number(entry.name)) is not None}
    if there - listed:
        ledger.found(f"segments that nobody knows were left: {sorted(there - listed)}")
    if listed - there:
        ledger.found(f"the index knows segments that are gone: {sorted(listed - there)}")
    strange = [name for name in os.listdir(repository.path / "uploads") if "-" in name]
    if strange:
        ledger.found(f"spool files that nobody can go on with were left: {strange}")


def _check_blobs(ledger: Ledger, repository: Repository) -> None:
    assert repository.opened
    index = repository.opened.index
    with index.reading() as txn:
        listed = [Digest(key, int.from_bytes(value[8:16], "little")) for key, value in txn.cursor(index.blobs)]
    for digest in listed:
        data = read(repository.store, digest)
        if data is None or not digest.matches(data):
            ledger.found(f"the index lists blob {digest}, which {'is gone' if data is None else 'does not verify'}")
    ledger.count("blobs verified in the reopened store", len(listed))
