"""Does ``df`` on ext4 show more than was ever taken? Yes. Nothing of Millpond's is in this; as root:

    PYTHONPATH=src:tests python tests/system/df_of_ext4.py [SECONDS]

One process removes a file of 512 KiB, waits a moment and makes it again, so that there is never more than one. Another one
asks ``statvfs`` all the time, and three are busy. What is shown above one file was counted twice, as reserved and as taken.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path

from system.small_disk import SmallDisk

_FILE_BYTES = 512 * 1024
_SLACK_BYTES = 64 * 1024


def _used_bytes(path: Path) -> int:
    disk = os.statvfs(path)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def _write(path: Path, over: Event) -> None:
    while not over.is_set():
        with (path / "file").open("wb") as made:
            os.posix_fallocate(made.fileno(), 0, _FILE_BYTES)
        (path / "file").unlink()
        time.sleep(0.001)


def _be_busy(over: Event) -> None:
    while not over.is_set():
        sum(range(1000))


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        disk, over = SmallDisk(Path(directory, "disk"), kind="ext4", size_mib=64), multiprocessing.Event()
        before = _used_bytes(disk.path)
        others = [multiprocessing.Process(target=_be_busy, args=(over,)) for _ in range(3)]
        others.append(multiprocessing.Process(target=_write, args=(disk.path, over)))
        for other in others:
            other.start()
        looks = above = most_bytes = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            used_bytes = _used_bytes(disk.path) - before
            looks += 1
            above += used_bytes > _FILE_BYTES + _SLACK_BYTES
            most_bytes = max(most_bytes, used_bytes)
        over.set()
        for other in others:
            other.join()
        disk.close()
    print(f"{above} of {looks} looks found more than one file of {_FILE_BYTES} bytes; the most was {most_bytes}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 25.0)
