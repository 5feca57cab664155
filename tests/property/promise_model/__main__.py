"""Tells how many states each scenario has, and the shortest story of each mutant."""

from __future__ import annotations

from .explorer import explore
from .mutants import MUTANTS
from .rules import Rules
from .scenarios import ALL


def main() -> None:
    for name, scenario in ALL.items():
        verdict = explore(scenario, Rules())
        print(f"{name}: {verdict.states} states: {verdict.what or 'every promise is kept'}")
    for name, mutant in MUTANTS.items():
        verdict = explore(mutant.scenario, Rules().without(*mutant.rules))
        print(f"\n{name}: {verdict.what or 'NOT FOUND'}")
        for number, step in enumerate(verdict.story, start=1):
            print(f"  {number:2}. {step}")


main()
