"""The options of ``bst-artifact-receive``, which are those of the program that it replaces.

The rule: no more is imported than a few lines need: a process is started for every push, and for every client that asks
whether it might push.
"""

from __future__ import annotations

PROGRAM = "bst-artifact-receive"
OPTIONS = (
    ("--pull-url", "URL", "Where clients pull from what they push here, over http or https. Required."),
    ("-v, --verbose", "", "Say on standard error what was stored; clients keep that in the log of the push."),
    ("-d, --debug", "", "Say every message, too."),
    ("--version", "", "Print the version."),
    ("-h, --help", "", "Print this text."),
)
"""Names, the argument's name, and what it is for."""
REQUIRED = "--pull-url"
ABOUT = (
    "Receive a push into the OSTree repository REPO, on standard input and output: for sshd to start, as ForceCommand or",
    "by hand. A REPO that does not begin with / is looked for in $HOME. SSH_ORIGINAL_COMMAND is not looked at.",
    "",
    "Every object is verified before it is stored, the quota and the reserve in REPO/config are kept, and the summary is",
    "written before the client is told that all is done. REPO/state/millpond/pushes gets a line for every push.",
    "",
    "Exit status: 0 when the client got what it asked for; 1 when its push failed; 2 when the arguments or the repository",
    "cannot be used.",
)

_FLAGS = {"-v": "verbose", "--verbose": "verbose", "-d": "debug", "--debug": "debug"}


class Arguments:
    """What was asked for."""

    __slots__ = ("debug", "pull_url", "repo", "verbose")

    def __init__(self, repo: str, pull_url: str, *, verbose: bool, debug: bool) -> None:
        self.repo = repo
        self.pull_url = pull_url
        self.verbose = verbose
        self.debug = debug


class WrongUsage(Exception):
    """Arguments that cannot be used; the message is a sentence for the user."""


class Asked(Exception):
    """Somebody asked for ``--help`` or ``--version``; the message is the answer."""


def usage() -> str:
    """The text of ``--help``."""
    rows = [(f"{name} {argument}".strip(), text) for name, argument, text in OPTIONS]
    return "\n".join(
        [
            f"Usage: {PROGRAM} --pull-url URL [-v] [-d] REPO",
            "",
            *ABOUT,
            "",
            *(f"  {name:<16} {text}" for name, text in rows),
        ]
    )


def parse(arguments: list[str], environment: dict[str, str]) -> Arguments:
    """The arguments' meaning.

    Raises:
        WrongUsage: they have none.
        Asked: there is only something to print.
    """
    given, repos, flags = list(arguments), [], set()
    pull_url = None
    while given:
        one = given.pop(0)
        name, equals, value = one.partition("=")
        if one == "--":
            repos += given
            break
        if name == "--pull-url":
            if not equals and not given:
                raise WrongUsage("--pull-url lacks its URL")
            pull_url = value if equals else given.pop(0)
        elif one in ("-h", "--help"):
            raise Asked(usage())
        elif one == "--version":
            raise Asked(_version())
        elif one in _FLAGS:
            flags.add(_FLAGS[one])
        elif one in ("-vd", "-dv"):
            flags |= {"verbose", "debug"}
        elif one.startswith("-") and one != "-":
            raise WrongUsage(f"there is no option {name}")
        else:
            repos.append(one)
    if not pull_url:
        raise WrongUsage(
            "--pull-url is missing: name the http or https URL from which clients pull what is pushed here"
        )
    if len(repos) != 1 or not repos[0]:
        raise WrongUsage(f"one REPO was expected, not {len(repos)}: name the directory of the OSTree repository")
    return Arguments(_absolute(repos[0], environment), pull_url, verbose="verbose" in flags, debug="debug" in flags)


def _absolute(repo: str, environment: dict[str, str]) -> str:
    home = environment.get("HOME", "")
    return f"{home}/{repo}" if home and not repo.startswith("/") else repo


def _version() -> str:
    from importlib.metadata import version

    return f"{PROGRAM} {version('millpond')}"
