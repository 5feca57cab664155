"""``millpond serve``: the server with the friendly front."""

import os
from pathlib import Path

import click

from millpond.cli.options import (
    INSTANCE,
    LISTEN,
    LOG_LEVEL,
    QUOTA,
    ContradictoryTls,
    shared_options,
    tls_files,
    usable_cores,
)
from millpond.cli.start import start
from millpond.config.settings import DEFAULT_PORT, Listener, LogLevel, Settings
from millpond.config.sizes import Quota

DEFAULT_LISTEN = ("127.0.0.1", DEFAULT_PORT)

_HELP = """Serve the repository REPO (default ./millpond-data, made when missing).

When it is ready it prints what is served where and to whom, and the lines for buildstream.conf. Until --enable-push is
given, clients can only read. It listens on this machine alone unless --listen says otherwise.

SIGTERM and SIGINT (Ctrl-C) end it: running transfers get up to 30 seconds, a second signal cuts them off. Key files
that change are read again by themselves.

\b
Examples:
  millpond serve --enable-push
      a cache for the builds on this machine, in ./millpond-data
  millpond serve --listen 0.0.0.0:11001 --quota 500G --server-key server.key \\
          --server-cert server.crt /srv/cache
      a read-only cache for everybody in the network
  millpond serve --listen 0.0.0.0:11002 --enable-push --server-key server.key \\
          --server-cert server.crt --client-certs authorized.crt /srv/cache
      and one to push to, on the same repository at the same time
"""  # \b is the character by which click keeps line ends


@click.command("serve", help=_HELP, short_help="Serve a repository.")
@click.option(
    "--listen",
    type=LISTEN,
    metavar="HOST:PORT",
    multiple=True,
    show_default="127.0.0.1:11001",
    help="Address to serve on; repeatable. 0.0.0.0:PORT is every address of this machine, port 0 a free port.",
)
@shared_options
@click.option(
    "--quota",
    type=QUOTA,
    metavar="SIZE",
    show_default="what the repository was given before, else nine tenths of the free space",
    help="The most that the repository may take: 50G (10⁹), 50Gi (2³⁰), or 80% of its file system; at least 256Ki.",
)
@click.option(
    "--instance",
    type=INSTANCE,
    metavar="NAME",
    multiple=True,
    show_default="the empty name",
    help="Instance name to serve; repeatable. Each has names of its own, all share the stored content.",
)
@click.option(
    "--no-foreign",
    is_flag=True,
    help="Refuse a name whose content was not pushed to this server but to another one ('type: storage').",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    show_default="one per usable core, at most 8",
    help="Number of serving processes. They share the port and the repository.",
)
@click.option("--log-level", type=LOG_LEVEL, default="info", show_default=True, help="How much to log to stderr.")
@click.argument("repo", metavar="[REPO]", default="./millpond-data")
def serve(
    listen: tuple[tuple[str, int], ...],
    server_key: Path | None,
    server_cert: Path | None,
    client_certs: Path | None,
    enable_push: bool,  # noqa: FBT001 — click passes every parameter by name
    index_only: bool,  # noqa: FBT001
    quota: Quota | None,
    instance: tuple[str, ...],
    no_foreign: bool,  # noqa: FBT001
    workers: int | None,
    log_level: str,
    repo: str,
) -> int:
    """``millpond serve``: arguments become settings."""
    if not repo:
        raise click.UsageError("REPO is empty: name a directory")
    addresses = listen or (DEFAULT_LISTEN,)
    if any(addresses.count(address) > 1 and address[1] for address in addresses):
        raise click.UsageError("the same --listen address is given twice: leave one out")
    try:
        tls = tls_files(server_key, server_cert, client_certs)
    except ContradictoryTls as error:
        raise click.UsageError(str(error)) from None
    settings = Settings(
        repo=Path(os.path.abspath(repo)),
        listeners=tuple(Listener(host, port, tls) for host, port in addresses),
        instances=tuple(dict.fromkeys(instance)) or ("",),
        enable_push=enable_push,
        index_only=index_only,
        foreign=not no_foreign,
        quota=quota,
        workers=workers or usable_cores(),
        log_level=LogLevel(log_level),
    )
    return start(settings, with_configuration=True)
