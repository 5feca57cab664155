"""Who is pulling which commits at the moment, so that prune leaves them alone.

The rule: a pull is in use from the request for its commit until its peer falls silent. HTTP does not say which object
belongs to which pull, so whatever an address asks for keeps alive all that it began within the last hour.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.core import limits
from millpond.web.messages import Content


@dataclass(slots=True)
class _Peer:
    began: OrderedDict[str, float] = field(default_factory=OrderedDict)
    noted_seconds: float = float("-inf")


class Pulls:
    """Remembers the commits of each peer for a while. For any thread."""

    def __init__(self, note: Callable[[str], None], *, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        """``note`` keeps for prune that this commit is in use now."""
        self._note = note
        self._monotonic_seconds = monotonic_seconds
        self._lock = threading.Lock()
        self._peers: OrderedDict[str, _Peer] = OrderedDict()  # who was heard last stands last

    def begin(self, peer: str, commit: str) -> None:
        """``peer`` asks for a commit, and will for what it holds."""
        now = self._monotonic_seconds()
        with self._lock:
            known = self._peers.setdefault(peer, _Peer())
            again = now - known.began.get(commit, float("-inf")) < limits.USE_NOTED_SECONDS
            known.began[commit] = now
            known.began.move_to_end(commit)
            if len(known.began) > limits.PULLED_COMMITS:
                known.began.popitem(last=False)
            self._peers.move_to_end(peer)
            if len(self._peers) > limits.PULLING_PEERS:
                self._peers.popitem(last=False)
        if not again:  # a client asks for the same commit several times in a row
            self._note(commit)

    def go_on(self, peer: str) -> None:
        """``peer`` asks for something else, or takes more of it."""
        now = self._monotonic_seconds()
        with self._lock:
            known = self._peers.get(peer)
            if known is None or now - known.noted_seconds < limits.USE_NOTED_SECONDS:
                return
            known.noted_seconds = now
            self._peers.move_to_end(peer)
            for commit in [one for one, began in known.began.items() if now - began > limits.PULL_SECONDS]:
                del known.began[commit]
            commits = list(known.began)
        for commit in commits:
            self._note(commit)


@dataclass(frozen=True, slots=True)
class Pulled:
    """``content`` on its way to ``peer``, whose pull goes on with each part that it takes."""

    content: Content
    pulls: Pulls
    peer: str

    def read(self, offset: int, count: int) -> bytes:
        """As of ``content``."""
        self.pulls.go_on(self.peer)
        return self.content.read(offset, count)

    def close(self) -> None:
        """As of ``content``."""
        self.content.close()
