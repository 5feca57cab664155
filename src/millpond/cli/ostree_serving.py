"""``millpond ostree serve``, and the options by which ``millpond serve`` does the same beside its own port."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from millpond.cli.options import FILE, LISTEN, LOG_LEVEL, PREFIX, REPO, ContradictoryTls, tls_files, tls_options
from millpond.cli.start import start
from millpond.config.settings import Listener, LogLevel, OstreeSettings, Settings, TlsFiles

_Function = TypeVar("_Function", bound=Callable[..., Any])
_BOTH = "--ostree and --ostree-listen go together: which repository, and where it is served"

_HELP = """Serve the OSTree repository REPO over http or https, for clients of BuildStream 1.0 and 1.1 to pull from.

It answers GET and HEAD for what belongs to the repository, and for nothing else. Clients push over ssh, to
bst-artifact-receive. 'millpond serve --ostree REPO --ostree-listen HOST:PORT' does the same beside a cache for newer
clients. Any other web server may serve REPO as well; this one also notes what is pulled, for 'millpond ostree prune'.

SIGTERM and SIGINT (Ctrl-C) end it: running transfers get up to 30 seconds, a second signal cuts them off. Key files
that change are read again by themselves.

\b
Examples:
  millpond ostree serve --listen 127.0.0.1:8080 artifacts
      what lies in ./artifacts, for this machine
  millpond ostree serve --listen 0.0.0.0:443 --prefix /artifacts \\
          --server-key server.key --server-cert server.crt /home/artifacts/artifacts
      for everybody, as https://HOST/artifacts
"""  # \b is the character by which click keeps line ends


@click.command("serve", help=_HELP, short_help="Serve an OSTree repository over http or https.")
@click.option(
    "--listen",
    type=LISTEN,
    metavar="HOST:PORT",
    multiple=True,
    required=True,
    help="Address to serve on; repeatable. 0.0.0.0:PORT is every address of this machine, port 0 a free port.",
)
@click.option(
    "--prefix",
    type=PREFIX,
    metavar="PATH",
    default="/",
    show_default=True,
    help="Path of the repository in its URL: /artifacts for https://HOST/artifacts.",
)
@tls_options
@click.option("--log-level", type=LOG_LEVEL, default="info", show_default=True, help="How much to log to stderr.")
@click.argument("repo", type=REPO, metavar="REPO")
def ostree_serve(
    listen: tuple[tuple[str, int], ...],
    prefix: str,
    server_key: Path | None,
    server_cert: Path | None,
    client_certs: Path | None,
    log_level: str,
    repo: Path,
) -> int:
    """``millpond ostree serve``: arguments become settings."""
    try:
        tls = tls_files(server_key, server_cert, client_certs)
    except ContradictoryTls as error:
        raise click.UsageError(str(error)) from None
    settings = Settings(
        repo=repo,
        listeners=(),
        workers=0,
        log_level=LogLevel(log_level),
        ostree=OstreeSettings(repo, tuple(Listener(host, port, tls) for host, port in listen), prefix),
    )
    return start(settings, with_configuration=True)


_BESIDE_THE_CACHE = [
    click.option(
        "--ostree",
        type=FILE,
        metavar="REPO",
        help="Serve this OSTree repository, too, over http or https, for clients of BuildStream 1.0 and 1.1.",
    ),
    click.option(
        "--ostree-listen", type=LISTEN, metavar="HOST:PORT", multiple=True, help="Address for --ostree; repeatable."
    ),
    click.option(
        "--ostree-prefix",
        type=PREFIX,
        metavar="PATH",
        default="/",
        show_default=True,
        help="Path of the OSTree repository in its URL: /artifacts for https://HOST/artifacts.",
    ),
]


def ostree_options(command: _Function) -> _Function:
    """The options by which a server of a cache serves an OSTree repository as well."""
    for option in reversed(_BESIDE_THE_CACHE):
        command = option(command)
    return command


def ostree_settings(
    repo: Path | None, listen: Sequence[tuple[str, int]], prefix: str, tls: TlsFiles | None
) -> OstreeSettings | None:
    """What these options ask for; None when nothing.

    Raises:
        click.UsageError: one of them lacks another.
    """
    if repo is None and not listen and prefix == "/":
        return None
    if repo is None or not listen:
        raise click.UsageError(_BOTH)
    return OstreeSettings(repo, tuple(Listener(host, port, tls) for host, port in listen), prefix)
