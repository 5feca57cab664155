"""``REPO/config``: what libostree reads, and our own section ``[millpond]`` beside it.

The rule: what others wrote stays as it is, line by line. libostree knows no ``[millpond]`` and does not mind it.

==================== ==============================================================
key of ``[millpond]``
==================== ==============================================================
``quota-bytes``      what the repository may hold; absent: as much as there is
``reserve-bytes``    free disk space that is left to others; absent: none
==================== ==============================================================
"""

from __future__ import annotations

from millpond.core.errors import RefusedToStart

SECTION = "millpond"
NEW = "[core]\nrepo_version=1\nmode=archive-z2\n"
AUTO_UPDATE = "auto-update-summary"
"""With this, ``ostree commit`` and ``ostree refs`` write the summary, too (ostree.repo-config(5))."""
_ARCHIVE_MODES = ("archive-z2", "archive")


class Config:
    """What we need of it."""

    __slots__ = ("has_reserve", "has_tombstones", "quota_bytes", "reserve_bytes", "updates_summary")

    def __init__(
        self,
        *,
        quota_bytes: int | None,
        reserve_bytes: int | None,
        has_tombstones: bool,
        updates_summary: bool,
    ) -> None:
        self.quota_bytes = quota_bytes
        self.reserve_bytes = reserve_bytes or 0
        self.has_reserve = reserve_bytes is not None
        self.has_tombstones = has_tombstones
        self.updates_summary = updates_summary


def parse(text: str) -> Config:
    """What a config says.

    Raises:
        RefusedToStart: it is not of an archive repository, or a number of ours is none.
    """
    sections = _sections(text)
    core, ours = sections.get("core", {}), sections.get(SECTION, {})
    if core.get("repo_version") != "1":
        raise RefusedToStart("it is no OSTree repository: its config has no 'repo_version=1'")
    if core.get("mode") not in _ARCHIVE_MODES:
        raise RefusedToStart(f"it is a repository of mode {core.get('mode')!r}: clients pull from archive-z2 only")
    return Config(
        quota_bytes=_bytes(ours, "quota-bytes"),
        reserve_bytes=_bytes(ours, "reserve-bytes"),
        has_tombstones=core.get("tombstone-commits") == "true",
        updates_summary=core.get(AUTO_UPDATE) == "true",
    )


def says_nothing_of_updates(text: str) -> bool:
    """Whether it is left open who writes the summary after ``ostree commit``."""
    return not {AUTO_UPDATE, "commit-update-summary"} & _sections(text).get("core", {}).keys()


def with_keys(text: str, section: str, keys: dict[str, str]) -> str:
    """The text with these keys in this section, which is made where there is none; all else as it was."""
    lines, left, at, inside = text.splitlines(), dict(keys), 0, False
    out: list[str] = []
    for at, line in enumerate(lines):  # noqa: B007
        name = _section_name(line)
        if name is not None:
            if inside:
                _insert(out, left)
                left = {}
            inside = name == section
        key = line.partition("=")[0].strip()
        if inside and name is None and key in keys:
            if key in left:
                out.append(f"{key}={left.pop(key)}")
            continue
        out.append(line)
    if left and not inside:
        out += ["", f"[{section}]"] if out else [f"[{section}]"]
    _insert(out, left)
    return "\n".join(out) + "\n"


def _insert(out: list[str], left: dict[str, str]) -> None:
    """Before the empty lines with which a section ends."""
    at = len(out)
    while at and not out[at - 1].strip():
        at -= 1
    out[at:at] = [f"{key}={value}" for key, value in left.items()]


def _section_name(line: str) -> str | None:
    stripped = line.strip()
    return stripped[1:-1] if stripped.startswith("[") and stripped.endswith("]") else None


def _sections(text: str) -> dict[str, dict[str, str]]:
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in text.splitlines():
        name = _section_name(line)
        if name is not None:
            section = sections.setdefault(name, {})
        elif not line.lstrip().startswith("#"):
            key, equals, value = line.partition("=")
            if equals:
                section[key.strip()] = value.strip()
    return sections


def _bytes(section: dict[str, str], key: str) -> int | None:
    text = section.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise RefusedToStart(f"its config says {key}={text}: a number of bytes was expected")
    return int(text)
