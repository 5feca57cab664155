"""A future whose waiter goes on at once.

A task goes on one or two turns of the event loop after what it waits for is done, behind whatever has come meanwhile. Where
one event ends many calls, as a commit does, that is most of the time which they wait.
"""

import asyncio
from collections.abc import Callable


class Prompt(asyncio.Future[None]):
    """Awaited in a handler whose call has set :attr:`go_on`; by everything else like any future."""

    go_on: Callable[[], None] | None = None
    """Continues the handler. It handles whatever comes of that."""

    def happen(self) -> None:
        """What was waited for has happened."""
        if not self.done():  # nobody waits any more
            self.set_result(None)
            # It has this future in it: the two would stay until cycles are collected.
            go_on, self.go_on = self.go_on, None
            if go_on is not None:
                go_on()
