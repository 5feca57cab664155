"""``millpond serve``: the server with the friendly front."""

from pathlib import Path

import click

from millpond.cli.options import (
    AGE,
    INSTANCE,
    LISTEN,
    LOG_LEVEL,
    QUOTA,
    REPO,
    RESERVE,
    SHARE,
    SIZE,
    ContradictoryTls,
    shared_options,
    tls_files,
    usable_cores,
)
from millpond.cli.ostree_serving import ostree_options, ostree_settings
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
    "--reserve",
    type=RESERVE,
    metavar="SIZE",
    show_default="2 GB, or 5 % of the file system where that is less",
    help="Free disk space that is left to others, in bytes, as 2G, or as 5% of the file system; 0 is none.",
)
@click.option(
    "--pin-share",
    type=SHARE,
    metavar="PERCENT",
    default="50%",
    show_default=True,
    help="How much of the quota may be kept by 'millpond pin'.",
)
@click.option(
    "--warn-age",
    type=AGE,
    metavar="AGE",
    default="7d",
    show_default=True,
    help="Warn when what is removed to make room was used within this time: 7d, 12h; 0 never.",
)
@click.option(
    "--scrub-days",
    type=click.IntRange(0, 3650),
    metavar="DAYS",
    default="30",
    show_default=True,
    help="Read and verify everything once in so many days; 0 never.",
)
@click.option(
    "--scrub-rate",
    type=SIZE,
    metavar="SIZE",
    default="20M",
    show_default=True,
    help="How much of it to read per second, at most.",
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
@ostree_options
@click.option("--log-level", type=LOG_LEVEL, default="info", show_default=True, help="How much to log to stderr.")
@click.argument("repo", type=REPO, metavar="[REPO]", default="./millpond-data")
def serve(
    listen: tuple[tuple[str, int], ...],
    server_key: Path | None,
    server_cert: Path | None,
    client_certs: Path | None,
    enable_push: bool,  # noqa: FBT001 — click passes every parameter by name
    index_only: bool,  # noqa: FBT001
    quota: Quota | None,
    reserve: Quota | None,
    pin_share: float,
    warn_age: int,
    scrub_days: int,
    scrub_rate: int,
    instance: tuple[str, ...],
    no_foreign: bool,  # noqa: FBT001
    workers: int | None,
    ostree: Path | None,
    ostree_listen: tuple[tuple[str, int], ...],
    ostree_prefix: str,
    log_level: str,
    repo: Path,
) -> int:
    """``millpond serve``: arguments become settings."""
    addresses = listen or (DEFAULT_LISTEN,)
    everywhere = addresses + ostree_listen
    if any(everywhere.count(address) > 1 and address[1] for address in everywhere):
        raise click.UsageError("the same address is given twice, to --listen or --ostree-listen: leave one out")
    try:
        tls = tls_files(server_key, server_cert, client_certs)
    except ContradictoryTls as error:
        raise click.UsageError(str(error)) from None
    settings = Settings(
        repo=repo,
        listeners=tuple(Listener(host, port, tls) for host, port in addresses),
        instances=tuple(dict.fromkeys(instance)) or ("",),
        enable_push=enable_push,
        index_only=index_only,
        foreign=not no_foreign,
        quota=quota,
        reserve=reserve,
        pin_share=pin_share,
        warn_age_ms=warn_age,
        scrub_days=scrub_days,
        scrub_rate_bytes=scrub_rate,
        workers=workers or usable_cores(),
        log_level=LogLevel(log_level),
        ostree=ostree_settings(ostree, ostree_listen, ostree_prefix, tls),
    )
    return start(settings, with_configuration=True)
