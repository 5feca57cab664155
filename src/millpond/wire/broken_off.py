"""What becomes of an answer to a peer that broke HTTP/2's rules meanwhile: nothing.

The rule: a stream that HTTP/2 has ended takes nothing else along; a connection that it has ended is closed.
"""

from collections.abc import Callable

import ngh2


class BrokenOff:
    """Stands around whatever is done for a call. A context manager that costs next to nothing."""

    __slots__ = ("_give_up",)

    def __init__(self, give_up: Callable[[str], None]) -> None:
        """``give_up``: closes the connection, for a reason."""
        self._give_up = give_up

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if not isinstance(error, ngh2.NGH2Error):
            return False
        if not isinstance(error, ngh2.StreamProtocolError):  # of a stream HTTP/2 will say that it has ended
            self._give_up(f"HTTP/2 broke off: {error}")
        return True
