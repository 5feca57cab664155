"""``millpond evict``: takes content out of a repository now, instead of when it is full."""

import os
import sys
from pathlib import Path

import click

from millpond.cli.options import AGE, SIZE

_HELP = """Evict content from the repository REPO, also while servers run on it.

What was not used for long goes first, whole pieces of it: names that lack something afterwards are misses, and clients
build or push anew. What is pinned stays, and so does what a client was told within the last hour to be here, unless
--everything is given. Space returns as soon as nobody reads the files any more.

Exit status: 0 when it is done; 1 when less than asked for could go, because the rest is pinned or in use; 2 when it
cannot be done.

\b
Examples:
  millpond evict --older-than 30d /srv/cache
      what nobody used for thirty days
  millpond evict --to 20G /srv/cache
      the least recently used, until 20 GB are left
  millpond evict --everything /srv/cache
      all but pins
"""  # \b is the character by which click keeps line ends


@click.command("evict", help=_HELP, short_help="Evict content now.")
@click.option("--older-than", type=AGE, metavar="AGE", help="Evict what was last used longer ago: 30d, 12h, 90m.")
@click.option(
    "--to", "to_bytes", type=SIZE, metavar="SIZE", help="Evict the least recently used until so much is left."
)
@click.option("--everything", is_flag=True, help="Evict all but pins. Asks before, on a terminal.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("repo")
def evict(older_than: int | None, to_bytes: int | None, everything: bool, yes: bool, repo: str) -> int:  # noqa: FBT001
    """``millpond evict``: arguments become one eviction."""
    if not repo:
        raise click.UsageError("REPO is empty: name a directory")
    if (older_than is not None) + (to_bytes is not None) + everything != 1:
        raise click.UsageError("say what is to go: one of --older-than, --to, --everything")
    path = Path(os.path.abspath(repo))
    if everything and not yes and sys.stdin.isatty():
        click.confirm(f"Evict everything from {path} but what is pinned?", abort=True, err=True)
    from millpond.cli.evicting import run  # LMDB is not for those who only ask for --help

    return run(path, older_than_ms=older_than, to_bytes=to_bytes)
