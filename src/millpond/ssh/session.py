"""One push, from the client's first message to our last.

::

    client                         receiver
    info (refs it asks for)   ->
                              <-   info (archive-z2, those of the refs that we have, the pull URL)
    done, and that was all; or
    update (ref: old, new)    ->
                              <-   status (welcome, or why not)
    done, and that was all; or
    putobjects, tar, done     ->
                              <-   done, when all of it is stored and the summary says so

The rule: it ends when the client has said ``done``, not when its input ends: the clients of 1.0 wait for us to end before
they close it. Refs that were not asked for are not told: clients take that for a conflict and send their objects
nevertheless.
"""

from __future__ import annotations

import os

from millpond.core.errors import InvalidRequest, MillpondError
from millpond.core.limits import OSTREE_REFS
from millpond.protocol.ostree import frames
from millpond.protocol.ostree.names import NOTHING, check_checksum, check_ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from millpond.ssh.incoming import Incoming
    from millpond.ssh.receiving import Receiver
    from millpond.store.ostree.repository import Repository


class Refused(Exception):
    """The push was refused, and the client was told why."""


class Session:
    """One client at the other end of two pipes.

    ``trace`` is told every message.
    """

    def __init__(
        self,
        incoming: Incoming,
        output: int,
        repository: Repository,
        pull_url: str,
        receiver: Callable[[dict[str, str]], Receiver],
        trace: Callable[[str], None],
    ) -> None:
        self._incoming = incoming
        self._output = output
        self._repository = repository
        self._pull_url = pull_url
        self._receiver = receiver
        self._trace = trace

    def run(self) -> None:
        """Serve the client.

        Raises:
            Refused: with a status that says why.
            MillpondError: without: at this point of the protocol there is no message for it.
            OSError: the client is gone, or the disk fails.
        """
        _, asked = self._expect(frames.INFO)
        self._send(frames.info(frames.ARCHIVE_MODE, self._known(asked["refs"]), self._pull_url))
        command, commits = self._expect(frames.UPDATE, frames.DONE)
        if command == frames.DONE:
            return
        try:
            wanted = _wanted(commits)
            receiver = self._receiver(wanted)
        except MillpondError as why:
            self._refuse(str(why))
        try:
            self._send(frames.status(result=True, message=""))
            command, _ = self._expect(frames.PUTOBJECTS, frames.DONE)
            if command == frames.DONE:
                return
            receiver.receive(self._incoming)
            self._expect(frames.DONE)
            receiver.store()
        finally:
            receiver.close()
        self._send(frames.done())

    def _known(self, asked: object) -> dict[str, str]:
        """Those of these refs that we have."""
        assert isinstance(asked, dict)
        if not asked:
            return {}
        from millpond.store.ostree.refs import HEADS, read_ref

        found = {ref: read_ref(f"{self._repository.path}/{HEADS}/{check_ref(ref)}") for ref in asked}
        return {ref: commit for ref, commit in found.items() if commit}

    def _refuse(self, why: str) -> None:
        self._send(frames.status(result=False, message=why))
        self._expect(frames.DONE)
        raise Refused(why)

    def _expect(self, *commands: int) -> tuple[int, dict[str, object]]:
        order, command, size = frames.parse_header(self._incoming.take(frames.HEADER_BYTES))
        body = self._incoming.take(size)
        if command not in commands:
            names = " or ".join(frames.COMMANDS[one] for one in commands)
            raise InvalidRequest(f"the client said {frames.COMMANDS[command]}: {names} was expected")
        message = frames.parse_body(command, body, order)
        self._trace(f"the client: {frames.COMMANDS[command]} {message}")
        return command, message

    def _send(self, message: bytes) -> None:
        self._trace(f"we: {frames.COMMANDS[message[2]]}, {len(message)} bytes")
        while message:
            message = message[os.write(self._output, message) :]


def _wanted(update: dict[str, object]) -> dict[str, str]:
    """Each ref and its new commit.

    Raises:
        InvalidRequest: a ref or a commit is none, or there are none or too many.
    """
    if not 0 < len(update) <= OSTREE_REFS:
        raise InvalidRequest(f"an update of {len(update)} refs: from 1 to {OSTREE_REFS} were expected")
    wanted = {}
    for ref, pair in update.items():
        assert isinstance(pair, tuple)
        check_ref(ref)
        check_checksum(pair[0])
        wanted[ref] = check_checksum(pair[1])
        if wanted[ref] == NOTHING:
            raise InvalidRequest(f"the ref {ref!r} cannot be removed by a push")
    return wanted
