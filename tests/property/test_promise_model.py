"""The protocol of promising, pushing and evicting, as a model: in no order of steps does it break a promise (I1-I3, I5, I8, I9).

The model is in ``promise_model/``. ``python -m property.promise_model`` (in ``tests/``) tells the shortest story of every
mutant. ``tests/faults/test_eviction_protocol.py`` leads the real store through such orders.
"""

from __future__ import annotations

import pytest
from property.promise_model.explorer import explore
from property.promise_model.mutants import MUTANTS, Mutant
from property.promise_model.rules import Rules
from property.promise_model.scenarios import ALL


@pytest.mark.parametrize("name", ALL)
def test_no_order_of_steps_breaks_a_promise(name: str) -> None:
    verdict = explore(ALL[name], Rules())
    assert not verdict.what, "\n".join([verdict.what, *verdict.story])


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_every_rule_is_needed(mutant: Mutant) -> None:
    verdict = explore(mutant.scenario, Rules().without(*mutant.rules))
    assert mutant.breaks in verdict.what
    assert verdict.story


def test_every_rule_is_left_out_once() -> None:
    left_out = {rule for mutant in MUTANTS.values() for rule in mutant.rules}
    assert left_out == set(Rules.__dataclass_fields__)


def test_a_story_is_a_shortest_one() -> None:
    """Look; begin, fence, choose, look at the logs; promise; mark: with one step less nobody is misled."""
    verdict = explore(MUTANTS["no promise lock"].scenario, Rules().without("promise_lock"))
    assert len(verdict.story) == 7, verdict.story
