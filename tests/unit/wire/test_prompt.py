"""Whoever waits for one goes on before anything else does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from millpond.wire.prompt import Prompt


def test_the_waiter_goes_on_within_the_call_that_says_so() -> None:
    async def scene() -> list[str]:
        said: list[str] = []
        prompt = Prompt()

        async def handler() -> None:
            await prompt
            said.append("answer")

        handling = handler()
        assert handling.send(None) is prompt

        def go_on() -> None:
            with pytest.raises(StopIteration):
                handling.send(None)

        prompt.go_on = go_on
        prompt.happen()
        said.append("after")
        return said

    assert asyncio.run(scene()) == ["answer", "after"]


def test_who_went_away_is_not_called_back() -> None:
    async def scene() -> list[Any]:
        called: list[Any] = []
        prompt = Prompt()
        prompt.go_on = lambda: called.append("again")
        prompt.cancel()
        prompt.happen()
        return called

    assert asyncio.run(scene()) == []


def test_a_task_waits_for_it_as_for_any_future() -> None:
    async def scene() -> str:
        prompt = Prompt()
        asyncio.get_running_loop().call_soon(prompt.happen)
        await prompt
        return "went on"

    assert asyncio.run(scene()) == "went on"
