"""What ``millpond pin``, ``unpin`` and ``pins`` do.

The rule: whether a pin fits is asked before it is written, cheaply where it can be: the sum of what each name needs is
an upper bound, and only if that is too much is every closure walked and what they share counted once.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from millpond.cli.progress import Progress, several
from millpond.config.dates import format_time, format_until
from millpond.config.settings import Settings
from millpond.config.sizes import format_size
from millpond.core import limits
from millpond.core.clock import wall_clock
from millpond.core.digest import EMPTY
from millpond.core.errors import BlobNotFound, IncompleteClosure, InvalidRequest, MillpondError, RefusedToStart, TooMuch
from millpond.core.names import Name, spoken
from millpond.core.patterns import matches
from millpond.names.lmdb_names import LmdbNames
from millpond.names.notes import Pin
from millpond.opening_names import open_names
from millpond.services import closure
from millpond.services.pins import Chosen, choose
from millpond.services.upkeep import turn
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository.layout import Layout
from millpond.store.repository.opening import open_existing
from millpond.store.repository.presence import present
from millpond.store.room.quota import StoredQuota
from millpond.upkeep import count_pins, parts

_TURN_SECONDS = 30.0


def add(path: Path, pattern: str, *, newest: int | None, until_ms: int | None) -> int:
    """Pin, and say what that means; the exit status.

    Raises:
        RefusedToStart: it does not fit, or the repository cannot be used.
    """
    with _names(path) as (layout, names):
        others = [pin for pin in names.pins.all() if pin.pattern != pattern]
        before = next((pin for pin in names.pins.all() if pin.pattern == pattern), None)
        new = Pin(pattern, wall_clock() if before is None else before.made_at_ms, newest, until_ms)
        everything, now_ms = list(names.names()), wall_clock()
        chosen = choose(everything, [*others, new], now_ms)
        mine = {one.name for one in choose(everything, [new], now_ms)}
        allowed = _allowed_bytes(layout, names)
        held, over = _fitting(chosen, mine, allowed, _bound)
        if over:
            held, over = _fitting_exactly(path, chosen, mine, allowed)
        if over:
            raise RefusedToStart(
                f"{pattern} is not pinned: with it pins would hold {format_size(held + over)},"
                f" {format_size(held + over - allowed)} more than the {format_size(allowed)} that they may"
                f" ({_share(names):.0%} of the quota): pin less, unpin something, raise the quota, or serve with a larger"
                " --pin-share"
            )
        names.pins.add(new)
    marked = _mark(path)
    matched = f"{several(len(mine), 'name')} now" if mine else "no name yet"
    print(
        f"{'pinned' if before is None else 'changed the pin'} {pattern}{_terms(new)}: {matched}, and what will be pushed"
    )
    print(f"pins hold {format_size(held)} of the {format_size(allowed)} that they may")
    if not marked:
        print("another command is at work on the repository: the pin counts when it has ended")
    return 0


def _mark(path: Path) -> bool:
    """Mark what is pinned now, so that no eviction comes in between; whether that was to be had within a while."""
    with ExitStack() as stack:
        try:
            repository = open_existing(path)
        except RefusedToStart:
            return True  # no server runs, nor can a command evict; whoever does counts pins first
        stack.callback(repository.close)
        try:
            work = parts(Settings(repo=path, listeners=()), repository, stack, wait_seconds=_TURN_SECONDS)
        except RefusedToStart:
            return False  # it is busy: the names were read a moment ago
        held = stack.enter_context(turn(repository.layout, wait_seconds=_TURN_SECONDS))
        if held:
            count_pins(work)
        return held


def remove(path: Path, pattern: str) -> int:
    """Unpin; the exit status.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    with _names(path) as (_, names):
        (removed,) = names.pins.remove([pattern])
    print(f"unpinned {pattern}" if removed else f"{pattern} is not pinned: millpond pins {path} lists what is")
    return 0 if removed else 1


def listed(path: Path, *, as_json: bool) -> int:
    """List pins; the exit status.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    with _names(path, read_only=True) as (layout, names):
        pins, state, now_ms = names.pins.all(), names.pins.state(), wall_clock()
        everything = list(names.names()) if pins else []
        rows = [(pin, choose(everything, [pin], now_ms)) for pin in pins]
        allowed = _allowed_bytes(layout, names)
        beyond = _called(names, state.beyond if state is not None else ())
    held = None if state is None else state.held_bytes
    if as_json:
        document = {
            "held_bytes": held,
            "allowed_bytes": allowed,
            "pins": [{**asdict(pin), "names": len(mine), "bytes": _bound_bytes(mine)} for pin, mine in rows],
            "not_kept": beyond,
        }
        print(json.dumps(document, indent=2))
        return 0
    for pin, mine in rows:
        size = format_size(_bound_bytes(mine))
        print(f"{pin.pattern}{_terms(pin)}: {several(len(mine), 'name')}, {size}, since {format_time(pin.made_at_ms)}")
    if not pins:
        print(f"nothing is pinned in {path}; pins may hold {format_size(allowed)}")
        return 0
    known = "pins were not counted yet: that takes a server" if held is None else f"pins hold {format_size(held)}"
    print(f"{known}; they may hold {format_size(allowed)}")
    if beyond:
        print(
            f"not kept, because there was no room for it in that: {', '.join(beyond[:10])}{_and_more(len(beyond) - 10)}"
        )
    return 0


@contextmanager
def _names(path: Path, *, read_only: bool = False) -> Iterator[tuple[Layout, LmdbNames]]:
    logging.getLogger().addHandler(logging.NullHandler())  # what matters is told by the command
    with ExitStack() as stack:
        layout = stack.enter_context(present(path))
        names = open_names(layout, read_only=read_only)
        stack.callback(names.close)
        try:
            yield layout, names
        except MillpondError as failure:
            if isinstance(failure, RefusedToStart):
                raise
            raise RefusedToStart(f"{path}: {failure}") from None


def _share(names: LmdbNames) -> float:
    state = names.pins.state()
    return limits.PIN_SHARE if state is None else state.share


def _allowed_bytes(layout: Layout, names: LmdbNames) -> int:
    return int(_share(names) * StoredQuota(layout).quota_bytes)


def _bound_bytes(chosen: Sequence[Chosen]) -> int:
    """What they need at most: names that are bound to one thing count once."""
    return sum({one.binding.stamp: one.binding.closure_bytes for one in chosen}.values())


def _bound(one: Chosen) -> dict[bytes, int]:
    return {one.binding.stamp: one.binding.closure_bytes}


def _fitting(
    chosen: Sequence[Chosen], mine: Set[Name], allowed: int, needs: Callable[[Chosen], dict[bytes, int]]
) -> tuple[int, int]:
    """What pins hold when each name is taken in that fits, as upkeep does; and what ``mine`` lack for that."""
    held: dict[bytes, int] = {}
    over: dict[bytes, int] = {}
    held_bytes = 0
    for one in chosen:
        added = {key: size for key, size in needs(one).items() if key not in held}
        if held_bytes + sum(added.values()) <= allowed:
            held.update(added)
            held_bytes += sum(added.values())
        elif one.name in mine:
            over.update(added)
    return held_bytes, sum(size for key, size in over.items() if key not in held)


def _fitting_exactly(path: Path, chosen: Sequence[Chosen], mine: Set[Name], allowed: int) -> tuple[int, int]:
    """As :func:`_fitting`, each blob counted once."""
    with ExitStack() as stack:
        repository = open_existing(path)
        stack.callback(repository.close)
        blobs = ReadOnlyStore(repository.layout, repository.index)
        stack.callback(blobs.close)
        progress = stack.enter_context(Progress("looking at what is pinned", len(chosen)))

        def needs(one: Chosen) -> dict[bytes, int]:
            progress.advance(1)
            try:
                found = closure.walk(blobs, one.name.namespace, one.name.key, one.binding).digests
            except (IncompleteClosure, BlobNotFound, InvalidRequest, TooMuch):
                return {}  # a broken name keeps nothing, and a foreign one has nothing here
            return {digest.key: digest.size_bytes for digest in found if digest != EMPTY}

        return _fitting(chosen, mine, allowed, needs)


def _called(names: LmdbNames, rows: Sequence[str]) -> list[str]:
    """How the names in ``rows`` are called, those of which still match a pin."""
    entries = [entry for row in rows if (entry := names.entry(bytes.fromhex(row))) is not None]
    patterns = [pin.pattern for pin in names.pins.all()]
    return [spoken(name)[1] for name, _ in entries if any(matches(pattern, name) for pattern in patterns)]


def _terms(pin: Pin) -> str:
    terms = [f"the {pin.newest} newest of each element"] if pin.newest is not None else []
    terms += [f"until {format_until(pin.until_ms)}"] if pin.until_ms is not None else []
    return f" ({', '.join(terms)})" if terms else ""


def _and_more(count: int) -> str:
    return f" and {several(count, 'more name')}" if count > 0 else ""
