"""Blocks of rounds, each on a repository of its own, and what they amount to.

The rule: a block follows from the campaign's seed and its own number, so any block can be fought again by itself. (The
lots are the same then; when exactly a kill meets a server is not.)
"""

from __future__ import annotations

import random
import shutil
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.campaign.audit import audit
from faults.campaign.client import Ended, PatientClient
from faults.campaign.cluster import Cluster
from faults.campaign.ledger import Ledger
from faults.campaign.load import Load, until
from faults.campaign.offline import check_reopened
from faults.campaign.strikes import STRIKES, Field
from faults.campaign.watch import Watch

PROGRESS_SECONDS = 90.0
"""Within this time after a strike somebody must have been able to push."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of block. ``safe_share``: how much of the quota may be written before something used may be gone."""

    name: str
    quota_bytes: int
    safe_share: float


ROOMY = Kind("roomy", 20_000_000_000, float("inf"))
"""Nothing is evicted: every acknowledged name must survive."""
TIGHT = Kind("tight", 40_000_000, 1 / 6)
"""Eviction all the time."""


@dataclass(slots=True)
class Outcome:
    """What a campaign came to."""

    rounds: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    ready_seconds: list[float] = field(default_factory=list)
    recovered_seconds: list[float] = field(default_factory=list)
    peak_share: float = 0.0
    segments: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.rounds += other.rounds
        self.strikes += other.strikes
        self.counts += other.counts
        self.ready_seconds += other.ready_seconds
        self.recovered_seconds += other.recovered_seconds
        self.peak_share = max(self.peak_share, other.peak_share)
        self.segments += other.segments
        self.seconds += other.seconds
        self.findings += other.findings

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rounds": self.rounds,
            "minutes": round(self.seconds / 60, 1),
            "strikes": dict(self.strikes.most_common()),
            "counts": dict(sorted(self.counts.items())),
            "segments seen": self.segments,
            "highest use of the quota": round(self.peak_share, 3),
            "ready after a start, seconds": _spread(self.ready_seconds),
            "pushing again after a strike, seconds": _spread(self.recovered_seconds),
            "findings": self.findings,
        }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": round(statistics.median(values), 2), "most": round(max(values), 2)}


@dataclass(frozen=True, slots=True)
class Block:
    """So many rounds on one repository in ``root``, which is removed when nothing was found."""

    seed: str
    kind: Kind
    rounds: int
    root: Path
    stop_seconds: float
    pause_seconds: float = 0.15
    """Of each thread of the load between two things that it does."""
    tell: Callable[[str], None] = lambda _: None

    def fight(self) -> Outcome:
        begun = time.monotonic()
        ledger = Ledger(safe_bytes=self.kind.safe_share * self.kind.quota_bytes)
        cluster = Cluster(self.root, quota=str(self.kind.quota_bytes))
        watch = Watch(ledger, cluster.repo, quota_bytes=self.kind.quota_bytes)
        outcome = Outcome(counts=ledger.counts, findings=ledger.findings)
        try:
            watch.start()
            cluster.start()
            self._under_load(ledger, cluster, outcome)
            cluster.kill()
            cluster.start()
            self._audit(ledger, cluster, ledger.keys)
            for server in cluster.servers:
                server.stop()
        except AssertionError as failure:  # a server that did not get ready, or did not end
            ledger.found(str(failure))
        finally:
            cluster.kill()
            watch.stop()
        check_reopened(ledger, cluster.repo, quota_bytes=self.kind.quota_bytes)
        outcome.ready_seconds += [seconds for server in cluster.servers for seconds in server.ready_seconds]
        outcome.peak_share = watch.peak_bytes / self.kind.quota_bytes if self.kind.safe_share < 1 else 0.0
        outcome.segments = watch.numbers
        outcome.seconds = time.monotonic() - begun
        if not ledger.findings:
            shutil.rmtree(self.root)
        return outcome

    def _under_load(self, ledger: Ledger, cluster: Cluster, outcome: Outcome) -> None:
        load = Load(
            ledger,
            self.seed,
            push_port=cluster.push.port,
            pull_port=cluster.pull.port,
            may_fill_up=self.kind.safe_share < 1,
            pause_seconds=self.pause_seconds,
        )
        load.start()
        field = Field(cluster, ledger, random.Random(self.seed), self.stop_seconds)
        try:
            for number in range(self.rounds):
                found = len(ledger.findings)
                self._round(number, field, outcome)
                for finding in ledger.findings[found:]:
                    self.tell(f"FOUND: {finding}")
                if len(ledger.findings) > 20:
                    break
        finally:
            load.stop()

    def _round(self, number: int, field: Field, outcome: Outcome) -> None:
        deck = random.Random(f"{self.seed}/{number // len(STRIKES)}").sample(STRIKES, len(STRIKES))
        time.sleep(field.chance.uniform(0.1, 0.8))
        strike = deck[number % len(STRIKES)]
        what = strike(field)
        struck = time.monotonic()
        before = field.ledger.counts["names acknowledged"]
        if not until(lambda: field.ledger.counts["names acknowledged"] > before, PROGRESS_SECONDS):
            field.ledger.found(f"nobody could push for {PROGRESS_SECONDS:.0f} s after this: {what}")
        outcome.recovered_seconds.append(time.monotonic() - struck)
        outcome.rounds += 1
        outcome.strikes[strike.__name__.replace("_", " ")] += 1
        self._audit(field.ledger, field.cluster, field.ledger.sample(field.chance))
        self.tell(f"{self.seed} round {number + 1} of {self.rounds} ({self.kind.name}): {what}; {before} names")
        for text, times in field.ledger.refusals.most_common(3):
            self.tell(f"  refused {times} times: {text}")
        field.ledger.refusals.clear()

    def _audit(self, ledger: Ledger, cluster: Cluster, keys: list[str]) -> None:
        """Half of them through each server."""
        ended = threading.Event()

        def through(port: int, some: list[str]) -> None:
            client = PatientClient(port, ended.is_set)
            try:
                for key in some:
                    audit(ledger, client, key)
            except Ended:
                pass
            finally:
                client.close()

        threads = [
            threading.Thread(target=through, args=(server.port, keys[at::2]), daemon=True)
            for at, server in enumerate(cluster.servers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def blocks(
    seed: str, *, rounds: int, rounds_per_block: int, root: Path, stop_seconds: float, tell: Callable[[str], None]
) -> list[Block]:
    """The blocks of a campaign: two tight ones for each roomy one."""
    made = []
    for number in range(-(-rounds // rounds_per_block)):
        kind = ROOMY if number % 3 == 0 else TIGHT
        size = min(rounds_per_block, rounds - number * rounds_per_block)
        made.append(Block(f"{seed}.{number}", kind, size, root / f"block-{number}", stop_seconds, tell=tell))
    return made
