"""Leads threads through chosen orders of their steps, and through all orders up to a number of switches.

An *actor* is a function in a thread of its own that runs only when it is its turn, from one *pause* to the next. Pauses
are put into the real code where a step of the protocol ends (``pausing``); whoever waits for a lock pauses as well. So
one order of steps is one run, and it can be had again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import pytest

_PATIENCE_SECONDS = 30


class Killed(BaseException):
    """Raised in an actor that is killed; nothing in the code may catch it for good."""


class Choice(NamedTuple):
    """Who goes on, or is killed where it is."""

    actor: str
    kill: bool = False


class Decision(NamedTuple):
    """A moment at which somebody had to be chosen."""

    options: tuple[Choice, ...]
    chosen: Choice
    before: str
    """Whose turn it had been."""


class _Actor:
    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.work = work
        self.go = threading.Semaphore(0)
        self.killed = False
        self.waits = False
        """For somebody else to do something."""
        self.at = "the beginning"
        self.ended = False


class Turns:
    """One run. ``prefix`` says whose turn it is at first; after it everybody goes on as long as they can."""

    def __init__(self, prefix: Sequence[Choice] = (), *, killable: str = "") -> None:
        self._prefix = list(prefix)
        self._killable = killable
        self._kills = 0
        self._actors: dict[str, _Actor] = {}
        self._threads: dict[int, _Actor] = {}
        self._lent: dict[int, str] = {}
        self._said: SimpleQueue[tuple[_Actor, BaseException | None]] = SimpleQueue()
        self.decisions: list[Decision] = []
        self.story: list[str] = []

    def begin(self, name: str, work: Callable[[], Any]) -> None:
        """An actor that may begin when it is its turn."""
        actor = self._actors[name] = _Actor(name, work)
        threading.Thread(target=self._live, args=(actor,), daemon=True).start()

    def lend(self, thread: threading.Thread, name: str) -> None:
        """What this thread does, it does for an actor who waits for it meanwhile."""
        assert thread.ident
        self._lent[thread.ident] = name

    def _live(self, actor: _Actor) -> None:
        self._threads[threading.get_ident()] = actor
        failure: BaseException | None = None
        try:
            actor.go.acquire()
            actor.work()
        except BaseException as why:
            failure = why
        actor.ended = True
        self._said.put((actor, failure))

    def pause(self, at: str, *, waits: bool = False) -> None:
        """In the code: a step ends here. ``waits``: nothing can be done until somebody else did something."""
        thread = threading.get_ident()
        actor = self._threads.get(thread) or self._actors.get(self._lent.get(thread, ""))
        if actor is None:
            return
        actor.at, actor.waits = at, waits
        self._said.put((actor, None))
        if not actor.go.acquire(timeout=_PATIENCE_SECONDS):
            raise AssertionError(f"{actor.name} was forgotten {at}")
        if actor.killed:
            raise Killed

    def run(self) -> None:
        """Until all have ended.

        Raises:
            AssertionError: somebody failed, or nobody can go on.
        """
        current = ""
        while options := self._options(current):
            step = len(self.decisions)
            chosen = self._prefix[step] if step < len(self._prefix) else options[0]
            assert chosen in options, f"{chosen} of {options}"
            self.decisions.append(Decision(tuple(options), chosen, current))
            self._do(chosen)
            current = chosen.actor
        stuck = [f"{actor.name} {actor.at}" for actor in self._actors.values() if not actor.ended]
        assert not stuck, f"nobody can go on: {stuck}"

    def _options(self, current: str) -> list[Choice]:
        able = [name for name, actor in self._actors.items() if not actor.ended and not actor.waits]
        able.sort(key=lambda name: name != current)
        kills = [Choice(name, kill=True) for name in able if name == self._killable and not self._kills]
        return [*map(Choice, able), *kills]

    def _do(self, choice: Choice) -> None:
        actor = self._actors[choice.actor]
        self.story.append(f"{choice.actor} {'is killed' if choice.kill else 'goes on'} {actor.at}")
        if choice.kill:
            self._kills += 1
            actor.killed = True
        actor.go.release()
        try:
            said, failure = self._said.get(timeout=_PATIENCE_SECONDS)
        except Empty:
            raise AssertionError(f"{actor.name} hangs after {actor.at}") from None
        assert said is actor
        if failure is not None and not (actor.killed and isinstance(failure, Killed)):
            raise failure
        if not actor.waits:  # else nothing has changed for anybody
            for other in self._actors.values():
                other.waits = False


def orders(run: Callable[[Sequence[Choice]], Turns], *, switches: int) -> Iterator[Turns]:
    """Every order in which at most so many actors are interrupted (killed counts), one run for each."""
    waiting: list[tuple[Choice, ...]] = [()]
    while waiting:
        prefix = waiting.pop()
        turns = run(prefix)
        yield turns
        done = [decision.chosen for decision in turns.decisions]
        for step in range(len(prefix), len(done)):
            decision = turns.decisions[step]
            for other in decision.options:
                if other == decision.chosen:
                    continue
                following = (*done[:step], other)
                if _interruptions([*turns.decisions[:step], decision._replace(chosen=other)]) <= switches:
                    waiting.append(following)


def _interruptions(decisions: Sequence[Decision]) -> int:
    return sum(
        decision.chosen.kill
        or (decision.chosen.actor != decision.before and Choice(decision.before) in decision.options)
        for decision in decisions
    )


class Pauses:
    """Puts pauses into functions of the real code, for the run that is on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.turns: Turns | None = None

    def pause(self, at: str, *, waits: bool = False) -> None:
        if self.turns is not None:
            self.turns.pause(at, waits=waits)

    def before(self, place: Any, function: str, at: str) -> None:
        real = getattr(place, function)

        def paused(*arguments: Any, **named: Any) -> Any:
            self.pause(at)
            return real(*arguments, **named)

        self._patch.setattr(place, function, paused)

    def after(self, place: Any, function: str, at: str) -> None:
        real = getattr(place, function)

        def paused(*arguments: Any, **named: Any) -> Any:
            answer = real(*arguments, **named)
            self.pause(at)
            return answer

        self._patch.setattr(place, function, paused)
