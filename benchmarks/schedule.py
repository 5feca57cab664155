"""Who is measured when: every server in turn, again and again, in each round on a fresh store.

In a *round* all servers of one session are up, each on its own store. One workload after the other is measured on each of
them in turn, so what is compared lies seconds apart, whatever the machine does in the course of a run; who begins changes
from round to round. Servers that somebody else disturbed do the round once more, and of each workload the sample with the
fewest strangers counts: the choice looks at the CPU time of others, never at the rate.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path

from benchmarks import facts, real_client, results
from benchmarks.corpus import FULL, QUICK, Corpus
from benchmarks.load import Generator, generator_loop
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


Round = Callable[[Sequence[ServerKind]], Iterator[Sample]]
"""What it measures on these servers."""


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
        for taken, servers in chain(_generated_rounds(plan, scratch), _client_rounds(plan, scratch)):
            measured.samples += _undisturbed(taken, servers, plan)
    return measured


def _generated_rounds(plan: Plan, scratch: Path) -> Iterator[tuple[Round, Sequence[ServerKind]]]:
    corpus = Corpus(QUICK if plan.quick else FULL)
    chosen = [WORKLOADS[name] for name in plan.workloads]
    for group in dict.fromkeys(workload.session for workload in chosen):
        members = [workload for workload in chosen if workload.session == group]
        taking_part = [kind for kind in plan.servers if kind.takes_part_in(group)]
        for run in range(1, plan.runs + 1 if taking_part else 0):
            first = run % len(taking_part)
            servers = taking_part[first:] + taking_part[:first]
            yield partial(_generated_round, plan, scratch, corpus, members, run), servers


def _generated_round(
    plan: Plan, scratch: Path, corpus: Corpus, workloads: list[Workload], run: int, kinds: Sequence[ServerKind]
) -> Iterator[Sample]:
    with ExitStack() as up:
        runner = up.enter_context(generator_loop())
        sessions = []
        for kind in kinds:
            server = up.enter_context(running(kind, plan.peers, scratch))
            load = up.enter_context(
                Generator(server.address, server.keys, runner, pid=server.pid, workers=kind.workers)
            )
            sessions.append(Session(server, load, corpus))
        for workload, session in product(workloads, sessions):
            if workload.name not in session.server.kind.cannot:
                yield workload.sample(session, run)


def _client_rounds(plan: Plan, scratch: Path) -> Iterator[tuple[Round, Sequence[ServerKind]]]:
    if not plan.client:
        return
    print("preparing the artifact that bst pushes and pulls", file=sys.stderr)
    client = real_client.Client.prepare(plan.peers, scratch / "client", QUICK if plan.quick else FULL)
    servers = [kind for kind in plan.servers if kind.name in _CLIENT_SERVERS]
    for run in range(1, plan.runs + 1):
        yield partial(_client_round, plan, scratch, client, run), servers


def _client_round(
    plan: Plan, scratch: Path, client: real_client.Client, run: int, kinds: Sequence[ServerKind]
) -> Iterator[Sample]:
    for kind in kinds:
        with running(kind, plan.peers, scratch) as server:
            yield client.push(server, run)
            yield client.pull(server, run)


def _undisturbed(taken: Round, servers: Sequence[ServerKind], plan: Plan) -> list[Sample]:
    """The samples of a round, taken when the machine was quiet, if it ever was."""
    samples = _taken(taken(servers), len(servers), plan)
    disturbed = {sample.server for sample in samples if sample.disturbed}
    if plan.patience_seconds and disturbed:
        print(f"disturbed, and measured once more: {', '.join(sorted(disturbed))}", file=sys.stderr)
        once_more = [kind for kind in servers if kind.name in disturbed]
        again = {(one.workload, one.server): one for one in _taken(taken(once_more), len(once_more), plan)}
        samples = [
            min(sample, again.get((sample.workload, sample.server), sample), key=lambda one: one.strangers_share)
            for sample in samples
        ]
    return samples


def _taken(upcoming: Iterator[Sample], servers: int, plan: Plan) -> list[Sample]:
    """All samples of a round, each after a quiet moment, as long as there is patience."""
    samples: list[Sample] = []
    patience_seconds = plan.patience_seconds * servers
    while True:
        # What one server left in the page cache as dirty pages must not be written while the next is measured.
        os.sync()
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
