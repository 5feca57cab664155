"""``python -m benchmarks.ostree``: how long a push takes beside ``ostree pull-local``, and how soon the receiver is ready.

Both store the same commit durably in a new repository on the same file system, in turns, and the median counts. The source
of ``pull-local`` is what a client of BuildStream 1.0 has, a ``bare-user`` repository of which objects are made; and an archive
of which objects are copied, on another file system (``/dev/shm``). Of an archive on the same file system ``pull-local`` makes
hard links, and writes nothing at all: that is shown, too, and compared with nothing. It verifies nothing here, we do.
``[ostree]`` in ``bars.toml`` says what has to hold; with ``--check`` the exit status says whether it does.
"""

from __future__ import annotations

import argparse
import compileall
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import millpond
from benchmarks.bars import FILE as BARS
from millpond.protocol.ostree import frames

RECEIVER = Path(sys.executable).with_name("bst-artifact-receive")
REF = "project/element/" + "a" * 64
LARGE_BYTES = 150 << 20
SMALL_FILES = 4000
ELSEWHERE = "/dev/shm"


def ostree(repo: Path, verb: str, *arguments: str | Path) -> None:
    command = ["ostree", verb, f"--repo={repo}", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def make_large(tree: Path) -> None:
    """One file that hardly shrinks, as most of what is built."""
    tree.mkdir()
    chance = random.Random(1)
    with (tree / "large").open("wb") as file:
        for _ in range(LARGE_BYTES >> 20):
            file.write(chance.randbytes(1 << 20))


def make_small(tree: Path) -> None:
    """Sources and headers: some hundred bytes to some kilobytes each."""
    chance = random.Random(2)
    for number in range(SMALL_FILES):
        path = tree / f"directory{number % 40}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(100 + number % 3000))


class Commit:
    """A commit in a client's repository, in an archive, and as what the client sends."""

    def __init__(self, root: Path, make: Callable[[Path], None]) -> None:
        self._root = root
        make(root / "tree")
        self.client, self.archive = root / "client", root / "archive"
        for repo, mode in ((self.client, "bare-user"), (self.archive, "archive-z2")):
            ostree(repo, "init", f"--mode={mode}")
            ostree(repo, "commit", "-b", REF, f"--tree=dir={root / 'tree'}", "--timestamp=2018-01-01", "-s", "")
        commit = (self.archive / "refs" / "heads" / REF).read_text().strip()
        self.push = root / "push"
        with self.push.open("wb") as file:
            file.write(frames.info(1, {}) + frames.update({REF: ("0" * 64, commit)}) + frames.putobjects())
            with tarfile.open(mode="w|", fileobj=file) as tar:
                for path in sorted((self.archive / "objects").rglob("*.*")):
                    tar.add(path, path.parent.name + path.name)
            file.write(frames.done())

    def fresh(self) -> Path:
        """An empty repository; nothing that another one left is still to be written."""
        repo = self._root / "fresh"
        shutil.rmtree(repo, ignore_errors=True)
        ostree(repo, "init", "--mode=archive-z2")
        ostree(repo, "summary", "-u")
        subprocess.run(["sync"], check=True)
        return repo

    def received(self) -> float:
        repo = self.fresh()
        with self.push.open("rb") as heard:
            begun = time.perf_counter()
            command = [RECEIVER, "--pull-url", "http://x", repo]
            ended = subprocess.run(command, stdin=heard, capture_output=True, check=True)
            seconds = time.perf_counter() - begun
        assert ended.stdout.endswith(frames.done()), ended.stderr
        return seconds

    def pulled(self, source: Path) -> float:
        repo = self.fresh()
        begun = time.perf_counter()
        ostree(repo, "pull-local", source, REF)
        return time.perf_counter() - begun


def ready() -> float:
    """From the start of the process to its answer to a client's first message."""
    with tempfile.TemporaryDirectory() as directory:
        repo = Path(directory, "repo")
        ostree(repo, "init", "--mode=archive-z2")
        ostree(repo, "summary", "-u")
        begun = time.perf_counter()
        process = subprocess.Popen(
            [RECEIVER, "--pull-url", "http://x", repo], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin
        assert process.stdout
        process.stdin.write(frames.info(0, {}))
        process.stdin.flush()
        process.stdout.read(frames.HEADER_BYTES)
        seconds = time.perf_counter() - begun
        process.stdin.write(frames.done())
        process.communicate()
        return seconds


def nothing() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - begun


def in_turns(runs: int, *measured: Callable[[], float]) -> list[float]:
    """The median of each; they take turns, so that a slow minute is slow for all."""
    taken = [[one() for one in measured] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ostree", description="Measure the receiver.")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="compare with bars.toml")
    parser.add_argument("--directory", type=Path, help="on the file system to be measured; default: a temporary one")
    options = parser.parse_args()
    bars = tomllib.loads(BARS.read_text())["ostree"]
    missed = []

    def tell(what: str, ours: float, than: str, theirs: float) -> None:
        ratio, bar = ours / theirs, bars[what]
        verdict = "" if ratio <= bar else "  MISSED"
        print(
            f"{what:14} {ours * 1000:8.1f} ms   {than:38} {theirs * 1000:8.1f} ms   ratio {ratio:5.2f}, at most {bar}{verdict}"
        )
        missed.extend([what] * bool(verdict))

    compileall.compile_dir(Path(millpond.__file__).parent, quiet=1)  # as pip does for what it installs
    begun, empty = in_turns(10 * options.runs, ready, nothing)
    tell("ready", begun, "python -c pass", empty)
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        tempfile.TemporaryDirectory(dir=ELSEWHERE) as elsewhere,
    ):
        for name, make in (("large", make_large), ("small", make_small)):
            root, far = Path(directory, name), Path(elsewhere, name)
            root.mkdir()
            one = Commit(root, make)
            shutil.copytree(one.archive, far)
            measured = (one.received, *(partial(one.pulled, source) for source in (one.client, far, one.archive)))
            ours, client, copied, linked = in_turns(options.runs, *measured)
            tell(f"{name}-made", ours, "pull-local from bare-user", client)
            tell(f"{name}-copied", ours, "pull-local from an archive elsewhere", copied)
            print(f"{'':28}   {'pull-local that makes links':38} {linked * 1000:8.1f} ms")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
