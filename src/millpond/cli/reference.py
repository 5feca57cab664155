"""``python -m millpond.cli.reference``: writes docs/reference/cli.md from the commands; ``--check`` only compares.

The rule: an option that exists is documented, in the words that ``--help`` uses.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from millpond.cli.bst_artifact_server import bst_artifact_server
from millpond.cli.main import millpond
from millpond.ssh import arguments as receiving

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "cli.md"
_HEAD = """\
# Commands

<!-- Made by `python -m millpond.cli.reference`; change the commands, not this page. -->

Exit statuses: 0 when ended as told; 1 when something failed that the log explains; 2 when an argument, a key file, an
address or a repository cannot be used; 130 or 143 when a second signal cut off running transfers.
"""


def reference() -> str:
    """The whole page."""
    sections = [_section(command, path) for path, command in commands(millpond, "millpond")]
    return "\n".join([_HEAD, *sections, _section(bst_artifact_server, "bst-artifact-server"), _receiver()])


def _receiver() -> str:
    """The section of the program that is no click command, because a process is started for every push."""
    rows = []
    for names, argument, meaning in receiving.OPTIONS:
        shown = ", ".join(f"`{name}`" for name in sorted(names.split(", "), key=len, reverse=True))
        if argument:
            shown += f" `{argument}`"
        rows.append(f"| {shown} | {'required' if names == receiving.REQUIRED else ''} | {meaning} |")
    usage = f"    {receiving.PROGRAM} [OPTIONS] REPO"
    lines = [
        f"## {receiving.PROGRAM}",
        "",
        usage,
        "",
        *receiving.ABOUT,
        "",
        "| option | default | meaning |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *rows]) + "\n"


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """``command``, which is called by ``path``, and all below it."""
    yield path, command
    for name, below in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
        yield from commands(below, f"{path} {name}")


def _section(command: click.Command, path: str) -> str:
    arguments = [one.metavar or str(one.name).upper() for one in command.params if isinstance(one, click.Argument)]
    more = ["COMMAND …"] if isinstance(command, click.Group) else []
    lines = [f"## {path}", "", f"    {' '.join([path, '[OPTIONS]', *arguments, *more])}", "", *_prose(command)]
    options = [one for one in command.params if isinstance(one, click.Option)]
    if options:
        lines += ["", "| option | default | meaning |", "|---|---|---|", *map(_row, options)]
    return "\n".join(lines) + "\n"


def _prose(command: click.Command) -> list[str]:
    lines: list[str] = []
    as_it_stands = False
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        as_it_stands = paragraph.startswith("\b")
        lines += ["    " + line for line in paragraph.split("\n")[1:]] if as_it_stands else [paragraph]
        lines.append("")
    return lines[:-1]


def _row(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    if isinstance(option.type, click.Choice):
        names += f" `{'|'.join(option.type.choices)}`"
    elif not option.is_flag:
        names += f" `{option.metavar or option.type.name.upper()}`"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (names, _default(option), option.help or "")) + " |"


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    return str(option.default) if isinstance(option.default, str) else ""


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` say whether it is up to date."""
    text = reference()
    if arguments != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not up to date: run python -m millpond.cli.reference", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
