"""What the ledger's rows belong to: processes and files, told apart from later ones with the same number or name."""

import os


def holder() -> bytes:
    """Our process."""
    return f"{os.getpid()}:{_start_time(os.getpid())}".encode()


def lives(who: bytes) -> bool:
    """Whether the process that :func:`holder` named still runs."""
    pid, _, started = who.decode().partition(":")
    return _start_time(int(pid)) == started


def upload(name: str, inode: int) -> str:
    """The spool file ``name``. Once it has become a segment, another may begin under its name before the index knows."""
    return f"{name}.{inode:x}"


def _start_time(pid: int) -> str:
    # proc(5): field 22 of stat; the name in field 2 may contain anything, but ends with the last ')'.
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
