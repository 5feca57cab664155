"""Ages as people write them.

The rule: a number has a unit (``30d``), because thirty of what is not to be guessed.
"""

import re
from fractions import Fraction

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_AGE = re.compile(r"(\d{1,10}(?:\.\d{1,3})?) ?(ms|[smhdw])", re.ASCII | re.IGNORECASE)
_LONGEST_MS = 1000 * 365 * _UNITS_MS["d"]
_SHOWN = (("d", 2.0), ("h", 2.0), ("min", 2.0), ("s", 0.0))
_SHOWN_MS = {"d": _UNITS_MS["d"], "h": _UNITS_MS["h"], "min": _UNITS_MS["m"], "s": _UNITS_MS["s"]}


def parse_age(text: str) -> int:
    """Milliseconds: ``30d``, ``12h``, ``1.5w``, ``90m``, ``10s``; ``0`` needs no unit.

    Raises:
        ValueError: not an age, or longer than a thousand years; the message is for the user.

    """
    if text.strip() == "0":
        return 0
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an age: write a number and a unit, such as 30d, 12h, 90m or 2w")
    age_ms = int(Fraction(match[1]) * _UNITS_MS[match[2].lower()])
    if age_ms > _LONGEST_MS:
        raise ValueError(f"{text!r} is out of range: write at most a thousand years, such as 30d")
    return age_ms


def format_age(age_ms: int) -> str:
    """An age for reading, in the largest unit of which there are at least two: ``30 d``, ``47 h``, ``90 min``, ``8 s``."""
    for unit, least in _SHOWN:
        if age_ms >= least * _SHOWN_MS[unit]:
            return f"{age_ms / _SHOWN_MS[unit]:.1f}".removesuffix(".0") + f" {unit}"
    return "0 s"
