"""What work came to reaches everybody who waits, once, however they wait."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from millpond.core.outcome import Outcome


def test_a_result_reaches_those_who_wait_and_those_who_come_later() -> None:
    outcome: Outcome[int] = Outcome()
    told: list[str] = []
    outcome.when_done(lambda: told.append("before"))
    with ThreadPoolExecutor(4) as waiting:
        answers = [waiting.submit(outcome.result) for _ in range(4)]
        assert not told
        outcome.set_result(7)
        assert [answer.result(10) for answer in answers] == [7] * 4
    outcome.when_done(lambda: told.append("after"))
    assert told == ["before", "after"]
    assert outcome.result() == 7
    assert outcome.exception() is None


def test_a_failure_is_raised_for_everybody() -> None:
    outcome: Outcome[int] = Outcome()
    failure = ValueError("no")
    outcome.set_exception(failure)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            outcome.result()
    assert outcome.exception() is failure


def test_whoever_asks_while_it_is_being_done_is_told_once() -> None:
    for _ in range(300):
        outcome: Outcome[None] = Outcome()
        told: list[int] = []
        begin = threading.Barrier(2)

        def ask(outcome: Outcome[None] = outcome, told: list[int] = told, begin: threading.Barrier = begin) -> None:
            begin.wait(10)
            outcome.when_done(lambda: told.append(1))

        asking = threading.Thread(target=ask)
        asking.start()
        begin.wait(10)
        outcome.set_result(None)
        asking.join(10)
        assert told == [1]
