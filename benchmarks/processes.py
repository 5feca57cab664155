"""CPU time and life of a server's whole process tree, read from ``/proc``.

A server may be one process, a supervisor with workers, or a Python process with a C++ one behind it. The unit that is
compared is all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Positions in /proc/PID/stat after the command's closing parenthesis (proc(5)); cutime and cstime are the children that
# ended and were waited for, so that a worker that is replaced during a run is not forgotten.
_PPID, _UTIME, _CSTIME = 1, 11, 14
# Positions in the first line of /proc/stat: user nice system idle iowait irq softirq steal.
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
# In the fourth column of /proc/net/tcp.
_ESTABLISHED = "01"


def _stat_fields(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def tree(root: int) -> list[int]:
    """``root`` and everything that it started, directly or not, as far as it still runs."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat_fields(int(entry))):
            children.setdefault(int(fields[_PPID]), []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the tree of ``root`` so far."""
    ticks = 0
    for pid in tree(root):
        if fields := _stat_fields(pid):
            ticks += sum(int(value) for value in fields[_UTIME : _CSTIME + 1])
    return ticks / _TICKS_PER_SECOND


def connections(root: int, port: int) -> set[tuple[int, int]]:
    """Who in the tree of ``root`` holds which connection to ``port`` of this machine: process and the client's port."""
    clients: dict[str, int] = {}
    with open("/proc/net/tcp", encoding="utf-8") as file:
        for row in file.readlines()[1:]:
            fields = row.split()
            local, remote, state, inode = fields[1], fields[2], fields[3], fields[9]
            if state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
                clients[f"socket:[{inode}]"] = int(remote.rpartition(":")[2], 16)
    found = set()
    for pid in tree(root):
        with contextlib.suppress(OSError):  # it has just ended
            for descriptor in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if (client := clients.get(os.readlink(descriptor.path))) is not None:
                        found.add((pid, client))
    return found


@dataclass(frozen=True, slots=True)
class MachineClock:
    """CPU seconds of the whole machine since boot: spent by anybody, and taken away by the hypervisor."""

    busy_seconds: float
    stolen_seconds: float

    @classmethod
    def now(cls) -> MachineClock:
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [int(value) for value in file.readline().split()[1:9]]
        stolen = ticks[_STEAL]
        busy = sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT] - stolen
        return cls(busy / _TICKS_PER_SECOND, stolen / _TICKS_PER_SECOND)


def stop(process: subprocess.Popen[str], *, grace_seconds: float) -> int:
    """End ``process`` with SIGTERM, and what is left of its tree with SIGKILL after ``grace_seconds``.

    Returns the exit status of ``process``. Only processes that it started itself are touched.
    """
    started = tree(process.pid)
    process.terminate()
    try:
        status = process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    for pid in started[1:]:
        _kill_orphan(pid)
    return status


def _kill_orphan(pid: int) -> None:
    """A child may need a moment more than its parent; an orphan of ours has been adopted by process 1 or a subreaper."""
    deadline = time.monotonic() + 2
    while (fields := _stat_fields(pid)) and fields[0] != "Z":
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)
