"""Logging to stderr, and to a file if the owner sets one.

A message is one line; a traceback adds lines of the same level. Every line goes through clean(). Trouble with the file
never harms the daemon.
"""

import errno
import logging
import os
import time
from collections.abc import Mapping
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

from envoy2emon.words import clean

# sd-daemon(3): a line on stderr may begin with its syslog priority.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class _Formatter(logging.Formatter):
    """Cleans each line and, for the journal, puts the level in front of it."""

    def __init__(self, layout: str, *, journal: bool = False) -> None:
        super().__init__(layout, "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._journal:
            return text
        prefix = f"<{_PRIORITIES[record.levelno]}>"
        return "\n".join(prefix + line for line in text.splitlines())

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return clean(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).splitlines()
        return "\n".join(" " * (len(line) - len(line.lstrip())) + clean(line) for line in lines)


def setup(environ: Mapping[str, str], level: str = "INFO", file: Path | None = None) -> None:
    """Log to stderr and to `file`, which logrotate may move; a file that cannot be opened is logged as a WARNING."""
    # $JOURNAL_STREAM names the journal's device and inode (systemd.exec(5)).
    status = os.fstat(2)
    journal = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    stderr = logging.StreamHandler()
    layout = "%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s"
    stderr.setFormatter(_Formatter(layout, journal=journal))
    root = logging.getLogger()
    root.handlers[:] = [stderr]
    root.setLevel(level)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it logs every request at DEBUG, and retries at WARNING
    logging.raiseExceptions = False  # no traceback for each line while LOG_FILE's disk is full
    if file:
        try:
            root.addHandler(_file_handler(file))
        except OSError as error:
            root.warning(
                "LOG_FILE %s cannot be written (%s), so nothing is logged there: set one below /var/log/envoy2emon",
                file,
                error.strerror,
            )


def _file_handler(file: Path) -> logging.Handler:
    """Return a handler that drops lines while its file cannot be opened. Raises OSError if it cannot be opened now."""
    from logging.handlers import WatchedFileHandler  # noqa: PLC0415 - takes 3 ms, and few owners need it

    class PlainFile(WatchedFileHandler):
        def _open(self) -> TextIOWrapper:
            if file.exists() and not file.is_file():  # opening a FIFO blocks, opening a device may do anything
                raise OSError(errno.EINVAL, "it is not a plain file")
            return super()._open()

        def emit(self, record: logging.LogRecord) -> None:
            try:
                super().emit(record)
            except OSError:
                self.handleError(record)

    handler = PlainFile(file, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    return handler
