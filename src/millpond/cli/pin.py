"""``millpond pin``, ``unpin``, ``pins``: what is never evicted."""

import time
from pathlib import Path

import click

from millpond.cli.options import DATE, PATTERN, REPO

_PATTERNS = """A pattern is a name with * for any characters: an artifact is called PROJECT/ELEMENT/KEY, a source KIND/KEY, a
ref of BuildStream 1 PROJECT/ELEMENT/KEY. With its kind in front (artifact:, source:, ref:, asset:) it means only
those."""

_PIN = f"""Keep what PATTERN matches in the repository REPO, now and later: it is never evicted, with all that it needs.

{_PATTERNS} Quote the pattern, or the shell will look for files.

All pins together may hold half of the quota (--pin-share of millpond serve). A pin whose names do not fit is refused;
what is pushed later and does not fit is not kept, and the server's log says so. Pinning a pattern again changes its
--newest and --until. It takes effect within a second, also while servers run.

Exit status: 0 when it is pinned, 2 when it is refused.

\b
Examples:
  millpond pin /srv/cache 'release/*'
      everything of the project called release
  millpond pin /srv/cache 'gnome/*' --newest 3
      of each element of gnome the three newest artifacts
  millpond pin /srv/cache 'artifact:sdk/*' --until 2027-12-31
      the artifacts of sdk, to the end of 2027
"""  # \b is the character by which click keeps line ends

_UNPIN = """Let go of what was pinned in the repository REPO by PATTERN, as millpond pins lists it.

What no other pin keeps becomes ordinary content again: it stays until room is needed for something that was used later.

Exit status: 0 when it was pinned, 1 when it was not.
"""

_PINS = """List the pins of the repository REPO, and how much they hold.

The size of a pin is that of all that its names need; what several names share is counted for each of them. The total is
what pins really hold, as of the last time a server looked.

Exit status: 0.
"""


@click.command("pin", help=_PIN, short_help="Keep names, whatever else must go.")
@click.option(
    "--newest",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="all",
    help="Of each element (a name without its last part) keep only the N newest.",
)
@click.option(
    "--until",
    type=DATE,
    metavar="DATE",
    show_default="for ever",
    help="The pin ends with that day (UTC): 2027-01-31, or 2027-01-31T18:00.",
)
@click.argument("repo", type=REPO, metavar="REPO")
@click.argument("pattern", type=PATTERN, metavar="PATTERN")
def pin(newest: int | None, until: int | None, repo: Path, pattern: str) -> int:
    """``millpond pin``: arguments become a pin."""
    if until is not None and until <= time.time() * 1000:
        raise click.UsageError("--until is over: name a day to come")
    from millpond.cli.pinning import add  # LMDB is not for those who only ask for --help

    return add(repo, pattern, newest=newest, until_ms=until)


@click.command("unpin", help=_UNPIN, short_help="Let go of what was pinned.")
@click.argument("repo", type=REPO, metavar="REPO")
@click.argument("pattern", type=PATTERN, metavar="PATTERN")
def unpin(repo: Path, pattern: str) -> int:
    """``millpond unpin``: one pin less."""
    from millpond.cli.pinning import remove

    return remove(repo, pattern)


@click.command("pins", help=_PINS, short_help="List pins.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
@click.argument("repo", type=REPO, metavar="REPO")
def pins(as_json: bool, repo: Path) -> int:  # noqa: FBT001 — click passes every parameter by name
    """``millpond pins``: what is pinned."""
    from millpond.cli.pinning import listed

    return listed(repo, as_json=as_json)
