"""Results as plain text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks import real_client
from benchmarks.bars import Verdict
from benchmarks.results import Results
from benchmarks.workloads import WORKLOADS

_TITLES = {name: workload.title for name, workload in WORKLOADS.items()} | real_client.TITLES
_NOT_MEASURED = "–"
# Which servers are set against which, when both were measured.
_PAIRS = (
    ("millpond-1", "casd"),
    ("millpond-2", "casd"),
    ("millpond-2", "millpond-1"),
    ("millpond-1", "upstream"),
    ("casd", "upstream"),
    ("millpond-small", "casd-small"),
    ("millpond-1", "bst-1"),
    ("millpond-2", "bst-1"),
    ("millpond-1-tls", "bst-1-tls"),
    ("millpond-2-tls", "bst-1-tls"),
)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Two left-aligned columns of words, then numbers aligned to the right."""
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [headers, ["-" * width for width in widths], *rows]
    )


def summary(results: Results) -> str:
    """Rates, server CPU and ratios, and what to know before believing them."""
    servers, workloads = results.servers(), results.workloads()
    rates = [
        [_TITLES[name], f"{results.unit(name)}/s", *(_number(results.rate(name, server)) for server in servers)]
        for name in workloads
    ]
    cpu = [
        [_TITLES[name], f"µs/{results.unit(name)}", *(_micro(results.cpu_per_unit(name, server)) for server in servers)]
        for name in workloads
    ]
    pairs = [pair for pair in _PAIRS if set(pair) <= set(servers)]
    ratios = [[_TITLES[name], "", *(_number(results.ratio(name, *pair)) for pair in pairs)] for name in workloads]
    parts = [
        f"Rate by the wall clock, median of {results.runs}\n" + table(["workload", "unit", *servers], rates),
        "Server CPU, all its processes\n" + table(["workload", "unit", *servers], cpu),
    ]
    if peaks := [name for name in workloads if any(results.peak(name, server) is not None for server in servers)]:
        rows = [[_TITLES[name], "", *(_number(results.peak(name, server)) for server in servers)] for name in peaks]
        title = f"Disk, the most that was taken at once over the quota, highest of {results.runs}\n"
        parts.append(title + table(["workload", "", *servers], rows))
    if pairs:
        parts.append("Rate over rate\n" + table(["workload", "", *("/".join(pair) for pair in pairs)], ratios))
    return "\n\n".join(parts + _cautions(results))


def verdict(found: Verdict) -> str:
    """What is below its bar, and what that means by the rule."""
    if not found.missed:
        return f"All {len(found.findings)} bars are kept."
    rows = [
        [
            _TITLES[finding.bar.workload],
            f"{finding.bar.server}/{finding.bar.peer}",
            _number(finding.ratio),
            f"{finding.bar.at_least:.2f}",
            _NOT_MEASURED if finding.ratio is None else f"{finding.share_of_bar:.2f}",
        ]
        for finding in found.missed
    ]
    rule = f"at most {found.bars.may_be_missed} may be missed, none below {found.bars.floor} of its bar"
    outcome = "which the rule allows" if found.kept else "which breaks the rule"
    return (
        f"Below the bar:\n{table(['workload', 'servers', 'ratio', 'bar', 'ratio/bar'], rows)}\n\n"
        f"{len(found.missed)} of {len(found.findings)} bars are missed, {outcome}: {rule}."
    )


def _cautions(results: Results) -> list[str]:
    cautions = []
    if disturbed := [sample for sample in results.samples if sample.disturbed]:
        where = Counter(sample.server for sample in disturbed)
        cautions.append(
            f"Disturbed: during {len(disturbed)} of {len(results.samples)} measurements somebody else used more than a tenth of "
            f"the machine ({', '.join(f'{server} {count}' for server, count in where.items())})."
        )
    if results.quick:
        cautions.append("Quick: a tenth of the work. These numbers only show that everything runs.")
    return cautions


def _number(value: float | None) -> str:
    if value is None:
        return _NOT_MEASURED
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def _micro(seconds: float | None) -> str:
    return _NOT_MEASURED if seconds is None else _number(seconds * 1e6)
