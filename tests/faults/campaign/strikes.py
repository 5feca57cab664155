"""What happens to the processes of a cluster: kills at any moment, and stops.

The rule: a strike ends with everything running again, without a step that an operator would have to take: whoever kills
a supervisor starts it again, as systemd does, and nothing else.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from faults.campaign.cluster import Cluster, Server, strike
from faults.campaign.ledger import Ledger
from faults.campaign.load import until

_STEP_SECONDS = 2.0
"""How long a step is waited for before the process is killed where it is."""
_UPKEEP_STEPS: Sequence[tuple[str, int]] = (
    ("unlink,unlinkat", 4),
    ("fdatasync,fsync", 6),
    ("ftruncate", 3),
    ("rename,renameat,renameat2", 2),
    ("flock", 60),
    ("pwrite64,pwritev,pwritev2,write,writev", 60),
    ("copy_file_range,sendfile", 3),
)
"""System calls between which an upkeeper's steps lie, and up to the how manieth of them it lives."""
_WORKER_STEPS: Sequence[tuple[str, int]] = (
    ("fdatasync,fsync", 12),
    ("pwrite64,pwritev,pwritev2", 120),
    ("ftruncate", 2),
    ("rename,renameat,renameat2", 2),
    ("unlink,unlinkat", 2),
    ("flock", 200),
)


@dataclass(slots=True)
class Field:
    """What a strike is carried out on, and what it draws its lots from."""

    cluster: Cluster
    ledger: Ledger
    chance: random.Random
    stop_seconds: float

    def restart(self, *servers: Server) -> None:
        for server in servers:
            server.start()

    def worker(self, server: Server) -> int:
        """One of its workers, by lot."""
        until(lambda: bool(server.pids("worker")), 30)
        return self.chance.choice(server.pids("worker"))

    def await_whole(self, server: Server, processes: int) -> None:
        """Its supervisor puts back what was killed."""
        if not until(lambda: len(server.pids()) >= processes, 30):
            self.ledger.found(f"the {server.name} server did not start again what was killed")


Strike = Callable[[Field], str]


def kill_worker(field: Field) -> str:
    server = field.chance.choice(field.cluster.servers)
    return _kill_one(field, server, field.worker(server), f"a worker of {server.name}")


def kill_worker_in_a_step(field: Field) -> str:
    pid = field.worker(field.cluster.push)
    return _kill_one(field, field.cluster.push, pid, "a worker of push", steps=_WORKER_STEPS)


def kill_upkeeper(field: Field) -> str:
    pid = field.cluster.upkeeper()
    return kill_worker(field) if pid is None else _kill_one(field, _server_of(field, pid), pid, "the upkeeper")


def kill_upkeeper_in_a_step(field: Field) -> str:
    pid = field.cluster.upkeeper()
    if pid is None:
        return kill_worker_in_a_step(field)
    return _kill_one(field, _server_of(field, pid), pid, "the upkeeper", steps=_UPKEEP_STEPS)


def kill_supervisor(field: Field) -> str:
    server = field.chance.choice(field.cluster.servers)
    strike(server.pid, signal.SIGKILL)
    if not server.await_end():
        field.ledger.found(f"processes of the {server.name} server outlived its supervisor")
    field.restart(server)
    return f"the supervisor of {server.name} was killed"


def kill_everything(field: Field) -> str:
    _kill_all(field)
    field.restart(*field.cluster.servers)
    return "everything was killed"


def kill_everything_while_it_opens(field: Field) -> str:
    _kill_all(field)
    for _ in range(field.chance.randint(1, 3)):
        dying = field.cluster.push.begin()
        time.sleep(field.chance.uniform(0.2, 1.5))
        dying.kill()
    field.restart(*field.cluster.servers)
    return "everything was killed, and again while it opened"


def kill_everything_and_damage_the_index(field: Field) -> str:
    """It may be lost, as after a power loss: it is made anew, and nothing that was acknowledged is missing then."""
    _kill_all(field)
    index = field.cluster.repo / "index" / "data.mdb"
    how = field.chance.choice(("removed", "cut off", "zeroed"))
    if how == "removed":
        index.unlink()
    elif how == "cut off":
        os.truncate(index, field.chance.randrange(index.stat().st_size))
    else:
        with index.open("r+b") as file:
            file.write(bytes(8192))  # both meta pages
    field.restart(*field.cluster.servers)
    return f"everything was killed and the index {how}"


def stop_a_writer(field: Field) -> str:
    pid = field.worker(field.cluster.push)
    return _pause(field, pid, "a worker of push")


def stop_the_upkeeper(field: Field) -> str:
    pid = field.cluster.upkeeper()
    return stop_a_writer(field) if pid is None else _pause(field, pid, "the upkeeper")


def stop_and_start(field: Field) -> str:
    """What an upgrade does: SIGTERM, then the new one."""
    server = field.chance.choice(field.cluster.servers)
    server.stop()
    field.restart(server)
    return f"the {server.name} server was stopped and started"


STRIKES: Sequence[Strike] = (
    kill_upkeeper_in_a_step,
    kill_worker,
    kill_everything,
    kill_worker_in_a_step,
    kill_upkeeper,
    kill_supervisor,
    stop_a_writer,
    kill_everything_while_it_opens,
    kill_upkeeper_in_a_step,
    kill_everything_and_damage_the_index,
    stop_the_upkeeper,
    stop_and_start,
)
"""One deck; the most interesting is in it twice."""


def _kill_one(field: Field, server: Server, pid: int, who: str, *, steps: Sequence[tuple[str, int]] = ()) -> str:
    processes = len(server.pids())
    where = ""
    if steps:
        calls, at_most = field.chance.choice(list(steps))
        number = field.chance.randint(1, at_most)
        reached = _kill_at(pid, calls, number)
        where = f" before its {number}. {calls.partition(',')[0]}" if reached else f" (no {number}. {calls} came)"
        field.ledger.count("steps reached" if reached else "steps not reached")
    strike(pid, signal.SIGKILL)
    until(lambda: pid not in server.pids(), 10)
    field.await_whole(server, processes)
    return f"{who} was killed{where}"


def _kill_at(pid: int, calls: str, number: int) -> bool:
    """Let strace kill it when it enters that call; whether it came to that."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={calls}"]
    tracer = subprocess.Popen(
        [*command, "-e", f"inject={calls}:signal=SIGKILL:when={number}"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        tracer.wait(_STEP_SECONDS)
    except subprocess.TimeoutExpired:
        strike(pid, signal.SIGKILL)
        tracer.wait(30)
        return False
    return True


def _kill_all(field: Field) -> None:
    for server in field.cluster.servers:
        server.signal_all(signal.SIGKILL)
    for server in field.cluster.servers:
        server.kill()


def _pause(field: Field, pid: int, who: str) -> str:
    strike(pid, signal.SIGSTOP)
    try:
        time.sleep(field.stop_seconds)
    finally:
        strike(pid, signal.SIGCONT)
    return f"{who} was stopped for {field.stop_seconds:.1f} s"


def _server_of(field: Field, pid: int) -> Server:
    return next((server for server in field.cluster.servers if pid in server.pids()), field.cluster.push)
