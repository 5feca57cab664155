"""JSON from files and tables that something may have damaged.

The rule: what is not JSON is a ``ValueError``, however it is not.
"""

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """What ``text`` says.

    Raises:
        ValueError: it is not JSON, or is nested more deeply than anything that was ever written.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
