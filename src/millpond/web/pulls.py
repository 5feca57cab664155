"""Who is pulling which commits at the moment, so that prune leaves them alone.

The rule: a commit is in use from the request for it until the connection by which it came is closed by its peer. A
client keeps its connections while it pulls, and asks for objects by others as well; so whatever comes from its address
renews what it has begun. Behind a proxy a connection may say nothing about a pull; what came by one that we closed, or
that was for one request, counts for a while longer.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from millpond.core import limits
from millpond.web.messages import Content, Peer


@dataclass(slots=True)
class _Pull:
    commit: str
    peer: Peer
    began_seconds: float

    def goes_on(self, now: float) -> bool:
        """Whether its peer may still want something of it."""
        if self.peer.left:
            return False
        return self.peer.connected or now - self.began_seconds <= limits.PULL_SECONDS


@dataclass(slots=True)
class _Address:
    pulls: OrderedDict[tuple[str, int], _Pull] = field(default_factory=OrderedDict)
    noted_seconds: float = float("-inf")


class Pulls:
    """Remembers the commits of each address for a while. For any thread."""

    def __init__(self, note: Callable[[str], None], *, monotonic_seconds: Callable[[], float] = time.monotonic) -> None:
        """``note`` keeps for prune that this commit is in use now."""
        self._note = note
        self._monotonic_seconds = monotonic_seconds
        self._lock = threading.Lock()
        self._addresses: OrderedDict[str, _Address] = OrderedDict()  # who was heard last stands last

    def begin(self, peer: Peer, commit: str) -> None:
        """``peer`` asks for a commit, and will for what it holds."""
        now = self._monotonic_seconds()
        with self._lock:
            pulls = self._addresses.setdefault(peer.address, _Address()).pulls
            known = pulls.pop((commit, id(peer)), None)
            pulls[commit, id(peer)] = _Pull(commit, peer, now)
            if len(pulls) > limits.PULLED_COMMITS:
                pulls.popitem(last=False)
            self._addresses.move_to_end(peer.address)
            if len(self._addresses) > limits.PULLING_PEERS:
                self._addresses.popitem(last=False)
        # A client asks for the same commit several times in a row.
        if known is None or now - known.began_seconds >= limits.USE_NOTED_SECONDS:
            self._note(commit)

    def go_on(self, peer: Peer) -> None:
        """``peer`` asks for something else, or takes more of it."""
        now = self._monotonic_seconds()
        with self._lock:
            known = self._addresses.get(peer.address)
            if known is None or now - known.noted_seconds < limits.USE_NOTED_SECONDS:
                return
            known.noted_seconds = now
            self._addresses.move_to_end(peer.address)
            for key in [key for key, pull in known.pulls.items() if not pull.goes_on(now)]:
                del known.pulls[key]
            commits = {pull.commit for pull in known.pulls.values()}
        for commit in commits:
            self._note(commit)


@dataclass(frozen=True, slots=True)
class Pulled:
    """``content`` on its way to ``peer``, whose pulls go on with each part that it takes."""

    content: Content
    pulls: Pulls
    peer: Peer

    def read(self, offset: int, count: int) -> bytes:
        """As of ``content``."""
        self.pulls.go_on(self.peer)
        return self.content.read(offset, count)

    def close(self) -> None:
        """As of ``content``."""
        self.content.close()
