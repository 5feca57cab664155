"""``millpond stats``: what a repository holds, and how well it serves."""

import os
from pathlib import Path

import click

_HELP = """Show what the repository REPO holds and how well it serves, also while servers run on it.

\b
  content    blobs, what they take, and what eviction could free without a miss
  room       how much of the quota is taken, and what is free on the disk
  names      artifacts, sources and others; broken ones lack content that was evicted
  lifetime   how long an artifact lives at the present rate, by the last eviction
  hits       of what was asked for, what was there
  scrub      when everything was last read and verified

Hits are counted by servers and arrive here within seconds; a power loss may cost them.
"""  # \b is the character by which click keeps line ends


@click.command("stats", help=_HELP, short_help="Show what a repository holds and how well it serves.")
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON; sizes in bytes, times in ms.")
@click.argument("repo")
def stats(as_json: bool, repo: str) -> int:  # noqa: FBT001 — click passes every parameter by name
    """``millpond stats``: arguments become numbers."""
    if not repo:
        raise click.UsageError("REPO is empty: name a directory")
    from millpond.cli.numbers import run  # LMDB is not for those who only ask for --help

    return run(Path(os.path.abspath(repo)), as_json=as_json)
