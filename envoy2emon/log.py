"""Where log lines go: stderr, and a file if the owner wants one.

The law of this file: one message is one line (or, a traceback, lines of one level), and no secret is in it.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# sd-daemon(3): a line on stderr may begin with its syslog priority.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Formatter(logging.Formatter):
    """Puts stars in the place of secrets and, for the journal, the level in front of every line."""

    def __init__(self, layout: str, *, secrets: Sequence[str] = (), journal: bool = False) -> None:
        super().__init__(layout, "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        # The longest first: one secret may be part of another. A very short one would turn ordinary words into stars.
        self._secrets = sorted((secret for secret in secrets if len(secret) > 3), key=len, reverse=True)  # noqa: PLR2004
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        if not self._journal:
            return text
        prefix = f"<{_PRIORITIES[record.levelno]}>"
        return "\n".join(prefix + line for line in text.splitlines())


def under_journal(environ: Mapping[str, str]) -> bool:
    """Tell whether stderr is the journal: $JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        stderr = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def setup(
    environ: Mapping[str, str], level: str = "INFO", file: Path | None = None, secrets: Sequence[str] = ()
) -> None:
    """Send log lines to stderr and `file`, which logrotate may move; a file that cannot be had is a WARNING."""
    journal = under_journal(environ)
    stderr = logging.StreamHandler()
    layout = "%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s"
    stderr.setFormatter(_Formatter(layout, secrets=secrets, journal=journal))
    root = logging.getLogger()
    root.handlers[:] = [stderr]
    root.setLevel(level)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # at DEBUG it logs every request, and retries at WARNING
    logging.raiseExceptions = False  # a full disk under LOG_FILE is not worth a traceback a line
    if file:
        from envoy2emon.log_file import MovableFile  # noqa: PLC0415 - 0.3 MB and 2 ms that few owners need

        try:
            handler = MovableFile(file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            root.warning("LOG_FILE %s cannot be written (%s): logging goes to stderr only", file, error.strerror)
            return
        handler.setFormatter(_Formatter("%(asctime)s %(process)d %(levelname)s %(message)s", secrets=secrets))
        root.addHandler(handler)
