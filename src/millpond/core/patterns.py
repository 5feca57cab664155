"""Patterns over names as people write them.

``*`` stands for any characters, slashes too; everything else stands for itself. The rule: matching takes time in
proportion to the text, whatever the pattern, because clients choose the text.
"""

from millpond.core import limits
from millpond.core.errors import InvalidRequest
from millpond.core.names import Name, spoken


def check_pattern(pattern: str) -> str:
    """``pattern``, if it can be one.

    Raises:
        InvalidRequest: empty, too long, or with control characters.
    """
    if not pattern or len(pattern) > limits.PATTERN_CHARS or not pattern.isprintable():
        raise InvalidRequest(
            f"{pattern[:80]!r} is not a pattern: write 1 to {limits.PATTERN_CHARS} printable characters,"
            " such as 'project/element/*'"
        )
    return pattern


def matches(pattern: str, name: Name) -> bool:
    """Whether ``pattern`` means ``name``: as it is spoken, with its kind in front, or as its whole key."""
    kind, text = spoken(name)
    return glob(pattern, text) or glob(pattern, f"{kind}:{text}") or glob(pattern, name.key)


def glob(pattern: str, text: str) -> bool:
    """Whether ``text`` is ``pattern`` with something, or nothing, in place of each ``*``."""
    first, *parts = pattern.split("*")
    if not parts:
        return text == pattern
    *middle, last = parts
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:  # the leftmost place is as good as any other: what follows has the most room
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
