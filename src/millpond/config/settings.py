"""Everything a server is told, as one value.

The rule: settings are complete and checked when they exist, and no part of the server looks anywhere else (no
environment, no files of its own). They travel from the supervisor to its workers as JSON.
"""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from millpond.config.sizes import Quota
from millpond.core import limits

DEFAULT_PORT = 11001
"""BuildStream's documentation has used this port in its examples from the first version on."""


class LogLevel(StrEnum):
    """How much is logged; the names are those of ``bst-artifact-server``."""

    WARNING = "warning"
    INFO = "info"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a listener's keys lie. ``client_certs`` makes a client certificate from that file a must."""

    server_key: Path
    server_cert: Path
    client_certs: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that is named."""
        named = (self.server_key, self.server_cert, self.client_certs)
        return tuple(path for path in named if path is not None)


@dataclass(frozen=True, slots=True)
class Listener:
    """An address, with TLS or without. ``host`` is a name or an address without brackets; ``::`` is every address."""

    host: str
    port: int
    tls: TlsFiles | None = None

    @property
    def address(self) -> str:
        """``HOST:PORT`` as gRPC and people write it, IPv6 addresses in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """What a client on this machine writes; for every address it is still the one that was given."""
        return f"{'http' if self.tls is None else 'https'}://{self.address}"


@dataclass(frozen=True, slots=True)
class OstreeSettings:
    """An OSTree repository and where it is served over HTTP, below ``prefix`` (``/`` or ``/artifacts``)."""

    repo: Path
    listeners: tuple[Listener, ...]
    prefix: str = "/"

    @property
    def path(self) -> str:
        """What follows the port in the address that clients write."""
        return self.prefix.rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One server: a repository, its listeners and what is allowed.

    ``quota`` None: adopt what the repository says, or derive it from the free space.
    ``index_only``: names without the blobs that they refer to, which another server stores.
    ``foreign``: accept a name whose blobs another server stores.
    ``reserve``: free disk space that is left to others; None: see :meth:`reserve_bytes`.
    ``head_room_min_bytes``: the same under its old name; ``head_room_max_bytes``: eviction for it goes on until so much is
    free.
    ``pin_share``: of the quota, for what pins may keep. ``warn_age_ms``: an eviction age below it is worth a warning; 0:
    never. ``scrub_days``: every byte is verified once in so many days; 0: never. ``scrub_rate_bytes``: per second, at most.
    ``workers`` 0: there is no cache, only what ``ostree`` says; ``repo`` is then the same as its.
    """

    repo: Path
    listeners: tuple[Listener, ...]
    instances: tuple[str, ...] = ("",)
    enable_push: bool = False
    index_only: bool = False
    foreign: bool = True
    quota: Quota | None = None
    reserve: Quota | None = None
    head_room_min_bytes: int | None = None
    head_room_max_bytes: int | None = None
    pin_share: float = limits.PIN_SHARE
    warn_age_ms: int = limits.WARN_AGE_MS
    scrub_days: int = limits.SCRUB_DAYS
    scrub_rate_bytes: int = limits.SCRUB_RATE_BYTES
    workers: int = 1
    log_level: LogLevel = LogLevel.WARNING
    drain_seconds: float = field(default=limits.DRAIN_SECONDS)
    ostree: OstreeSettings | None = None

    def reserve_bytes(self, file_system_bytes: int) -> int:
        """Free disk space that is left to others, on a file system of this size."""
        if self.reserve is not None:
            return self.reserve.bytes_of(file_system_bytes)
        if self.head_room_min_bytes is not None:
            return self.head_room_min_bytes
        return min(limits.RESERVE_BYTES, file_system_bytes // 20)

    def to_json(self) -> str:
        """One line that :meth:`from_json` reads back."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The settings that :meth:`to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: not written by this version.

        """
        values: dict[str, Any] = json.loads(text)
        quota, reserve = values.pop("quota"), values.pop("reserve")
        return cls(
            **values
            | {
                "repo": Path(values["repo"]),
                "listeners": tuple(_listener(one) for one in values["listeners"]),
                "instances": tuple(values["instances"]),
                "quota": None if quota is None else Quota(**quota),
                "reserve": None if reserve is None else Quota(**reserve),
                "log_level": LogLevel(values["log_level"]),
                "ostree": _ostree(values["ostree"]),
            }
        )


def _ostree(values: dict[str, Any] | None) -> OstreeSettings | None:
    if values is None:
        return None
    listeners = tuple(_listener(one) for one in values["listeners"])
    return OstreeSettings(Path(values["repo"]), listeners, values["prefix"])


def _listener(values: dict[str, Any]) -> Listener:
    files = values.pop("tls")
    if files is None:
        return Listener(**values)
    return Listener(**values, tls=TlsFiles(**{name: path and Path(path) for name, path in files.items()}))
