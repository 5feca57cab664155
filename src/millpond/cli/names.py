"""``millpond names``: looking at names, taking them away, bringing them back."""

import sys
from pathlib import Path

import click

from millpond.cli.options import PATTERN, REPO
from millpond.core.names import Namespace

_LIST = """List the names in the repository REPO, or those that PATTERN matches ('release/*', 'source:*', a whole URI).

One line for each: its kind, how it is called, the size of all that it needs, when it was pushed.

Exit status: 0, or 1 when there is none.
"""

_SHOW = """Show the names in the repository REPO that NAME means; a NAME may be a pattern such as 'release/base/*'.

It says what each is bound to, who pushed it and when, how much it needs, whether all of that is here, whether a pin
keeps it, and when it was last used.

Exit status: 0, or 1 when there is none.
"""

_REMOVE = """Remove the names in the repository REPO that NAME means; a NAME may be a pattern such as 'broken/*'.

They are a miss at once, also while servers run. Their content stays until room is needed, because other names may share
it; it can be read by whoever knows its digests. With --purge what only these names held is gone as well: it cannot be
read any more when the command ends, and its bytes are overwritten, in every segment and in unfinished uploads. What
other names need stays, and is counted. Copies that you or your file system made (backups, snapshots) are yours to find.

On a terminal it asks before it removes what a pattern matched, or purges.

Exit status: 0; 1 when a NAME matched nothing (the others are removed), or nothing was confirmed.

\b
Examples:
  millpond names remove /srv/cache 'experiment/*'
      no artifact of that project is found any more
  millpond names remove --purge /srv/cache secret/keys/0a1b2c3d
      and what was in this one is overwritten
"""  # \b is the character by which click keeps line ends

_RESTORE = """Put a copy of the names in the place of damaged or missing ones. Only while no server runs on REPO.

Upkeep copies the names every hour in which they changed, reads the copy back, and keeps two of them in REPO/backup.
What was pushed after the copy is a miss until it is pushed again; its content may still be there. What was there before
is set aside as REPO/names.damaged: delete it when you do not need it.

Exit status: 0 when it is done; 2 when there is no sound copy, or the names are sound and no --from says which to take.

\b
Examples:
  millpond names restore /srv/cache
      the newest copy that is sound
  millpond names restore /srv/cache --from 2
      the one before the newest, even if the names are sound
"""


@click.group("names", context_settings={"help_option_names": ["-h", "--help"]})
def names() -> None:
    """Look at names, remove them, restore them."""


@click.command("list", help=_LIST, short_help="List names.")
@click.option(
    "--namespace",
    type=click.Choice([namespace.value for namespace in Namespace]),
    help="Only names of this kind of asset.",
)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON, one object per line.")
@click.argument("repo", type=REPO, metavar="REPO")
@click.argument("pattern", type=PATTERN, metavar="[PATTERN]", default="*")
def list_names(namespace: str | None, as_json: bool, repo: Path, pattern: str) -> int:  # noqa: FBT001
    """``millpond names list``: what there is."""
    from millpond.cli.naming import listed  # LMDB is not for those who only ask for --help

    return listed(repo, pattern, namespace=None if namespace is None else Namespace(namespace), as_json=as_json)


@click.command("show", help=_SHOW, short_help="Show all about a name.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.argument("repo", type=REPO, metavar="REPO")
@click.argument("name", type=PATTERN, metavar="NAME...", nargs=-1, required=True)
def show(as_json: bool, repo: Path, name: tuple[str, ...]) -> int:  # noqa: FBT001
    """``millpond names show``: all about some names."""
    from millpond.cli.naming import shown

    return shown(repo, name, as_json=as_json)


@click.command("remove", help=_REMOVE, short_help="Remove names, and what only they held.")
@click.option("--purge", is_flag=True, help="Overwrite what only these names held.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.argument("repo", type=REPO, metavar="REPO")
@click.argument("name", type=PATTERN, metavar="NAME...", nargs=-1, required=True)
def remove(purge: bool, yes: bool, repo: Path, name: tuple[str, ...]) -> int:  # noqa: FBT001
    """``millpond names remove``: some names less."""
    from millpond.cli.removing import removed

    careful = purge or any("*" in pattern for pattern in name)
    return removed(repo, name, purge=purge, ask=careful and not yes and sys.stdin.isatty())


@click.command("restore", help=_RESTORE, short_help="Put a copy of the names in place of damaged ones.")
@click.option(
    "--from",
    "number",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="the newest that is sound",
    help="Take the N-th copy, 1 being the newest.",
)
@click.option("--empty", is_flag=True, help="Take none: begin without names. The content stays.")
@click.argument("repo", type=REPO, metavar="REPO")
def restore(number: int | None, empty: bool, repo: Path) -> int:  # noqa: FBT001
    """``millpond names restore``: names as they were."""
    if empty and number is not None:
        raise click.UsageError("--from takes a copy and --empty takes none: leave one out")
    from millpond.cli.restoring import restored

    return restored(repo, number=number, empty=empty)


for _command in (list_names, show, remove, restore):
    names.add_command(_command)
