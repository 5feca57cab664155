"""``millpond``: the command and what it can do."""

from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import NoReturn

import click

from millpond.cli.check import check
from millpond.cli.evict import evict
from millpond.cli.imports import import_store
from millpond.cli.names import names
from millpond.cli.ostree import ostree
from millpond.cli.pin import pin, pins, unpin
from millpond.cli.running import run_command
from millpond.cli.serve import serve
from millpond.cli.stats import stats

PROGRAM = "millpond"


@click.group(PROGRAM, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def millpond(context: click.Context) -> None:
    """The shared cache server for BuildStream.

    A cache that every client in a team pushes its artifacts and sources to and pulls them from, so that nobody builds
    the same thing twice: clients of BuildStream 1.1.4 and newer on one port, older ones by OSTree. It speaks the Remote
    Execution API's content-addressable storage and the Remote Asset API, so other clients of these can use it, too. It has
    no ActionCache: Bazel and its like cannot keep action results in it.

    \b
    Try it:
      millpond serve --enable-push        and paste what it prints into buildstream.conf
      millpond serve --help               all that can be chosen

    The command bst-artifact-server is the same server with the options of BuildStream's old one.
    """  # noqa: D301 — \b is the character by which click keeps line ends
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@click.command("version")
def version() -> None:
    """Print the version."""
    click.echo(f"{PROGRAM} {version_of(PROGRAM)}")


millpond.add_command(check)
millpond.add_command(evict)
millpond.add_command(import_store)
millpond.add_command(names)
millpond.add_command(ostree)
millpond.add_command(pin)
millpond.add_command(pins)
millpond.add_command(serve)
millpond.add_command(stats)
millpond.add_command(unpin)
millpond.add_command(version)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The ``millpond`` program."""
    run_command(millpond, PROGRAM, arguments)


if __name__ == "__main__":
    main()
