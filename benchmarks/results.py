"""All samples of one benchmark run: kept as dated JSON, summed up by medians."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Sample

FORMAT = 1
DIRECTORY = Path(__file__).resolve().parent / "results"


class UnreadableResult(Exception):
    """A file is not a result of this benchmark, or one of another format."""


@dataclass(slots=True)
class Results:
    """What one benchmark run found out, and on what."""

    started: datetime
    runs: int
    quick: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    samples: list[Sample] = field(default_factory=list)

    def of(self, workload: str, server: str) -> list[Sample]:
        return [sample for sample in self.samples if (sample.workload, sample.server) == (workload, server)]

    def rate(self, workload: str, server: str) -> float | None:
        """Median units per second of wall time; None when it was not measured."""
        return _median(sample.rate for sample in self.of(workload, server))

    def cpu_per_unit(self, workload: str, server: str) -> float | None:
        """Median CPU seconds of the server per unit; None when it was not measured."""
        return _median(sample.server_cpu_per_unit for sample in self.of(workload, server))

    def peak(self, workload: str, server: str) -> float | None:
        """The most that the store took on disk in any run, over its quota; None when it was not looked at."""
        found = (sample.peak_over_quota for sample in self.of(workload, server))
        return max((peak for peak in found if peak is not None), default=None)

    def ratio(self, workload: str, server: str, peer: str) -> float | None:
        """The rate of ``server`` over the rate of ``peer``, on the same workload."""
        rate, peer_rate = self.rate(workload, server), self.rate(workload, peer)
        return rate / peer_rate if rate is not None and peer_rate is not None else None

    def unit(self, workload: str) -> str:
        return next(sample.unit for sample in self.samples if sample.workload == workload)

    def workloads(self) -> list[str]:
        return list(dict.fromkeys(sample.workload for sample in self.samples))

    def servers(self) -> list[str]:
        return list(dict.fromkeys(sample.server for sample in self.samples))

    def save(self, path: Path | None = None) -> Path:
        """Write the JSON, by default under the date and time of the start (UTC)."""
        path = path or DIRECTORY / f"{self.started:%Y-%m-%d-%H%M}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._document(), indent=1) + "\n")
        return path

    def _document(self) -> dict[str, Any]:
        medians: dict[str, dict[str, dict[str, float | None]]] = {}
        for workload in self.workloads():
            for server in self.servers():
                if self.of(workload, server):
                    of_server = medians.setdefault(workload, {})[server] = {
                        "units_per_second": _short(self.rate(workload, server)),
                        "server_cpu_microseconds_per_unit": _short((self.cpu_per_unit(workload, server) or 0) * 1e6),
                    }
                    if (peak := self.peak(workload, server)) is not None:
                        of_server["peak_over_quota"] = _short(peak)
        return {
            "format": FORMAT,
            "started": self.started.isoformat(timespec="seconds"),
            "runs": self.runs,
            "quick": self.quick,
            "machine": self.machine,
            "versions": self.versions,
            "medians": medians,
            "samples": [{key: _short(value) for key, value in asdict(sample).items()} for sample in self.samples],
        }

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what :meth:`save` wrote; the medians in the file are for readers and are computed anew.

        Raises:
            UnreadableResult: it is something else.
        """
        try:
            document = json.loads(path.read_text())
            if document["format"] != FORMAT:
                raise UnreadableResult(f"{path} has format {document['format']}; this version reads {FORMAT}.")
            return cls(
                started=datetime.fromisoformat(document["started"]),
                runs=document["runs"],
                quick=document["quick"],
                machine=document["machine"],
                versions=document["versions"],
                samples=[Sample(**sample) for sample in document["samples"]],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UnreadableResult(f"{path} is not a benchmark result: {error!r}") from error


def now() -> datetime:
    return datetime.now(UTC)


def _median(values: Iterable[float]) -> float | None:
    return statistics.median(found) if (found := list(values)) else None


def _short(value: Any) -> Any:
    """Six significant digits are more than the measurement has."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
