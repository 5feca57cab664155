"""The promises of ``bars.toml`` and whether a result keeps them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Results
from benchmarks.servers import OF_THEIR_OWN
from benchmarks.workloads import WORKLOADS

FILE = Path(__file__).resolve().with_name("bars.toml")
_EVERY_WORKLOAD = "*"
_EVERYBODYS = [name for name, workload in WORKLOADS.items() if workload.session not in OF_THEIR_OWN]


@dataclass(frozen=True, slots=True)
class Bar:
    """On ``workload``, ``server`` must reach ``at_least`` times the rate of ``peer``."""

    workload: str
    server: str
    peer: str
    at_least: float


@dataclass(frozen=True, slots=True)
class Bars:
    """All bars, and how many of them may be missed by how much."""

    bars: tuple[Bar, ...]
    may_be_missed: int
    floor: float

    @classmethod
    def load(cls, path: Path = FILE) -> Bars:
        document = tomllib.loads(path.read_text())
        bars: list[Bar] = []
        for entry in document["bar"]:
            every = entry["workload"] == _EVERY_WORKLOAD
            bars += [Bar(**entry | {"workload": name}) for name in (_EVERYBODYS if every else [entry["workload"]])]
        return cls(tuple(bars), document["rule"]["may_be_missed"], document["rule"]["floor"])

    def needed_servers(self) -> list[str]:
        return list(dict.fromkeys(name for bar in self.bars for name in (bar.server, bar.peer)))

    def needed_workloads(self) -> list[str]:
        return list(dict.fromkeys(bar.workload for bar in self.bars))

    def judge(self, results: Results) -> Verdict:
        findings = tuple(Finding(bar, results.ratio(bar.workload, bar.server, bar.peer)) for bar in self.bars)
        return Verdict(findings, self)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was reached; ``ratio`` is None when one of the two was not measured."""

    bar: Bar
    ratio: float | None

    @property
    def share_of_bar(self) -> float:
        return (self.ratio or 0.0) / self.bar.at_least

    @property
    def missed(self) -> bool:
        return self.share_of_bar < 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings, judged by the rule."""

    findings: tuple[Finding, ...]
    bars: Bars

    @property
    def missed(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.missed]

    @property
    def kept(self) -> bool:
        """What was not measured counts as missed, and below the floor."""
        return len(self.missed) <= self.bars.may_be_missed and all(
            finding.share_of_bar >= self.bars.floor for finding in self.missed
        )
