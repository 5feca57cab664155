"""``millpond ostree``: repositories for clients of BuildStream 1.0 and 1.1."""

import click

from millpond.cli.ostree_commands import COMMANDS
from millpond.cli.ostree_serving import ostree_serve


@click.group("ostree", invoke_without_command=True)
@click.pass_context
def ostree(context: click.Context) -> None:
    """OSTree repositories, to which clients of BuildStream 1.0 and 1.1 push, and from which they pull."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (*COMMANDS, ostree_serve):
    ostree.add_command(command)
