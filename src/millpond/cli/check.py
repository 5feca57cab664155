"""``millpond check``: whether the repository is what it says it is."""

import os
from pathlib import Path

import click

from millpond.cli.options import SIZE

_HELP = """Check the repository REPO, also while servers run on it.

It looks whether every segment, every entry of the index and the ledger of room fit together, whether names can be read,
and whether each name that would be answered has all of its content. --deep reads every byte as well. Nothing is changed
without --repair.

Exit status: 0 when it is sound; 1 when something was found, repaired or not; 2 when it cannot be checked.

\b
Examples:
  millpond check /srv/cache
      the structure; takes seconds, or minutes with very many names
  millpond check --deep --repair /srv/cache
      every byte; what is damaged counts as missing, and comes back with the next push
  millpond check --rebuild /srv/copy
      a copy or a restored snapshot: make its index anew, then check it
"""  # \b is the character by which click keeps line ends


@click.command("check", help=_HELP, short_help="Check and repair a repository.")
@click.option("--deep", is_flag=True, help="Read every blob and compare it with its checksums and its digest.")
@click.option(
    "--rate",
    type=SIZE,
    metavar="SIZE",
    default="100M",
    show_default=True,
    help="With --deep: read no more than this per second, so that clients hardly notice.",
)
@click.option(
    "--repair",
    is_flag=True,
    help="Put right what can be: damaged blobs count as missing, stray files go, the room is counted anew.",
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="First make the index anew from the segments. Only while no server runs on it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.argument("repo")
def check(
    deep: bool,  # noqa: FBT001 — click passes every parameter by name
    rate: int,
    repair: bool,  # noqa: FBT001
    rebuild: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    repo: str,
) -> int:
    """``millpond check``: arguments become a look at everything."""
    if not repo:
        raise click.UsageError("REPO is empty: name a directory")
    from millpond.cli.checking import run  # LMDB is not for those who only ask for --help

    path = Path(os.path.abspath(repo))
    return run(path, deep=deep, rate_bytes=rate, repair=repair, rebuild=rebuild, as_json=as_json)
