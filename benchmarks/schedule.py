"""Who is measured when: every server in turn, again and again, each time on a fresh store.

A *turn* is one server doing all workloads of one session. Turns alternate (A B C A B C ...), so that whatever changes on the
machine in the course of a run meets everybody. A turn that somebody else disturbed is taken once more, and of each workload the
sample with the fewest strangers counts: the choice looks at the CPU time of others, never at the rate.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path

from benchmarks import facts, real_client, results
from benchmarks.corpus import FULL, QUICK, Corpus
from benchmarks.load import Generator
from benchmarks.measure import Sample
from benchmarks.processes import MachineClock
from benchmarks.results import Results
from benchmarks.servers import Peers, ServerKind, running
from benchmarks.workloads import WORKLOADS, Session, Workload

# The client is the slow part there; what a second worker or a bare casd does is seen without it.
_CLIENT_SERVERS = ("millpond-1", "upstream")
# Idle machines have a few per cent of housekeeping.
_QUIET_SHARE = 0.05
_QUIET_SECONDS = 0.5


Turn = Callable[[], Iterator[Sample]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, on which servers, how often and where."""

    workloads: tuple[str, ...]
    servers: tuple[ServerKind, ...]
    runs: int
    quick: bool
    client: bool
    patience_seconds: float
    peers: Peers
    scratch: Path


def carry_out(plan: Plan) -> Results:
    """All samples of ``plan``, with progress on stderr. An interrupted comparison is none, and is not kept.

    Raises:
        ServerUnavailable: a server or the client is missing or failed.
        UnexpectedAnswer: a server answered something else than what was stored.
    """
    with tempfile.TemporaryDirectory(prefix="millpond-bench-", dir=plan.scratch) as directory:
        scratch = Path(directory)
        measured = Results(
            started=results.now(),
            runs=plan.runs,
            quick=plan.quick,
            machine=facts.machine(scratch),
            versions=facts.versions(plan.peers),
        )
        for turn in chain(_generated_turns(plan, scratch), _client_turns(plan, scratch)):
            measured.samples += _undisturbed(turn, plan)
    return measured


def _generated_turns(plan: Plan, scratch: Path) -> Iterator[Turn]:
    corpus = Corpus(QUICK if plan.quick else FULL)
    chosen = [WORKLOADS[name] for name in plan.workloads]
    for group in dict.fromkeys(workload.session for workload in chosen):
        members = [workload for workload in chosen if workload.session == group]
        taking_part = [kind for kind in plan.servers if kind.takes_part_in(group)]
        for run, kind in product(range(1, plan.runs + 1), taking_part):
            yield partial(_generated_turn, plan, scratch, corpus, kind, members, run)


def _generated_turn(
    plan: Plan, scratch: Path, corpus: Corpus, kind: ServerKind, workloads: list[Workload], run: int
) -> Iterator[Sample]:
    with running(kind, plan.peers, scratch) as server, Generator(server.address, server.keys) as load:
        session = Session(server, load, corpus)
        for workload in workloads:
            if workload.name not in kind.cannot:
                yield workload.sample(session, run)


def _client_turns(plan: Plan, scratch: Path) -> Iterator[Turn]:
    if not plan.client:
        return
    print("preparing the artifact that bst pushes and pulls", file=sys.stderr)
    client = real_client.Client.prepare(plan.peers, scratch / "client", QUICK if plan.quick else FULL)
    servers = [kind for kind in plan.servers if kind.name in _CLIENT_SERVERS]
    for run, kind in product(range(1, plan.runs + 1), servers):
        yield partial(_client_turn, plan, scratch, client, kind, run)


def _client_turn(plan: Plan, scratch: Path, client: real_client.Client, kind: ServerKind, run: int) -> Iterator[Sample]:
    with running(kind, plan.peers, scratch) as server:
        yield client.push(server, run)
        yield client.pull(server, run)


def _undisturbed(turn: Turn, plan: Plan) -> list[Sample]:
    """The samples of ``turn``, taken when the machine was quiet, if it ever was."""
    samples = _taken(turn, plan)
    if plan.patience_seconds and any(sample.disturbed for sample in samples):
        print("this turn was disturbed and is taken once more", file=sys.stderr)
        again = _taken(turn, plan)
        samples = [min(pair, key=lambda sample: sample.strangers_share) for pair in zip(samples, again, strict=True)]
    return samples


def _taken(turn: Turn, plan: Plan) -> list[Sample]:
    """All samples of ``turn``, each after a quiet moment, as long as the turn's patience lasts."""
    samples: list[Sample] = []
    patience_seconds = plan.patience_seconds
    upcoming = turn()
    while True:
        patience_seconds -= _await_quiet(patience_seconds)
        if (sample := next(upcoming, None)) is None:
            return samples
        _report(sample, plan.runs)
        samples.append(sample)


def _await_quiet(patience_seconds: float) -> float:
    """Return when the machine did next to nothing for a moment, or when patience ends: the seconds that it took."""
    begin = time.monotonic()
    while time.monotonic() - begin < patience_seconds:
        before = MachineClock.now().busy_seconds
        time.sleep(_QUIET_SECONDS)
        busy = MachineClock.now().busy_seconds - before
        if busy / _QUIET_SECONDS / (os.cpu_count() or 1) < _QUIET_SHARE:
            break
    return time.monotonic() - begin


def _report(sample: Sample, runs: int) -> None:
    note = "  (disturbed)" if sample.disturbed else ""
    print(
        f"run {sample.run}/{runs}  {sample.server:10}  {sample.workload:22}  {sample.rate:12,.1f} {sample.unit}/s"
        f"  {sample.server_cpu_per_unit * 1e6:10,.1f} µs CPU each{note}",
        file=sys.stderr,
        flush=True,
    )
