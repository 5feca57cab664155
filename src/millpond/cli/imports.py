"""``millpond import``: content of other cache servers moves in."""

from collections.abc import Callable
from pathlib import Path

import click

from millpond.cli.options import INSTANCE, QUOTA, REPO
from millpond.config.sizes import Quota

_GROUP = """Bring what another cache server's store holds into the repository REPO.

The old store is only read, also while its server runs; REPO is made when missing, and may be served meanwhile. Every
byte is verified. What was used last comes first, until the quota is reached: nothing is evicted for what moves in. Done
again, it brings what came since. With --dry-run nothing is brought: all of it is read, verified and told.
"""

_COMMON = """
Names that are here already stay as they are. A name that lacks something, or that needs something damaged, is left out.
What is kept is when each was used last, so that the next eviction takes what the old server would have taken.

Exit status: 0 when all of it is here now; 1 when something was left out that somebody may miss (damaged, incomplete,
unreadable, or no room for it); 2 when it cannot be done.
"""

_BST1 = f"""Bring the store OLD_REPO of a bst-artifact-server of BuildStream 1.1.4 to 1.6.9 into the repository REPO.

It is the directory with cas/objects and cas/refs/heads. The names are those that BuildStream 1 asks for, by either of its
protocols.
{_COMMON}
\b
Examples:
  millpond import bst1 --dry-run /srv/artifacts /srv/cache --quota 500G
      what would come, what is damaged or incomplete there
  millpond import bst1 /srv/artifacts /srv/cache --quota 500G
      before the first start, or once more just before the switch
"""

_BST19 = f"""Bring the store OLD_REPO of a bst-artifact-server of BuildStream 1.91 to 1.93 into the repository REPO.

It is the directory with artifacts/refs, source_protos and cas/objects. Messages of artifacts and sources stay as the old
server has received them. Refs of BuildStream 1 in it come along, and the assets of 1.93.5 and 1.93.6.
{_COMMON}"""

_CASD = f"""Bring the store DIR of buildbox-casd into the repository REPO.

It is the directory with cas/objects and assets/objects, such as that of a shared cache of BuildStream 2. Names keep their
qualifiers and the time at which they expire.
{_COMMON}
\b
Examples:
  millpond import casd /srv/casd /srv/cache
      everything that has a name, with all that it needs
  millpond import casd --all-blobs /srv/casd-storage /srv/cache
      content whose names are on another server ('type: index')
"""  # \b is the character by which click keeps line ends


@click.group("import", help=_GROUP, short_help="Bring content from another cache server.")
def import_store() -> None:
    """``millpond import``: one command for each kind of old store."""


_OPTIONS = [
    click.option(
        "--quota",
        type=QUOTA,
        metavar="SIZE",
        show_default="what the repository was given before, else nine tenths of the free space",
        help="The most that the repository may take, as for 'millpond serve'.",
    ),
    click.option(
        "--instance",
        type=INSTANCE,
        metavar="NAME",
        default="",
        show_default="the empty name",
        help="The instance name under which clients will ask for it.",
    ),
    click.option("--overwrite", is_flag=True, help="Let names of the old store replace those that are here."),
    click.option(
        "--all-blobs",
        is_flag=True,
        help="Then bring blobs that no name needs as well: their names may be on another server.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Bring nothing: verify all of it, and say what would come and what would be left out. Room is estimated.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Say of each name that was left out why."),
    click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON, with all that was left out."),
]


def _add(kind: str, argument: str, text: str, short_help: str) -> None:
    def run(
        old: Path,
        repo: Path,
        quota: Quota | None,
        instance: str,
        overwrite: bool,  # noqa: FBT001 — click passes every parameter by name
        all_blobs: bool,  # noqa: FBT001
        dry_run: bool,  # noqa: FBT001
        verbose: bool,  # noqa: FBT001
        as_json: bool,  # noqa: FBT001
    ) -> int:
        from millpond.cli.importing import Wanted, run  # LMDB is not for those who only ask for --help

        wanted = Wanted(kind, old, repo, quota, instance, overwrite=overwrite, all_blobs=all_blobs, dry_run=dry_run)
        return run(wanted, verbose=verbose, as_json=as_json)

    command: Callable[..., int] = run
    for option in reversed(_OPTIONS):
        command = option(command)
    command = click.argument("repo", type=REPO, metavar="REPO")(command)
    command = click.argument("old", type=REPO, metavar=argument)(command)
    import_store.add_command(click.command(kind, help=text, short_help=short_help)(command))


_add("bst1", "OLD_REPO", _BST1, "From a server of BuildStream 1.1.4 to 1.6.9.")
_add("bst19", "OLD_REPO", _BST19, "From a server of BuildStream 1.91 to 1.93.")
_add("casd", "DIR", _CASD, "From buildbox-casd.")
