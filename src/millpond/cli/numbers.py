"""What ``millpond stats`` does: gathers the numbers and lays them out.

The rule: the text and the JSON are made of the same document, so neither knows what the other does not.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from millpond.cli.progress import count, several
from millpond.config.ages import format_age
from millpond.config.settings import Settings
from millpond.config.sizes import format_size
from millpond.core.clock import wall_clock
from millpond.names.lmdb_names import LmdbNames
from millpond.opening_names import open_names
from millpond.services import statistics
from millpond.services.upkeep import turn
from millpond.store.care import inventory
from millpond.store.care.scrub import Progress
from millpond.store.eviction.evicted import LastEviction, last_eviction
from millpond.store.repository import filesystem
from millpond.store.repository.layout import Layout
from millpond.store.repository.opening import OpenRepository, open_existing
from millpond.store.room.space import Space
from millpond.store.room.taken import files_in
from millpond.store.uses import tally
from millpond.store.uses.counts import Tallies
from millpond.store.uses.merging import Merger
from millpond.store.uses.table import Uses

_TURN_SECONDS = 10.0
_LABEL_CHARS = 10


def run(path: Path, *, as_json: bool) -> int:
    """Print the numbers; the exit status.

    Raises:
        RefusedToStart: it is no repository, or cannot be opened.
    """
    logging.getLogger().addHandler(logging.NullHandler())
    with ExitStack() as stack:
        repository = open_existing(path)
        stack.callback(repository.close)
        names = open_names(repository.layout, read_only=True)
        stack.callback(names.close)
        document = gathered(path, repository, names, wall_clock())
    print(json.dumps(document, indent=2) if as_json else "\n".join(lines(document, wall_clock())))
    return 0


def gathered(path: Path, repository: OpenRepository, names: LmdbNames, now_ms: int) -> dict[str, Any]:
    """Everything that there is to know. Sizes in bytes, times in ms since 1970; None: not known."""
    layout, content = repository.layout, inventory.take(repository.index)
    uploads = [size for _, size in files_in(layout.uploads)]
    used = _used(repository, now_ms)
    evicted = used.get("evicted")
    pins, patterns = names.pins.state(), names.pins.all()
    return {
        "repository": str(path),
        "content": {
            "blobs": content.blobs,
            "live_bytes": content.live_bytes,
            "dead_bytes": content.dead_bytes,
            "segments": content.segments,
            "uploads": len(uploads),
            "upload_bytes": sum(uploads),
        },
        "room": _room(repository),
        "names": {
            **statistics.of_names(
                names.names(),
                broken=names.broken.all(),
                pins=patterns,
                beyond=[bytes.fromhex(row) for row in pins.beyond] if pins else [],
                now_ms=now_ms,
            ),
            "bytes": names.held_bytes(),
        },
        "pins": {
            "patterns": len(patterns),
            "bytes": pins.held_bytes if pins else None,
            "share": pins.share if pins else None,
        },
        "eviction": None if evicted is None else evicted._asdict(),
        "requests": statistics.of_requests(used.get("tallies"), now_ms),
        "scrub": asdict(Progress.read(layout.scrub)),
    }


def _room(repository: OpenRepository) -> dict[str, int]:
    """The reserve is that of a server without --reserve: a repository does not know its servers' options."""
    root = repository.layout.root
    reserve_bytes = Settings(repo=Path(root), listeners=()).reserve_bytes(filesystem.size_bytes(root))
    space = Space(repository.index, repository.layout, reserve_bytes=reserve_bytes)
    pressure = space.pressure()
    disk = os.statvfs(root)
    return {
        "quota_bytes": space.quota_bytes,
        "used_bytes": pressure.used_bytes,
        "claimed_bytes": pressure.claimed_bytes,
        "disk_free_bytes": disk.f_bavail * disk.f_frsize,
        "default_reserve_bytes": reserve_bytes,
    }


def _used(repository: OpenRepository, now_ms: int) -> "dict[str, Any]":
    """What upkeep remembers, with what it has not merged yet; nothing where we may not write, or cannot get a turn."""
    if repository.read_only:
        return {}
    layout: Layout = repository.layout
    with turn(layout, wait_seconds=_TURN_SECONDS) as mine:
        if not mine:
            return {}
        uses = Uses(layout.uses)
        try:
            Merger(layout.touch, uses, lambda: now_ms).merge()
            with uses.reading() as txn:
                tallies: Tallies = tally.read(txn, uses.meta)
            evicted: LastEviction | None = last_eviction(uses)
            return {"tallies": tallies, "evicted": evicted}
        finally:
            uses.close()


def lines(document: dict[str, Any], now_ms: int) -> Iterator[str]:
    """The document as people read it."""
    yield document["repository"]
    for label, text in (
        ("content", _content(document["content"])),
        ("room", _in_room(document["room"])),
        ("names", _names(document["names"])),
        ("pins", _pins(document["pins"], document["room"])),
        ("lifetime", _lifetime(document["eviction"], now_ms)),
        *_hits(document["requests"]),
        ("scrub", _scrub(document["scrub"], now_ms)),
    ):
        yield f"  {label:<{_LABEL_CHARS}} {text}"


def _content(content: dict[str, Any]) -> str:
    states = ", ".join(
        f"{count(number)} {state.replace('_', ' ')}" for state, number in content["segments"].items() if number
    )
    segments = several(sum(content["segments"].values()), "segment") + (f" ({states})" if states else "")
    text = f"{several(content['blobs'], 'blob')}, {format_size(content['live_bytes'])}"
    text += f" and {format_size(content['dead_bytes'])} dead, in {segments}"
    if content["uploads"]:
        text += f"; {several(content['uploads'], 'upload')} of {format_size(content['upload_bytes'])}"
    return text


def _in_room(room: dict[str, int]) -> str:
    used, quota = room["used_bytes"], room["quota_bytes"]
    share = f" ({100 * used / quota:.0f} %)" if quota else ""
    return (
        f"{format_size(used)} of its quota of {format_size(quota)} taken{share};"
        f" {format_size(room['disk_free_bytes'])} free on the disk, {format_size(room['default_reserve_bytes'])} of them"
        " for others"
    )


def _names(names: dict[str, Any]) -> str:
    kinds = ", ".join(several(found["total"], kind) for kind, found in names["by_kind"].items() if found["total"])
    text = several(names["total"], "name") + (f" ({kinds})" if kinds else "")
    special = ", ".join(
        f"{count(names[flag])} {flag}" for flag in ("broken", "foreign", "expired", "pinned") if names[flag]
    )
    return f"{text}; {special}" if special else text


def _pins(pins: dict[str, Any], room: dict[str, int]) -> str:
    if not pins["patterns"]:
        return "none"
    text = several(pins["patterns"], "pattern")
    if pins["bytes"] is None:
        return f"{text}; no server has looked what they keep yet"
    most_bytes = int(pins["share"] * room["quota_bytes"])
    return f"{text}: {format_size(pins['bytes'])} of at most {format_size(most_bytes)} kept"


def _lifetime(evicted: dict[str, int] | None, now_ms: int) -> str:
    if evicted is None:
        return "nothing had to go yet"
    ago = format_age(max(0, now_ms - evicted["at_ms"]))
    return (
        f"an artifact that nobody uses lives {format_age(evicted['age_ms'])} at the present rate"
        f" (last eviction {ago} ago: {format_size(evicted['freed_bytes'])})"
    )


def _hits(requests: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if requests["ever"] is None:
        yield "hits", "nothing was asked for yet"
        return
    since = time.strftime("%Y-%m-%d", time.gmtime(requests["since_ms"] / 1000))
    for label, period, when in (
        ("hits", requests["last_24h"], "in 24 h"),
        ("", requests["ever"], f"since {since}"),
    ):
        traffic = f"{format_size(period['bytes_read'])} read, {format_size(period['bytes_written'])} written"
        yield label, f"{_rate('names', period)}, {_rate('blobs', period)}; {traffic} {when}"
    if requests["ever"]["damaged_blobs"]:
        yield (
            "damage",
            f"{several(requests['ever']['damaged_blobs'], 'damaged blob')} found by clients' reads since {since}",
        )


def _rate(what: str, period: dict[str, Any]) -> str:
    found, missed, rate = (period[what][fact] for fact in ("found", "missed", "hit_rate"))
    return f"no {what} asked for" if rate is None else f"{what} {100 * rate:.1f} % of {count(found + missed)}"


def _scrub(scrub: dict[str, Any], now_ms: int) -> str:
    found = f"; {several(scrub['damaged_ever'], 'damaged blob')} found so far"
    if scrub["running"]:
        return f"a pass runs, {format_size(scrub['size_bytes'])} verified{found}"
    if not scrub["finished_ms"]:
        return "no whole pass yet"
    return f"everything was verified {format_age(max(0, now_ms - scrub['finished_ms']))} ago{found}"
