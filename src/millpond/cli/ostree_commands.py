"""``millpond ostree init``, ``check``, ``list`` and ``prune``: an administrator's commands for OSTree repositories."""

from pathlib import Path

import click

from millpond.cli.options import AGE, QUOTA, REPO, RESERVE, SIZE
from millpond.config.sizes import Quota

_INIT = """Make the OSTree repository REPO (archive-z2), with the summary that clients want to see before they push.

A repository that is there already is taken over as it is, whoever made and filled it: it gets a true summary, and what is
asked for here. Its config then tells libostree to write the summary, too, when 'ostree commit' changes a ref.

--quota and --reserve are kept in REPO/config and hold for every push from then on: what was not used for longest goes.
Without --quota a new repository may fill the disk but for the reserve.

\b
Examples:
  millpond ostree init artifacts
      as the user to whom clients push; bst-artifact-receive then names the same directory
  millpond ostree init --quota 200G artifacts
      again, to set a quota or another one
"""  # \b is the character by which click keeps line ends

_CHECK = """Check the OSTree repository REPO, also while clients push and pull.

Every object is read and compared with its name, every ref is followed to all that it needs, and the summary is compared
with the refs. With --repair, refs that lack something go (clients push them again), damaged objects go, and the summary
is written anew; 'ostree fsck' has nothing to say afterwards.

Exit status: 0 when it is sound; 1 when something was found, repaired or not; 2 when it cannot be checked.
"""

_LIST = """List the refs of the OSTree repository REPO: commit, size, when it was pushed and last used.

A ref is used when it is pushed, or pulled from 'millpond ostree serve'; other web servers note no uses. Sizes count what
refs share for each of them.
"""

_PRUNE = """Let refs of the OSTree repository REPO go, and all objects that no ref needs any more.

Who was not used for longest goes first. The summary is written before an object goes, and what is being pulled from
'millpond ostree serve' stays until that is over, so it can be done while clients push and pull. It takes some seconds
when refs go, for those who have just read the old summary.

Without --older-than and --quota, the quota of REPO is kept, if it has one, and objects that no ref needs go.

\b
Examples:
  millpond ostree prune --older-than 180d artifacts
      what nobody pulled or pushed for half a year
  millpond ostree prune --quota 100G artifacts
      the least recently used, until 100 GB are left
"""  # \b is the character by which click keeps line ends


@click.command("init", help=_INIT, short_help="Make an OSTree repository, or take one over.")
@click.option(
    "--quota",
    type=QUOTA,
    metavar="SIZE",
    help="What it may hold: 50G, 50Gi, or a percentage of the file system such as 80%.",
)
@click.option(
    "--reserve",
    type=RESERVE,
    metavar="SIZE",
    show_default="2G, or a twentieth of the file system where that is less",
    help="Free disk space left to others: 2G, 5%, or 0 for none.",
)
@click.argument("repo", type=REPO, metavar="REPO")
def ostree_init(quota: Quota | None, reserve: Quota | None, repo: Path) -> int:
    """``millpond ostree init``: arguments become a repository."""
    from millpond.cli.ostree_upkeep import init

    return init(repo, quota, reserve)


@click.command("check", help=_CHECK, short_help="Check and repair an OSTree repository.")
@click.option("--repair", is_flag=True, help="Drop broken refs, remove damaged objects, write the summary anew.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.argument("repo", type=REPO, metavar="REPO")
def ostree_check(repair: bool, as_json: bool, repo: Path) -> int:  # noqa: FBT001 — click passes every parameter by name
    """``millpond ostree check``: arguments become a look at everything."""
    from millpond.cli.ostree_upkeep import check

    return check(repo, repair=repair, as_json=as_json)


@click.command("list", help=_LIST, short_help="List the refs of an OSTree repository.")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON; sizes in bytes, times in ms.")
@click.argument("repo", type=REPO, metavar="REPO")
def ostree_list(as_json: bool, repo: Path) -> int:  # noqa: FBT001
    """``millpond ostree list``: arguments become lines."""
    from millpond.cli.ostree_upkeep import list_all

    return list_all(repo, as_json=as_json)


@click.command("prune", help=_PRUNE, short_help="Let refs of an OSTree repository go.")
@click.option("--older-than", type=AGE, metavar="AGE", help="Refs that were last used longer ago: 30d, 12h, 90m.")
@click.option(
    "--quota", "quota_bytes", type=SIZE, metavar="SIZE", help="The least recently used until so much is left."
)
@click.option("--json", "as_json", is_flag=True, help="Print what went as JSON.")
@click.argument("repo", type=REPO, metavar="REPO")
def ostree_prune(older_than: int | None, quota_bytes: int | None, as_json: bool, repo: Path) -> int:  # noqa: FBT001
    """``millpond ostree prune``: arguments become an eviction."""
    from millpond.cli.ostree_upkeep import prune

    return prune(repo, older_than_ms=older_than, quota_bytes=quota_bytes, as_json=as_json)


COMMANDS = (ostree_init, ostree_check, ostree_list, ostree_prune)
