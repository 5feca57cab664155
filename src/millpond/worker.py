"""A process that serves, or does upkeep: ``python -m millpond.worker ROLE INDEX REPORT_DESCRIPTOR``, started by the supervisor.

The rule: it never outlives the supervisor. A thread reads standard input, whose end means that the supervisor is gone;
even an event loop that is stuck is gone half a second later, and a worker that nobody watches never holds a port.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NoReturn, Protocol

import uvloop

from millpond.config.handover import News, Report, Role
from millpond.config.logs import set_up_logging
from millpond.config.settings import Settings
from millpond.core.errors import RefusedToStart

_LOG = logging.getLogger(__name__)
_ORPHAN_SECONDS = 0.5
_LOST = threading.Event()
_SWITCH_SECONDS = 0.0005


class Serve(Protocol):
    """What a role does. Returns when it has drained after ``stop``."""

    def __call__(
        self, settings: Settings, *, worker: int, ready: Callable[[str], None], stop: asyncio.Event
    ) -> Awaitable[None]:
        """Serve until ``stop``; call ``ready`` once, with the quota as people are to be told it.

        Raises:
            RefusedToStart: the repository cannot be used as it is.
        """
        ...


def run(role: Role, index: int, report_fd: int, serve: Serve) -> NoReturn:
    """Be the process: read the settings, serve, report, end."""
    # Ctrl-C in a terminal reaches the whole group; only the supervisor answers it, and tells us.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    # The loop thread must get the GIL back from a hashing or reading thread soon: with the default of 5 ms a small
    # call that comes while two threads are busy waits 10 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    settings = Settings.from_json(sys.stdin.buffer.readline().decode())
    set_up_logging(settings.log_level, f"{role} {index}")
    status = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_until_told(settings, index, report_fd, serve))
    except RefusedToStart as refusal:
        _tell(report_fd, Report(News.REFUSED, str(refusal)))
        status = 2
    except Exception as error:
        # One sentence for the user; whoever wants the story asks for it.
        _LOG.debug("%s %d failed", role, index, exc_info=True)
        sentence = f"{role} {index} failed ({type(error).__name__}: {error}): --log-level trace says more"
        _tell(report_fd, Report(News.FAILED, sentence))
        status = 1
    _end(status)


async def _serve_until_told(settings: Settings, index: int, report_fd: int, serve: Serve) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    threading.Thread(target=_end_with_the_supervisor, args=(loop, stop), name="orphan-watch", daemon=True).start()

    def ready(quota: str) -> None:
        _calm_the_collector()
        _tell(report_fd, Report(News.READY, quota))

    _tell(report_fd, Report(News.OPENING))
    await serve(settings, worker=index, ready=ready, stop=stop)


def _calm_the_collector() -> None:
    """Collect garbage rarely: a batch makes tens of thousands of tuples, none of them part of a cycle."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _end_with_the_supervisor(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    # Not a word to the log: if it is a pipe that nobody empties, the writer would wait for ever.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def _end_for_a_fresh_one(failure: BaseException, damaged: bool) -> None:  # noqa: FBT001 - called by position
    """A database is lost to this process: let the supervisor start another, which opens it anew.

    Where pages may be damaged it ends like a crash, because crashes in a row have made anew what can be.
    """
    if _LOST.is_set():
        return  # every call says so again
    _LOST.set()
    _LOG.critical(
        "a database is of no more use to this process, which ends so that another may take its place: %s", failure
    )
    os.kill(os.getpid(), signal.SIGABRT if damaged else signal.SIGTERM)


def _tell(report_fd: int, report: Report) -> None:
    try:
        os.write(report_fd, report.line())
    except BrokenPipeError:
        _LOG.debug("nobody listens to reports any more")


def _end(status: int) -> NoReturn:
    """Leave at once. Whatever must be closed is closed; the interpreter's own end would wait for every pool thread."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


def main() -> NoReturn:
    """The process that the supervisor starts."""
    role, index, report_fd = Role(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if role is not Role.OSTREE:
        from millpond.disk import environment  # LMDB: not for those who test ``run``

        environment.end_when_lost(_end_for_a_fresh_one)
    run(role, index, report_fd, _role(role))


def _role(role: Role) -> Serve:
    """What a role does. Imported in its own process only: upkeep has no use for gRPC, and ``run`` is tested without."""
    if role is Role.UPKEEP:
        from millpond.upkeep import keep_up

        return keep_up
    if role is Role.OSTREE:
        from millpond import serving_ostree

        return serving_ostree.serve
    from millpond.app import serve

    return serve


if __name__ == "__main__":
    main()
