"""One measurement: wall time, the server's CPU time, and who else was using the machine meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.processes import MachineClock
from benchmarks.servers import RunningServer

# Above this share of the machine, what others did may have changed the outcome.
DISTURBED_SHARE = 0.10

Outcome = TypeVar("Outcome")


@dataclass(frozen=True, slots=True)
class Sample:
    """One workload on one server, once: so many ``units`` of what ``unit`` names (blobs, digests, calls, MB)."""

    workload: str
    server: str
    run: int
    unit: str
    units: float
    wall_seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    # CPU time of everybody else, and time that the hypervisor gave to somebody else, per CPU second of the machine.
    others_share: float
    stolen_share: float
    # The most that the store took on disk meanwhile, over its quota; None: not looked at.
    peak_over_quota: float | None = None

    @property
    def rate(self) -> float:
        return self.units / self.wall_seconds

    @property
    def server_cpu_per_unit(self) -> float:
        return self.server_cpu_seconds / self.units

    @property
    def strangers_share(self) -> float:
        """How much of the machine was at work for neither the server nor the client."""
        return self.others_share + self.stolen_share

    @property
    def disturbed(self) -> bool:
        return self.strangers_share > DISTURBED_SHARE


@dataclass(frozen=True, slots=True)
class Usage:
    """What a piece of work cost, without a name yet."""

    seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    others_share: float
    stolen_share: float


def _own_cpu_seconds() -> float:
    """This process and the children that it waited for, which is how the real client is counted."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def metered(server: RunningServer, work: Callable[[], Outcome]) -> tuple[Outcome, Usage]:
    """Do ``work`` and account for it. The accounts are opened before and closed after ``work``'s own clock runs."""
    machine, own, of_server = MachineClock.now(), _own_cpu_seconds(), server.cpu_seconds()
    begin = time.perf_counter()
    outcome = work()
    seconds = time.perf_counter() - begin
    server_cpu = server.cpu_seconds() - of_server
    client_cpu = _own_cpu_seconds() - own
    after = MachineClock.now()
    capacity = (os.cpu_count() or 1) * seconds
    others = max(0.0, after.busy_seconds - machine.busy_seconds - server_cpu - client_cpu)
    stolen = after.stolen_seconds - machine.stolen_seconds
    return outcome, Usage(seconds, server_cpu, client_cpu, others / capacity, stolen / capacity)
