"""From a command's end to an exit status.

The rule: whatever the user got wrong is one sentence on standard error. 0: ended as told. 1: it failed, and the log
says more. 2: an argument, a key file, an address or a repository that cannot be used. 130, 143: ended by a second
signal before the transfers were done.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from millpond.core.errors import RefusedToStart
from millpond.supervisor import CannotStart

# A group without a command; click has the class since 8.2, and before printed the help itself.
_ASKS_FOR_HELP = getattr(click.exceptions, "NoArgsIsHelpError", ())


def run_command(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``command`` and leave with its status."""
    try:
        status = command.main(args=arguments, prog_name=program, standalone_mode=False)
    except _ASKS_FOR_HELP as error:
        _say(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else program
        _say(f"{where}: {_sentence(error.format_message())} ({where} --help)")
        sys.exit(2)
    except RefusedToStart as error:
        _say(f"{program}: {error}")
        sys.exit(2)
    except CannotStart as error:
        _say(f"{program}: {error}")
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _sentence(message: str) -> str:
    return " ".join(message.split()).rstrip(".")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
