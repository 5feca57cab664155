"""The program ``bst-artifact-receive``.

The rule: on standard output there is nothing but the protocol; what else there is to say goes to standard error, one
sentence, and no path of ours is in it once a client may read it. Exit status: 0 when the client got what it asked
for, 1 when its push failed, 2 when the arguments or the repository cannot be used.
"""

from __future__ import annotations

import os
import sys

from millpond.core.errors import MillpondError, RefusedToStart
from millpond.ssh.arguments import PROGRAM, Arguments, Asked, WrongUsage, parse
from millpond.ssh.incoming import Incoming
from millpond.ssh.session import Refused, Session
from millpond.store.ostree.places import OLD_STAGING_PREFIX, STAGING_PREFIX, TMP
from millpond.store.ostree.repository import Repository, open_repository

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

    from millpond.ssh.receiving import Receiver


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run it and leave with its status."""
    environment = dict(os.environ)
    try:
        asked = parse(sys.argv[1:] if arguments is None else arguments, environment)
    except Asked as answer:
        print(answer)  # noqa: T201 — no client asks for it
        sys.exit(0)
    except WrongUsage as why:
        _say(f"{why} ({PROGRAM} --help)")
        sys.exit(2)
    try:
        output = os.dup(1)
        os.dup2(2, 1)  # whatever prints now, prints to standard error
    except OSError:
        sys.exit(2)  # nobody is there to whom it could be said
    try:
        repository = open_repository(asked.repo)
    except RefusedToStart as why:
        _say(str(why))
        sys.exit(2)
    sys.exit(_serve(asked, repository, output, environment))


def _serve(asked: Arguments, repository: Repository, output: int, environment: dict[str, str]) -> int:
    _remove_stale(repository.path)
    repository.heal()
    push = _Push(repository, environment, verbose=asked.verbose)
    trace = _say if asked.debug else _silent
    session = Session(Incoming(0), output, repository, asked.pull_url, push.begin, trace)
    try:
        session.run()
    except (MillpondError, Refused) as why:
        return push.failed(str(why))
    except BrokenPipeError:
        return push.failed("the client went away")
    except OSError as failure:
        from millpond.store.ostree.disk import refusal

        return push.failed(str(refusal(failure)))
    except (_Ended, KeyboardInterrupt):
        return push.failed("it was told to end")
    except Exception as bug:  # no traceback of ours reaches a client's log
        return push.failed(f"a bug of the cache: {type(bug).__name__}; nothing was stored")
    push.ended()
    return 0


class _Ended(BaseException):
    """A signal told us to end."""


class _Push:
    """What is to be told of a push, to the client and to the administrator."""

    def __init__(self, repository: Repository, environment: dict[str, str], *, verbose: bool) -> None:
        self._repository = repository
        self._environment = environment
        self._verbose = verbose
        self._commits: dict[str, str] = {}
        self._receiver: Receiver | None = None

    def begin(self, commits: dict[str, str]) -> Receiver:
        """The client wants these refs to be these commits; only now is there more to be imported."""
        self._commits = commits
        _end_on_signals()
        from millpond.core.clock import wall_clock
        from millpond.ssh.receiving import Receiver
        from millpond.store.ostree.disk import refusal

        try:
            self._receiver = Receiver(self._repository, commits, wall_clock, _say)
        except OSError as failure:
            raise refusal(failure) from None
        return self._receiver

    def ended(self) -> None:
        """All went well."""
        if self._receiver is None:
            return
        staging = self._receiver.staging
        if not staging.sizes:
            return  # the client left it at the question
        self._note(f"stored {staging.received_bytes} bytes in {len(staging.sizes)} objects")
        if self._verbose:
            _say(f"stored {len(staging.sizes)} objects, {staging.received_bytes} bytes, as {', '.join(self._commits)}")

    def failed(self, why: str) -> int:
        """It did not; the exit status."""
        _say(why)
        if self._commits:
            self._note(f"refused: {why}")
        return 1

    def _note(self, outcome: str) -> None:
        from millpond.core.clock import wall_clock
        from millpond.ssh.peer import who
        from millpond.store.ostree.pushes import note

        refs = " ".join(f"{ref}={commit}" for ref, commit in self._commits.items())
        note(self._repository.path, f"{refs} from {who(self._environment)}: {outcome}", wall_clock())


def _end_on_signals() -> None:
    """Clean up when we are told to end; before there is anything to clean up the default will do."""
    import signal

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _Ended

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)


def _remove_stale(repo: str) -> None:
    try:
        names = [name for name in os.listdir(f"{repo}/{TMP}") if name.startswith((STAGING_PREFIX, OLD_STAGING_PREFIX))]
    except OSError:
        return
    if names:
        from millpond.store.ostree.staging import remove_stale

        remove_stale(repo, names)


def _say(text: str) -> None:
    try:
        os.write(2, f"{PROGRAM}: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody listens


def _silent(_text: str) -> None:
    """What is not asked for."""


if __name__ == "__main__":
    main()
