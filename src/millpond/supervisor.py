"""The first process: claims the addresses, starts the others, keeps them running, and ends them.

The rule: it does so little that it does not fail. It serves nobody and opens no repository, so it loads neither gRPC
nor LMDB, and what it starts are fresh interpreters: a fork of a process that has either of them open does not survive.
Whatever ends it, its workers end too, because their standard input does.
"""

import logging
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from millpond.config.addresses import Claim, claim
from millpond.config.handover import News, Report, Role
from millpond.config.settings import Listener, Settings
from millpond.core.errors import RefusedToStart
from millpond.store.repository.distrust import distrust
from millpond.store.repository.layout import Layout

_LOG = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-P", "-m", "millpond.worker")  # -P: never import from the working directory
_BACK_OFF_SECONDS = 0.1
_BACK_OFF_MAX_SECONDS = 5.0
_YOUNG_SECONDS = 10.0
"""A process that lived less than this died of something that will be there again: wait twice as long as before."""
_OPENING_SECONDS = 1.0
"""Nobody wonders within this time why nothing happens."""
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
"""What a process dies of that looks at a damaged page. Not SIGKILL: that is somebody's decision, and hurts nothing."""
_CRASHES_OF_A_KIND = 3
_CRASHES_SECONDS = 60.0
"""So many within this time are no accident: the index is made anew."""
_GRACE_SECONDS = 5.0
"""Beyond the drain, for closing the repository. Then a process that still lives is killed."""


class CannotStart(Exception):
    """A process failed before it was ready, for a reason that is no setting's fault. Ends with exit status 1."""


@dataclass(slots=True)
class _Post:
    """One thing that must always run, and what runs there now."""

    role: Role
    index: int
    settings: Settings
    process: subprocess.Popen[bytes] | None = None
    reports: int = -1
    pending: bytes = b""
    ready: bool = False
    started_seconds: float = 0.0
    back_off_seconds: float = 0.0
    due_seconds: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}" if self.role is Role.WORKER else str(self.role)


def supervise(
    settings: Settings,
    *,
    announce: Callable[[Sequence[Listener], str], None],
    command: Sequence[str] = WORKER_COMMAND,
) -> int:
    """Serve until a signal says otherwise; return the exit status.

    ``announce`` is called once, when every process is ready, with the addresses as they turned out to be (those of OSTree
    last) and the quota in words. Opening that takes long, and stopping, are told on standard error whatever the log level.

    Raises:
        RefusedToStart: an address is taken, or the repository cannot be used.
        CannotStart: a process failed before it was ready.
    """
    with ExitStack() as stack:
        claims = _claim_all(settings.listeners, stack)
        if settings.workers:
            _make_repo(settings.repo)
        settings = replace(settings, listeners=tuple(one for held in claims for one in held.listeners))
        if settings.ostree is not None:
            for_ostree = _claim_all(settings.ostree.listeners, stack)
            listeners = tuple(one for held in for_ostree for one in held.listeners)
            settings = replace(settings, ostree=replace(settings.ostree, listeners=listeners))
            claims += for_ostree
        _raise_file_limit()
        posts = _posts(settings)
        supervisor = _Supervisor(posts, command, settings.drain_seconds, lambda: distrust(Layout(str(settings.repo))))
        stack.callback(supervisor.close)
        return supervisor.run(lambda quota: announce([held.shown for held in claims], quota))


def _claim_all(listeners: Sequence[Listener], stack: ExitStack) -> list[Claim]:
    claims: list[Claim] = []
    for listener in listeners:
        claims.append(claim(listener))
        stack.callback(claims[-1].release)
    return claims


def _posts(settings: Settings) -> list[_Post]:
    posts = [_Post(Role.WORKER, index, settings) for index in range(settings.workers)]
    if settings.workers:
        posts.append(_Post(Role.UPKEEP, 0, settings))
    if settings.ostree is not None:
        posts.append(_Post(Role.OSTREE, 0, settings))
    return posts


def _make_repo(repo: Path) -> None:
    """A missing repository begins as an empty directory; what lies there otherwise is for the store to judge."""
    try:
        repo.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RefusedToStart(f"{repo} is not a directory: name one, or a path where one can be made") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise RefusedToStart(f"{repo} cannot be made ({reason}): make it yourself or name another") from None


def _raise_file_limit() -> None:
    """A connection is a descriptor, and so is a segment; the soft limit of 1024 is there for programs that select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class _Supervisor:
    posts: Sequence[_Post]
    command: Sequence[str]
    drain_seconds: float
    distrust_index: Callable[[], None] = lambda: None
    _crashed_seconds: list[float] = field(default_factory=list)
    _waiting_for_all: bool = False
    _began_anew: bool = False
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _signals: socket.socket | None = None
    _failure: Exception | None = None
    _announced: bool = False
    _quota: str = ""
    _patient_seconds: float = float("inf")
    _stop_signal: int = 0
    _forced: int = 0
    _kill_seconds: float = float("inf")

    def run(self, announce: Callable[[str], None]) -> int:
        self._listen_to_signals()
        for post in self.posts:
            self._start(post)
        while not self._finished():
            for key, _ in self._selector.select(self._patience_seconds()):
                key.data()
            self._reap()
            self._restart_what_is_due()
            self._say_what_takes_long()
            if not self._announced and not self._stop_signal and all(post.ready for post in self.posts):
                self._announced = True
                announce(self._quota)
        if self._failure is not None and not self._announced:
            raise self._failure
        _say("stopped")
        return 128 + self._forced if self._forced else 0

    def close(self) -> None:
        """Leave nothing running, whatever happened."""
        for post in self.posts:
            if post.process is not None:
                post.process.kill()
                post.process.wait()
        self._selector.close()

    # -- signals ------------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        # Python's handlers run between byte codes; the descriptor also ends a select() that is under way.
        receiving, sending = socket.socketpair()
        for end in (receiving, sending):
            os.set_blocking(end.fileno(), False)
        self._signals = receiving
        self._selector.register(receiving, selectors.EVENT_READ, self._on_signals)
        signal.set_wakeup_fd(sending.detach(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, _noted)

    def _on_signals(self) -> None:
        assert self._signals is not None
        for number in self._signals.recv(4096):
            if number == signal.SIGHUP:
                _LOG.warning("SIGHUP: nothing to do; changed key files are read again by themselves")
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._stop(number)

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stop_signal:
            _LOG.warning("%s again: ending now, running transfers are cut off", name)
            self._forced = number
            self._signal_all(signal.SIGKILL)
            return
        _say(f"{name}: stopping; running transfers get up to {self.drain_seconds:g} s")
        self._begin_stopping(number)

    def _begin_stopping(self, number: int) -> None:
        self._stop_signal = number
        self._kill_seconds = time.monotonic() + self.drain_seconds + _GRACE_SECONDS
        self._signal_all(signal.SIGTERM)

    def _signal_all(self, number: signal.Signals) -> None:
        for post in self.posts:
            if post.process is not None:
                post.process.send_signal(number)

    # -- processes ----------------------------------------------------------------------------------------------

    def _start(self, post: _Post) -> None:
        reading, writing = os.pipe()
        post.process = subprocess.Popen(
            [*self.command, post.role, str(post.index), str(writing)], stdin=subprocess.PIPE, pass_fds=(writing,)
        )
        os.close(writing)
        os.set_blocking(reading, False)
        post.reports, post.pending, post.ready = reading, b"", False
        post.started_seconds = time.monotonic()
        self._selector.register(reading, selectors.EVENT_READ, lambda: self._on_report(post))
        assert post.process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once, which _reap() will tell
            post.process.stdin.write(post.settings.to_json().encode() + b"\n")
            post.process.stdin.flush()  # and stays open: its end is our end

    def _on_report(self, post: _Post) -> None:
        try:
            data = os.read(post.reports, 65536)
        except BlockingIOError:
            return
        if not data:
            self._close_reports(post)
            return
        *lines, post.pending = (post.pending + data).split(b"\n")
        for line in lines:
            self._heed(post, Report.parse(line))

    def _heed(self, post: _Post, report: Report) -> None:
        match report.news:
            case News.OPENING:
                self._patient_seconds = min(self._patient_seconds, time.monotonic() + _OPENING_SECONDS)
            case News.READY:
                post.ready = True
                self._quota = self._quota or report.sentence
                if self._announced:
                    _LOG.warning("%s %s again", post.name, "works" if post.role is Role.UPKEEP else "serves")
            case News.REFUSED | News.FAILED if self._announced:
                _LOG.error("%s: %s", post.name, report.sentence)
            case News.REFUSED | News.FAILED if self._failure is None:
                refused = report.news is News.REFUSED
                self._failure = RefusedToStart(report.sentence) if refused else CannotStart(report.sentence)

    def _close_reports(self, post: _Post) -> None:
        if post.reports >= 0:
            self._selector.unregister(post.reports)
            os.close(post.reports)
            post.reports = -1

    def _reap(self) -> None:
        for post in self.posts:
            if post.process is None or post.process.poll() is None:
                continue
            while post.reports >= 0:  # what it said last explains why it died
                self._on_report(post)
            status = post.process.returncode
            if post.process.stdin is not None:
                with suppress(BrokenPipeError):
                    post.process.stdin.close()
            post.process, post.ready = None, False
            self._on_death(post, status)

    def _on_death(self, post: _Post, status: int) -> None:
        how = _in_words(status)
        if self._stop_signal:
            # A process that has not come to its handler for SIGTERM dies of it, which is as good.
            if status not in (0, -signal.SIGTERM) and not self._forced and self._failure is None:
                _LOG.warning("%s %s while stopping", post.name, how)
            return
        if not self._announced:
            self._on_early_death(post, status, how)
            return
        now = time.monotonic()
        young = now - post.started_seconds < _YOUNG_SECONDS
        doubled = min(2 * post.back_off_seconds, _BACK_OFF_MAX_SECONDS)
        post.back_off_seconds = doubled if young and doubled else _BACK_OFF_SECONDS
        post.due_seconds = now + post.back_off_seconds
        _LOG.warning("%s %s; starting it again in %.1f seconds", post.name, how, post.back_off_seconds)
        if post.role is not Role.OSTREE:  # which has nothing to do with the index
            self._heed_crash(status, now)

    def _on_early_death(self, post: _Post, status: int, how: str) -> None:
        """Before all are ready a death is the end; but a crash may come of damaged pages, which is tried once."""
        if self._waiting_for_all:
            return  # it was we who ended it
        if -status in _CRASHES and not self._began_anew and post.role is not Role.OSTREE:
            self._begin_anew(f"{post.name} {how} before it was ready")
            return
        if self._failure is None:
            self._failure = CannotStart(f"{post.name} {how} before it was ready: the log above says why")
        self._begin_stopping(signal.SIGTERM)

    def _begin_anew(self, why: str) -> None:
        """Have the index made anew: for that all must have let it go."""
        _LOG.error("%s: all processes start again, and the index is made anew", why)
        self.distrust_index()
        self._waiting_for_all = self._began_anew = True
        self._signal_all(signal.SIGKILL)

    def _heed_crash(self, status: int, now: float) -> None:
        """After several crashes in a row, begin anew."""
        if -status not in _CRASHES or self._waiting_for_all:
            return
        self._crashed_seconds = [at for at in self._crashed_seconds if now - at < _CRASHES_SECONDS] + [now]
        if len(self._crashed_seconds) >= _CRASHES_OF_A_KIND:
            self._crashed_seconds.clear()
            self._begin_anew(f"{_CRASHES_OF_A_KIND} crashes in a row")

    def _restart_what_is_due(self) -> None:
        if self._stop_signal:
            if time.monotonic() > self._kill_seconds:
                _LOG.warning("some transfers did not end in time and are cut off")
                self._kill_seconds = float("inf")
                self._signal_all(signal.SIGKILL)
            return
        if self._waiting_for_all and any(post.process is not None for post in self.posts):
            return
        self._waiting_for_all = False
        for post in self.posts:
            if post.process is not None or time.monotonic() < post.due_seconds:
                continue
            try:
                self._start(post)
            except OSError as error:  # no memory, no descriptors: not a reason to end what still serves
                post.due_seconds = time.monotonic() + _BACK_OFF_MAX_SECONDS
                _LOG.error("%s cannot be started now: %s", post.name, error)

    def _say_what_takes_long(self) -> None:
        if self._announced or self._stop_signal:
            self._patient_seconds = float("inf")
        elif time.monotonic() >= self._patient_seconds:
            self._patient_seconds = float("inf")
            _say(f"opening {self.posts[0].settings.repo} …")

    def _patience_seconds(self) -> float | None:
        waiting = [post.due_seconds for post in self.posts if post.process is None and not self._stop_signal]
        soonest = min([*waiting, self._kill_seconds, self._patient_seconds])
        return None if soonest == float("inf") else max(0.0, soonest - time.monotonic()) + 0.001

    def _finished(self) -> bool:
        return bool(self._stop_signal) and all(post.process is None for post in self.posts)


def _say(text: str) -> None:
    """One plain line for whoever watches; not a log record, so that no level hides it."""
    with suppress(OSError):  # nobody reads it any more
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor carries the number; a handler is needed so that the default is not taken."""


def _in_words(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was ended by signal {-status}"
