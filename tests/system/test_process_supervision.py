"""The supervisor with workers that misbehave on demand: each is a ``serve`` of a few lines in the real worker."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

DEADLINE_SECONDS = 30
SOON_SECONDS = 5.0
"""What must not wait for anything. Without the code that sees to it, it would take minutes; a busy machine may take seconds
for what a quiet one does at once."""

_SUPERVISOR = """
import os, sys
from pathlib import Path
from millpond import supervisor
from millpond.cli.running import run_command
from millpond.config.logs import set_up_logging
from millpond.config.settings import Listener, LogLevel, Settings
import click

supervisor._GRACE_SECONDS = 1.0

def announce(listeners, quota):
    print("ready", len(listeners), quota, flush=True)

@click.command()
def run():
    listeners, drain_seconds = (Listener("127.0.0.1", 0),), float(os.environ["DRAIN_SECONDS"])
    settings = Settings(repo=Path("repo").absolute(), listeners=listeners, workers=2, drain_seconds=drain_seconds)
    set_up_logging(LogLevel.INFO, "supervisor")
    return supervisor.supervise(settings, announce=announce, command=[sys.executable, "worker.py"])

run_command(run, "program")
"""
_WORKER = """
import asyncio, os, signal, sys, time
from pathlib import Path
from millpond.config.handover import Role
from millpond.core.errors import RefusedToStart
from millpond.worker import run

async def serve(settings, *, worker, ready, stop):
    Path(f"new-{worker}").write_text(str(os.getpid()))
    Path(f"new-{worker}").rename(f"worker-{worker}")
%s

async def keep_up(settings, *, worker, ready, stop):
    ready("")
    await stop.wait()

role = Role(sys.argv[1])
run(role, int(sys.argv[2]), int(sys.argv[3]), keep_up if role is Role.UPKEEP else serve)
"""


class Supervised:
    """A supervisor whose two workers run ``body``; their process ids are in files."""

    def __init__(self, directory: Path, body: str, *, drain_seconds: float = 1) -> None:
        self.directory = directory
        (directory / "worker.py").write_text(_WORKER % textwrap.indent(textwrap.dedent(body), "    "))
        (directory / "supervisor.py").write_text(_SUPERVISOR)
        with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "supervisor.py"],
                cwd=directory,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "DRAIN_SECONDS": f"{drain_seconds}"},
            )

    @property
    def err(self) -> str:
        return (self.directory / "err").read_text()

    @property
    def said(self) -> str:
        """What it said on standard error, but for what it says when opening takes long, which is the machine's doing."""
        return self.err.removeprefix(f"opening {self.directory}/repo …\n")

    @property
    def workers(self) -> list[int]:
        return [int((self.directory / f"worker-{index}").read_text()) for index in range(2)]

    def await_text(self, name: str, pattern: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not re.search(pattern, (self.directory / name).read_text()):
            assert time.monotonic() < deadline, f"no {pattern!r} in {name}; on stderr:\n{self.err}"
            time.sleep(0.01)

    def await_ready(self) -> None:
        self.await_text("out", "ready")

    def wait(self) -> int:
        return self.process.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


RunWorkers = Callable[..., Supervised]


@pytest.fixture
def run_workers(tmp_path: Path) -> Iterator[RunWorkers]:
    started: list[Supervised] = []

    def start(body: str, *, drain_seconds: float = 1) -> Supervised:
        started.append(Supervised(tmp_path, body, drain_seconds=drain_seconds))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def lives(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_refusal_of_the_first_start_is_one_sentence_and_status_2(run_workers: RunWorkers) -> None:
    server = run_workers("raise RefusedToStart('the repository is\\nof a newer format: use a newer Millpond')")
    assert server.wait() == 2
    assert server.said == "program: the repository is of a newer format: use a newer Millpond\n"


def test_one_worker_that_refuses_takes_the_others_along(run_workers: RunWorkers) -> None:
    server = run_workers("""
        while worker == 1:
            if Path("worker-0").exists():
                raise RefusedToStart("no")
            await asyncio.sleep(0.01)
        ready('1 GB')
        await stop.wait()
    """)
    assert server.wait() == 2
    assert not any(map(lives, server.workers))


def test_a_bug_at_the_first_start_is_a_sentence_and_status_1(run_workers: RunWorkers) -> None:
    server = run_workers("raise KeyError('what')")
    assert server.wait() == 1
    assert re.fullmatch(r"program: worker [01] failed \(KeyError: 'what'\): --log-level trace says more\n", server.said)


def test_a_worker_that_dies_without_a_word_at_the_first_start_is_status_1(run_workers: RunWorkers) -> None:
    server = run_workers("os.kill(os.getpid(), signal.SIGSEGV)")
    assert server.wait() == 1
    assert "was ended by signal 11 (SIGSEGV) before it was ready" in server.err


def test_a_crash_before_all_are_ready_has_the_index_made_anew_once(run_workers: RunWorkers) -> None:
    server = run_workers("""
        Path("repo/index").mkdir(exist_ok=True)
        if not Path("repo/index/distrusted").exists():
            os.kill(os.getpid(), signal.SIGABRT)
        ready('1 GB')
        await stop.wait()
    """)
    server.await_ready()
    assert "(SIGABRT) before it was ready: all processes start again, and the index is made anew" in server.err
    server.process.terminate()
    assert server.wait() == 0


def test_a_worker_that_keeps_dying_is_started_less_and_less_often(run_workers: RunWorkers) -> None:
    server = run_workers("""
        ready('1 GB')
        while not Path("all").exists():
            await asyncio.sleep(0.01)
        if worker == 0:
            os._exit(7)
        await stop.wait()
    """)
    server.await_ready()
    (server.directory / "all").touch()
    server.await_text("err", r"0\.8 seconds")
    waits = re.findall(r"worker 0 ended with status 7; starting it again in (\S+) seconds", server.err)
    assert waits == ["0.1", "0.2", "0.4", "0.8"]
    assert "worker 1" not in server.err
    server.process.terminate()
    assert server.wait() == 0


def test_a_restarted_worker_that_is_refused_is_tried_again(run_workers: RunWorkers) -> None:
    server = run_workers("""
        if Path("full").exists():
            raise RefusedToStart("the disk is full")
        ready('1 GB')
        await stop.wait()
    """)
    server.await_ready()
    full = server.directory / "full"
    full.touch()
    os.kill(server.workers[0], signal.SIGKILL)
    server.await_text("err", r"worker 0: the disk is full(.|\n)*worker 0 ended with status 2; starting it again")
    full.unlink()
    server.await_text("err", "worker 0 serves again")
    server.process.terminate()
    assert server.wait() == 0


def test_crashes_in_a_row_have_the_index_made_anew_by_processes_that_start_together(run_workers: RunWorkers) -> None:
    server = run_workers("""
        ready('1 GB')
        Path("repo/index").mkdir(exist_ok=True)
        note = Path("repo/index/distrusted")
        while worker == 0 and not note.exists():
            await asyncio.sleep(0.05)
            if Path("go").exists():
                os.kill(os.getpid(), signal.SIGBUS)
        await stop.wait()
    """)
    server.await_ready()
    other = server.workers[1]
    (server.directory / "go").touch()
    server.await_text("err", "3 crashes in a row: all processes start again")
    server.await_text("err", "worker 1 was ended by signal 9")
    server.await_text("err", r"made anew(.|\n)*worker 0 serves again")
    server.await_text("err", r"made anew(.|\n)*worker 1 serves again")
    assert other not in server.workers
    server.process.terminate()
    assert server.wait() == 0


def test_kills_are_not_crashes(run_workers: RunWorkers) -> None:
    server = run_workers("ready('1 GB')\nawait stop.wait()")
    server.await_ready()
    for times in range(1, 5):
        os.kill(server.workers[0], signal.SIGKILL)
        server.await_text("err", rf"(worker 0 serves again(.|\n)*){{{times}}}")
    assert not (server.directory / "repo" / "index" / "distrusted").exists()
    assert "in a row" not in server.err
    server.process.terminate()
    assert server.wait() == 0


STUCK = """
    ready('1 GB')
    time.sleep(1000)  # a loop that is stuck
"""
BUSY = """
    ready('1 GB')
    while True:
        pass
"""


@pytest.mark.parametrize(
    "body", [STUCK, BUSY, "ready('1 GB')\nawait asyncio.sleep(1000)"], ids=["stuck", "busy", "deaf"]
)
def test_workers_do_not_outlive_the_supervisor(run_workers: RunWorkers, body: str) -> None:
    server = run_workers(body)
    server.await_ready()
    workers = server.workers
    os.kill(server.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + SOON_SECONDS
    while any(map(lives, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(lives, workers))


def test_a_worker_that_does_not_stop_is_killed_after_the_drain(run_workers: RunWorkers) -> None:
    server = run_workers("ready('1 GB')\nawait asyncio.sleep(1000)")
    server.await_ready()
    begin = time.monotonic()
    server.process.terminate()
    assert server.wait() == 0
    assert time.monotonic() - begin >= 2  # a second to drain, one to close
    assert "did not end in time and are cut off" in server.err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_now(run_workers: RunWorkers, number: signal.Signals, status: int) -> None:
    server = run_workers("ready('1 GB')\nawait asyncio.sleep(1000)", drain_seconds=1000)
    server.await_ready()
    server.process.send_signal(number)
    server.await_text("err", "stopping; running transfers get up to 1000 s\n")
    server.process.send_signal(number)
    assert server.wait() == status
    assert not any(map(lives, server.workers))


def test_a_terminal_that_interrupts_the_whole_group_interrupts_no_transfer(run_workers: RunWorkers) -> None:
    server = run_workers(
        """
        ready('1 GB')
        await stop.wait()
        await asyncio.sleep(0.5)
        Path(f"finished-{worker}").touch()
    """,
        drain_seconds=60,
    )
    server.await_ready()
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.wait() == 0
    assert len(list(server.directory.glob("finished-*"))) == 2


def test_the_greeting_is_told_what_the_first_worker_knows(run_workers: RunWorkers) -> None:
    server = run_workers("""
        while worker == 1 and not Path("told").exists():
            await asyncio.sleep(0.01)
        ready(f"{worker + 1} GB")
        Path("told").touch()
        await stop.wait()
    """)
    server.await_text("out", r"ready 1 1 GB\n")
    server.process.terminate()
    assert server.wait() == 0


def test_opening_that_takes_long_is_said_once_and_no_earlier(run_workers: RunWorkers) -> None:
    begin = time.monotonic()
    server = run_workers("""
        while not Path("go").exists():
            await asyncio.sleep(0.01)
        ready('1 GB')
        await stop.wait()
    """)
    server.await_text("err", "opening")
    assert time.monotonic() - begin >= 1
    (server.directory / "go").touch()
    server.await_ready()
    assert server.err == f"opening {server.directory}/repo …\n"
    server.process.terminate()
    assert server.wait() == 0


def test_the_end_is_said_at_its_beginning_and_when_it_is_over(run_workers: RunWorkers) -> None:
    server = run_workers("ready('1 GB')\nawait stop.wait()")
    server.await_ready()
    server.process.terminate()
    assert server.wait() == 0
    assert server.said == "SIGTERM: stopping; running transfers get up to 1 s\nstopped\n"


def test_a_stop_before_the_server_is_ready_is_not_a_failure(run_workers: RunWorkers) -> None:
    server = run_workers("await stop.wait()")
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (server.directory / "worker-1").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    server.process.terminate()
    assert server.wait() == 0


def test_a_hangup_is_noted_and_ends_nothing(run_workers: RunWorkers) -> None:
    server = run_workers("ready('1 GB')\nawait stop.wait()")
    server.await_ready()
    os.killpg(server.process.pid, signal.SIGHUP)
    server.await_text("err", "SIGHUP: nothing to do")
    assert all(map(lives, server.workers))
    server.process.terminate()
    assert server.wait() == 0


def test_nothing_is_imported_from_the_directory_it_is_started_in(tmp_path: Path) -> None:
    for name in ("grpc.py", "uvloop.py", "lmdb.py"):
        (tmp_path / name).write_text("raise SystemExit('imported from the working directory')")
    command = ["millpond", "serve", "--listen", "127.0.0.1:0", "--workers", "1"]
    program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "Millpond" in server.stdout.readline()
        server.terminate()
