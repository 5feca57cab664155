"""``python -m faults.campaign``: a long crash campaign (``make soak``)."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from faults.campaign.campaign import Outcome, blocks

ROUNDS_PER_BLOCK = 24
"""Twice the deck."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description="Kill servers under load and audit what survives.")
    parser.add_argument("--rounds", type=int, default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="of an earlier run, to draw the same lots again")
    parser.add_argument("--block", type=int, metavar="N", help="only this block of it")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="N", help="begin no block after this time"
    )
    parser.add_argument("--stop-seconds", type=float, default=15.0, metavar="N", help="how long a process is stopped")
    parser.add_argument("--directory", type=Path, help="where; repositories in which something was found stay there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the servers end with us
    root = options.directory or Path(tempfile.mkdtemp(prefix="millpond-soak-"))
    print(f"seed {options.seed}, in {root}", flush=True)
    fought, begun = Outcome(), time.monotonic()
    for number, block in enumerate(
        blocks(
            options.seed,
            rounds=options.rounds,
            rounds_per_block=ROUNDS_PER_BLOCK,
            root=root,
            stop_seconds=options.stop_seconds,
            tell=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", flush=True),
        )
    ):
        if options.block in (None, number) and time.monotonic() - begun < 60 * options.minutes:
            fought.add(block.fight())
            (root / "summary.json").write_text(json.dumps(fought.summary() | {"seed": options.seed}, indent=2))
    print(json.dumps(fought.summary(), indent=2))
    return 1 if fought.findings else 0


if __name__ == "__main__":
    sys.exit(main())
