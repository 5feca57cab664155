"""CPU time and life of a server's whole process tree, read from ``/proc``.

A server may be one process, a supervisor with workers, or a Python process with a C++ one behind it. The unit that is
compared is all of it.
"""

from __future__ import annotations

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
