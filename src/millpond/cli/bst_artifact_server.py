"""``bst-artifact-server``: a drop-in for the server that every BuildStream up to 1.93.6 brought along.

The rule: unit files and scripts that were written for it keep working. Its options are the union of all versions'
(there was never another), what it refused is refused in the same words with the same status, and it listens on every
address, as it always did.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from millpond.cli.options import LOG_LEVEL, QUOTA, REPO, SIZE, ContradictoryTls, shared_options, tls_files, usable_cores
from millpond.cli.running import run_command
from millpond.cli.start import start
from millpond.config.settings import Listener, LogLevel, Settings
from millpond.config.sizes import Quota

PROGRAM = "bst-artifact-server"
_REFUSED_STATUS = 255  # what sys.exit(-1) of the old server was to its caller

_HELP = """Serve the repository REPO (made when missing) on PORT of every address of this machine.

Takes the place of BuildStream's own bst-artifact-server, of any version, with the same options. Two of them, one with
--enable-push and one without, may serve one REPO at the same time. 'millpond serve' is the same server with more
choice. The environment variable BST_ARTIFACTS_ONLY=1 is accepted and needless.

SIGTERM and SIGINT (Ctrl-C) end it: running transfers get up to 30 seconds, a second signal cuts them off. Key files
that change are read again by themselves.

\b
Examples:
  bst-artifact-server --port 11001 --server-key server.key \\
          --server-cert server.crt /srv/artifacts
      everybody may read
  bst-artifact-server --port 11002 --enable-push --server-key server.key \\
          --server-cert server.crt --client-certs authorized.crt /srv/artifacts
      those whose certificates are in authorized.crt may write
"""  # \b is the character by which click keeps line ends


@click.command(PROGRAM, help=_HELP)
@click.option("--port", "-p", type=click.IntRange(0, 65535), metavar="PORT", required=True, help="Port number.")
@shared_options
@click.option(
    "--quota",
    type=QUOTA,
    metavar="SIZE",
    show_default="what the repository was given before, else nine tenths of the free space",
    help="The most that the repository may take, in bytes, or as 50G (10⁹), 50Gi (2³⁰), 80% of its file system; at least"
    " 256Ki.",
)
@click.option(
    "--head-room-min",
    type=SIZE,
    metavar="SIZE",
    show_default="2 GB, or 5 % of the file system where that is less",
    help="Free disk space that is left to others: when less is there, what was used longest ago is removed.",
)
@click.option(
    "--head-room-max",
    type=SIZE,
    metavar="SIZE",
    show_default="a little more than --head-room-min",
    help="How much must be free again before that ends.",
)
@click.option("--log-level", type=LOG_LEVEL, default="warning", show_default=True, help="How much to log to stderr.")
@click.argument("repo", type=REPO, metavar="REPO")
def bst_artifact_server(
    port: int,
    server_key: Path | None,
    server_cert: Path | None,
    client_certs: Path | None,
    enable_push: bool,  # noqa: FBT001 — click passes every parameter by name
    index_only: bool,  # noqa: FBT001
    quota: Quota | None,
    head_room_min: int | None,
    head_room_max: int | None,
    log_level: str,
    repo: Path,
) -> int:
    """``bst-artifact-server``: arguments become settings."""
    try:
        tls = tls_files(server_key, server_cert, client_certs)
    except ContradictoryTls as error:
        click.echo(f"ERROR: {error}", err=True)
        return _REFUSED_STATUS
    if head_room_max is not None and head_room_max < (head_room_min or 0):
        raise click.UsageError("--head-room-max is less than --head-room-min: give it more, or leave it out")
    settings = Settings(
        repo=repo,
        listeners=(Listener("::", port, tls),),
        enable_push=enable_push,
        index_only=index_only,
        quota=quota,
        head_room_min_bytes=head_room_min,
        head_room_max_bytes=head_room_max,
        workers=usable_cores(),
        log_level=LogLevel(log_level),
    )
    return start(settings, with_configuration=False)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The ``bst-artifact-server`` program."""
    run_command(bst_artifact_server, PROGRAM, arguments)


if __name__ == "__main__":
    main()
