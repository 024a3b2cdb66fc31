"""The file that LOG_FILE names.

The law of this file: logrotate may move it, and no trouble with it harms the daemon.
"""

import logging
from logging.handlers import WatchedFileHandler


class MovableFile(WatchedFileHandler):
    """One that cannot be opened again after logrotate moved it costs its lines, not the daemon."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)
