"""Do names keep their word? Which are whole, and whether one counts as whole that is not.

A name whose blobs were evicted is no fault: it is a miss, and removed after a day. A fault is a name that would be
answered without a look, because nothing happened to the segments of its closure, and that lacks a blob all the same.

The rule: looking promises nothing and counts as no use, so the next eviction is the same whether somebody looked or
not. (The store that it walks in sees to that: ``store.read_only``.)
"""

from collections.abc import Callable, Iterator
from enum import StrEnum

from millpond.core.errors import BlobNotFound, IncompleteClosure, InvalidRequest, TooMuch
from millpond.core.names import Name, spoken
from millpond.names.binding import Binding
from millpond.services import closure
from millpond.services.cache import Cache


class State(StrEnum):
    """What a name is."""

    WHOLE = "whole"
    INCOMPLETE = "incomplete"
    """It lacks blobs, and is a miss."""
    FOREIGN = "foreign"
    """Its blobs live elsewhere."""
    EXPIRED = "expired"
    WRONG = "wrong"
    """It lacks blobs, and would be answered."""


Claims = Callable[[Name, Binding], bool]
"""Whether a binding would be answered without a walk."""


def check_names(cache: Cache, claims: Claims) -> Iterator[tuple[Name, Binding, State, str]]:
    """Every name with its binding, its state, and what it lacks.

    Raises:
        NotReady: the names or the disk cannot be read now.
    """
    now = cache.clock()
    for name, binding in cache.names.names():
        if binding.expires_at_ms is not None and binding.expires_at_ms <= now:
            yield name, binding, State.EXPIRED, ""
        elif binding.foreign:
            yield name, binding, State.FOREIGN, ""
        else:
            yield name, binding, *_walked(cache, claims, name, binding)


def _walked(cache: Cache, claims: Claims, name: Name, binding: Binding) -> tuple[State, str]:
    lacking = _lacking(cache, name, binding)
    if not lacking:
        return State.WHOLE, ""
    if claims(name, binding):  # asked after the walk: what eviction did before it is in the answer
        lacking = _lacking(cache, name, binding)
        if lacking and claims(name, binding):
            return State.WRONG, lacking
    return (State.INCOMPLETE, lacking) if lacking else (State.WHOLE, "")


def _lacking(cache: Cache, name: Name, binding: Binding) -> str:
    try:
        closure.walk(cache.blobs, name.namespace, name.key, binding)
    except (IncompleteClosure, BlobNotFound, InvalidRequest, TooMuch) as why:
        return str(why).partition(":")[0]
    return ""


def called(name: Name) -> str:
    """How people call it: ``artifact project/element/key``, with its instance behind it where it has one."""
    kind, text = spoken(name)
    return f"{kind} {text}" + (f" (instance {name.instance})" if name.instance else "")
