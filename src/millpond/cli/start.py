"""Start a server from settings: judge the key files, supervise, greet."""

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from millpond.cli.greeting import greeting
from millpond.config.logs import set_up_logging
from millpond.config.settings import Listener, Settings
from millpond.config.tls import load_identity
from millpond.supervisor import supervise

_LOG = logging.getLogger(__name__)


def start(settings: Settings, *, with_configuration: bool) -> int:
    """Serve until told to stop; the exit status.

    Raises:
        RefusedToStart, CannotStart: see :func:`millpond.supervisor.supervise`.
    """
    set_up_logging(settings.log_level, "supervisor")
    everywhere = (*settings.listeners, *(settings.ostree.listeners if settings.ostree else ()))
    for files in {listener.tls for listener in everywhere if listener.tls is not None}:
        for warning in load_identity(files).warnings:
            _LOG.warning("%s", warning)

    def announce(listeners: Sequence[Listener], quota: str) -> None:
        text = greeting(settings, listeners, quota, with_configuration=with_configuration)
        # Whoever started us may have stopped reading; that is no reason not to serve, nor to end with another status.
        try:
            if isinstance(sys.stdout, io.TextIOWrapper):  # a path may hold what the terminal's encoding does not
                sys.stdout.reconfigure(errors="backslashreplace")
            print(text, end="", flush=True)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    try:
        return supervise(settings, announce=announce)
    finally:
        with suppress(OSError):
            sys.stdout.flush()
