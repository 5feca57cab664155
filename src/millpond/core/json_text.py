"""JSON in files and tables, which something may have damaged.

The rule: what is not JSON is a ``ValueError``, however it is not.
"""

import json
from typing import Any

# Made once: json.dumps() makes one at every call that has separators of its own.
_COMPACT = json.JSONEncoder(separators=(",", ":"))


def parse(text: str | bytes) -> Any:
    """What ``text`` says.

    Raises:
        ValueError: it is not JSON, or is nested more deeply than anything that was ever written.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def compact(value: Any) -> str:
    """``value`` as JSON without spaces, all of it ASCII."""
    return _COMPACT.encode(value)
