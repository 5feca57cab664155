"""What ``millpond names list`` and ``show`` do.

The rule: looking is no use. Nothing that is printed here makes a name or its content younger.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from millpond.config.dates import format_time
from millpond.config.sizes import format_size
from millpond.core.clock import wall_clock
from millpond.core.errors import BlobNotFound, IncompleteClosure, InvalidRequest, MillpondError, RefusedToStart, TooMuch
from millpond.core.names import KINDS, Name, Namespace, spoken
from millpond.core.patterns import matches
from millpond.names.binding import Binding
from millpond.names.lmdb_names import LmdbNames
from millpond.opening_names import open_names
from millpond.services import closure
from millpond.services.pins import choose
from millpond.services.soundness import called
from millpond.services.upkeep import turn
from millpond.store.read_only import ReadOnlyStore
from millpond.store.repository.layout import Layout
from millpond.store.repository.opening import IndexNotTrusted, open_existing
from millpond.store.repository.presence import present
from millpond.store.uses.merging import Merger
from millpond.store.uses.table import Uses

_TURN_SECONDS = 10.0

Entry = tuple[Name, Binding]


def listed(path: Path, pattern: str, *, namespace: Namespace | None, as_json: bool) -> int:
    """List names; the exit status.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    with quiet(path), present(path) as layout, opened(layout, read_only=True) as names:
        found = matching(names.names(namespace), [pattern])
    if as_json:
        for name, binding in found:
            print(json.dumps(_document(name, binding)))
    else:
        for line in _table(found):
            print(line)
    return 0 if found else 1


def shown(path: Path, patterns: Sequence[str], *, as_json: bool) -> int:
    """Show names; the exit status.

    Raises:
        RefusedToStart: the repository cannot be used.
    """
    with quiet(path), present(path) as layout, opened(layout, read_only=True) as names:
        entries = matching(names.names(), patterns)
        documents = [_document(name, binding) for name, binding in entries]
        for document, pinned_by in zip(documents, _pinned(names, entries), strict=True):
            document["pinned_by"] = pinned_by
        broken = names.broken.all()
        for document, (name, _) in zip(documents, entries, strict=True):
            mark = broken.get(name.row)
            document["broken_since_ms"] = None if mark is None else mark.since_ms
        for document, lacking in zip(documents, _lacking(path, entries), strict=True):
            document |= lacking
        for document, used_ms in zip(documents, _last_used(layout, entries), strict=True):
            document["last_used_ms"] = used_ms
    if not entries:
        print(f"nothing in {path} is called {' or '.join(patterns)}", file=sys.stderr)
    if as_json:
        print(json.dumps(documents, indent=2))
    else:
        print("\n\n".join("\n".join(_lines(document)) for document in documents), end="\n" if documents else "")
    return 0 if entries else 1


@contextmanager
def quiet(path: Path) -> Iterator[None]:
    """What goes wrong inside is one sentence about ``path``, and no log lines."""
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        yield
    except RefusedToStart:
        raise
    except MillpondError as failure:
        raise RefusedToStart(f"{path}: {failure}") from None


@contextmanager
def opened(layout: Layout, *, read_only: bool = False) -> Iterator[LmdbNames]:
    """The names of a repository."""
    names = open_names(layout, read_only=read_only)
    try:
        yield names
    finally:
        names.close()


def matching(names: Iterable[Entry], patterns: Sequence[str]) -> list[Entry]:
    """Those that one of ``patterns`` means, in the order in which people look for them."""
    found = [entry for entry in names if any(matches(pattern, entry[0]) for pattern in patterns)]
    return sorted(found, key=lambda entry: (KINDS.index(spoken(entry[0])[0]), spoken(entry[0])[1], entry[0].instance))


def _table(found: Sequence[Entry]) -> Iterator[str]:
    width = max((len(called(name)) for name, _ in found), default=0)
    for name, binding in found:
        size = "elsewhere" if binding.foreign else format_size(binding.closure_bytes)
        yield f"{called(name).ljust(min(width, 120))}  {size:>12}  {format_time(binding.pushed_at_ms)}"


def _document(name: Name, binding: Binding) -> dict[str, Any]:
    kind, text = spoken(name)
    return {
        "kind": kind,
        "name": text,
        "instance": name.instance,
        "namespace": name.namespace.value,
        "key": name.key,
        "digest": str(binding.digest),
        "pushed_at_ms": binding.pushed_at_ms,
        "pushed_by": binding.pushed_by,
        "closure_bytes": binding.closure_bytes,
        "expires_at_ms": binding.expires_at_ms,
        "foreign": binding.foreign,
    }


def _pinned(names: LmdbNames, entries: Sequence[Entry]) -> list[list[str]]:
    """The patterns that keep each."""
    pins, state = names.pins.all(), names.pins.state()
    beyond = {bytes.fromhex(row) for row in state.beyond} if state is not None else set()
    everything = list(names.names()) if pins else []
    kept = {pin.pattern: {one.name for one in choose(everything, [pin], wall_clock())} for pin in pins}
    return [
        [pattern for pattern, chosen in kept.items() if name in chosen and name.row not in beyond]
        for name, _ in entries
    ]


def _lacking(path: Path, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Whether all that each needs is here; None where nobody knows."""
    with ExitStack() as stack:
        try:
            repository = open_existing(path)
        except IndexNotTrusted:
            yield from ({"whole": None, "lacks": "the index is not to be trusted: start a server"} for _ in entries)
            return
        stack.callback(repository.close)
        blobs = ReadOnlyStore(repository.layout, repository.index)
        stack.callback(blobs.close)
        for name, binding in entries:
            if binding.foreign:
                yield {"whole": None, "lacks": "its content is kept elsewhere"}
                continue
            try:
                closure.walk(blobs, name.namespace, name.key, binding)
                yield {"whole": True, "lacks": ""}
            except (IncompleteClosure, BlobNotFound, InvalidRequest, TooMuch) as why:
                yield {"whole": False, "lacks": str(why).partition(":")[0]}


def _last_used(layout: Layout, entries: Sequence[Entry]) -> list[int | None]:
    """When each was last used or pushed, as far as that is known."""
    pushed: list[int | None] = [binding.pushed_at_ms for _, binding in entries]
    try:
        with turn(layout, wait_seconds=_TURN_SECONDS) as mine:
            if not mine:
                return pushed
            uses = Uses(layout.uses)
            try:
                Merger(layout.touch, uses, wall_clock).merge()
                found = [uses.name(name.row) for name, _ in entries]
            finally:
                uses.close()
    except PermissionError:  # it may only be read
        return pushed
    return [
        max(binding.pushed_at_ms, 0 if use is None else use.time_ms)
        for (_, binding), use in zip(entries, found, strict=True)
    ]


def _lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"{document['kind']} {document['name']}"
    size = "kept elsewhere" if document["foreign"] else f"{format_size(document['closure_bytes'])}, all that it needs"
    whole = {True: "yes", None: f"not known: {document['lacks']}"}.get(document["whole"], f"no: {document['lacks']}")
    if document["broken_since_ms"] is not None and document["whole"] is False:
        whole += f", seen first {format_time(document['broken_since_ms'])}"
    rows = {
        "digest": document["digest"],
        "pushed": f"{format_time(document['pushed_at_ms'])} by {document['pushed_by'] or 'anybody'}",
        "expires": None if document["expires_at_ms"] is None else format_time(document["expires_at_ms"]),
        "last used": None if document["last_used_ms"] is None else format_time(document["last_used_ms"]),
        "size": size,
        "whole": whole,
        "pinned": f"yes, by {', '.join(document['pinned_by'])}" if document["pinned_by"] else "no",
        "instance": document["instance"] or None,
        "key": document["key"].replace("\0", " "),
    }
    for label, text in rows.items():
        if text is not None:
            yield f"  {label.ljust(10)} {text}"
