"""The log: standard error, one line per record, so that journald, ``docker logs`` and ``grep`` all work.

The rule: a line says which process wrote it, and nothing that a peer sent can begin a new line.
"""

import logging
import sys
import time

from millpond.config.settings import LogLevel

_LEVELS = {LogLevel.WARNING: logging.WARNING, LogLevel.INFO: logging.INFO, LogLevel.TRACE: logging.DEBUG}


class _OneLine(logging.Formatter):
    """UTC with milliseconds; line ends in a message become visible, those of a traceback stay."""

    @staticmethod
    def converter(seconds: float | None = None) -> time.struct_time:
        return time.gmtime(seconds)

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 — logging's own name
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


def set_up_logging(level: LogLevel, process: str) -> None:
    """Write records of ``level`` and worse to standard error, marked with ``process``, as in ``[worker 1]``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s %(name)s [{process}] %(message)s"))
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    if level is not LogLevel.TRACE:
        logging.getLogger("asyncio").setLevel(logging.WARNING)
