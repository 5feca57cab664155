"""Options and argument types that both servers share, so that they mean the same in both."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from millpond.config.addresses import parse_listen, parse_prefix
from millpond.config.ages import parse_age
from millpond.config.dates import parse_until
from millpond.config.settings import LogLevel, TlsFiles
from millpond.config.sizes import parse_quota, parse_reserve, parse_share, parse_size
from millpond.core.errors import InvalidRequest
from millpond.core.names import check_instance
from millpond.core.patterns import check_pattern

_Function = TypeVar("_Function", bound=Callable[..., Any])
_WORKERS_MAX = 8
"""Beyond it the processes wait for the index and the disk rather than for a core."""

KEY_AND_CERT = "--server-key and --server-cert are both required for TLS"
CERTS_WITHOUT_KEY = "--client-certs can only be used with --server-key"


class ContradictoryTls(ValueError):
    """TLS options of which one lacks its other half. The texts are as old as ``bst-artifact-server``."""


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.5, not before
    """An argument type made of a function whose ValueError is a sentence for the user."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (ValueError, InvalidRequest) as error:
            self.fail(str(error), param, ctx)


def _path(text: str) -> Path | None:
    # An unset variable in a unit file arrives as an empty argument and means that the option was not meant.
    return Path(os.path.abspath(text)) if text else None


def _repo(text: str) -> Path:
    if not text:
        raise ValueError("REPO is empty: name a directory")
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise ValueError(f"the path {shown} is not UTF-8: name another directory, or rename it") from None
    return Path(os.path.abspath(text))


REPO = _Parsed("directory", _repo)
SIZE = _Parsed("size", parse_size)
QUOTA = _Parsed("size", parse_quota)
RESERVE = _Parsed("size", parse_reserve)
SHARE = _Parsed("percent", parse_share)
AGE = _Parsed("age", parse_age)
DATE = _Parsed("date", parse_until)
PATTERN = _Parsed("pattern", check_pattern)
LISTEN = _Parsed("address", parse_listen)
PREFIX = _Parsed("path", parse_prefix)
INSTANCE = _Parsed("name", check_instance)
FILE = _Parsed("file", _path)
LOG_LEVEL = click.Choice([level.value for level in LogLevel])

_TLS = [
    click.option(
        "--server-key",
        type=FILE,
        metavar="FILE",
        help="Private key of the server, PEM. With it and --server-cert the server speaks TLS (https).",
    ),
    click.option(
        "--server-cert",
        type=FILE,
        metavar="FILE",
        help="Certificate of the server, PEM; certificates of intermediate authorities may follow it.",
    ),
    click.option(
        "--client-certs",
        type=FILE,
        metavar="FILE",
        help="PEM file with the certificates of those who may connect, one after the other; nobody else gets in.",
    ),
]
_SHARED = [
    *_TLS,
    click.option("--enable-push", is_flag=True, help="Let clients store things. Without it they can only read."),
    click.option(
        "--index-only",
        is_flag=True,
        help="Keep only the names of artifacts and sources; their content is on another server ('type: storage').",
    ),
]


def shared_options(command: _Function) -> _Function:
    """The options that both servers have."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def tls_options(command: _Function) -> _Function:
    """The options about keys, for what has no others in common."""
    for option in reversed(_TLS):
        command = option(command)
    return command


def tls_files(server_key: Path | None, server_cert: Path | None, client_certs: Path | None) -> TlsFiles | None:
    """The key files that were named.

    Raises:
        ContradictoryTls: one of them lacks another.
    """
    if (server_key is None) != (server_cert is None):
        raise ContradictoryTls(KEY_AND_CERT)
    if server_key is None or server_cert is None:
        if client_certs is not None:
            raise ContradictoryTls(CERTS_WITHOUT_KEY)
        return None
    return TlsFiles(server_key, server_cert, client_certs)


def usable_cores() -> int:
    """How many workers are worth it here: one per core that this process may use, at most 8."""
    return min(_WORKERS_MAX, len(os.sched_getaffinity(0)))
