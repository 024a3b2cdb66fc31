"""Today's energy in kWh for the page, from the readings; files keep it and the graph's points over a restart.

It is for display only: EmonCMS's own feeds are the record. Gaps in the readings are left out, not bridged.
"""

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Readings further apart than this leave a gap. D8.3.6086 holds events back for up to 13 s, but then sends all of them.
GAP_S = 10.0
SAVE_EVERY_S = 300.0
# A day counts as whole if its first reading came within this many seconds of midnight.
WHOLE_WITHIN_S = 600
LONGEST_DAY_S = 25 * 3600
_MOST_KWH = 10_000.0  # in one day
_MOST_BYTES = 1024 * 1024

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Today:
    """kWh of one local day: produced, consumed, out to the grid and into the house from it.

    day: such as 2025-06-21. since: epoch seconds of the day's first reading.
    """

    day: str = ""
    since: float = 0.0
    produced: float = 0.0
    consumed: float = 0.0
    out: float = 0.0
    into: float = 0.0

    def add(self, epoch: float, seconds: float, p: int | None, c: int | None) -> "Today":
        """Add watts measured at `epoch`, `seconds` after the last reading; return self, or on a new day a new Today."""
        day = _day(epoch)
        today = self if day == self.day else Today(day, epoch)
        if 0 < seconds <= GAP_S and today is self:
            hours = seconds / 3_600_000
            today.produced += (p or 0) * hours
            today.consumed += max(c or 0, 0) * hours
            if p is not None and c is not None:
                today.out += max(p - c, 0) * hours
                today.into += max(c - p, 0) * hours
        return today

    def shown(self, epoch: float) -> dict[str, float | None] | None:
        """Return the kWh for the page, and `since` unless the day is whole; None if `epoch` is on another day."""
        if self.day != _day(epoch):
            return None
        kwh = {name: round(getattr(self, name), 3) for name in ("produced", "consumed", "out", "into")}
        return {**kwh, "since": None if self.since - _midnight(self.day) < WHOLE_WITHIN_S else round(self.since)}


class TodayFile:
    """Keeps Today in today.json in the state directory, and saves it seldom because SD cards wear."""

    def __init__(self, state: Path | None) -> None:
        self._path = state and state / "today.json"
        self._saved_at = float("-inf")

    def load(self) -> Today:
        """Return what an earlier run saved; an empty Today if it saved nothing, or nothing usable."""
        if self._path is None:
            return Today()
        try:
            fields = json.loads(_read(self._path))
            today = Today(**{name: fields[name] for name in asdict(Today())})
            kwh = (today.produced, today.consumed, today.out, today.into)
            if 0 <= today.since - _midnight(today.day) < LONGEST_DAY_S and all(0 <= each < _MOST_KWH for each in kwh):
                return today
        except FileNotFoundError:
            return Today()
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            pass
        _log.warning("%s cannot be read: the page's energy of today starts from zero", self._path)
        return Today()

    def save(self, today: Today, now: float) -> None:
        """Save it, at most every SAVE_EVERY_S; `now` is in monotonic seconds, infinity to save in any case."""
        if self._path is None or not today.day or now - self._saved_at < SAVE_EVERY_S:
            return
        self._saved_at = now
        _write(self._path, asdict(today))


Point = tuple[float, int | None, int | None]  # epoch s, produced W, consumed W


def save_history(state: Path, points: Sequence[Point]) -> None:
    """Save the graph's points, oldest first, for the page of the next run."""
    _write(state / "history.json", points)


def load_history(state: Path | None, seconds: int) -> list[Point]:
    """Return the saved points of the last `seconds`; an empty list if there are none, or the file is unusable."""
    try:
        points = json.loads(_read(state / "history.json") if state else "[]")
        now = time.time()
        return [(at, p, c) for at, p, c in points if now - seconds < at <= now and _watts(p) and _watts(c)]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _day(epoch: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(epoch))


def _midnight(day: str) -> float:
    return time.mktime(time.strptime(day, "%Y-%m-%d"))


def _read(path: Path) -> bytes:
    """Return the content of a file, at most 1 MiB, unless it is a symbolic link. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(_MOST_BYTES)


def _write(path: Path, content: object) -> None:
    """Write content to a private file, whole or not at all, without following a symbolic link; log a failure."""
    new = path.with_suffix(".new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(content, file)
        new.replace(path)
    except OSError as error:
        _log.debug("%s is not saved: %s", path, error)


def _watts(value: object) -> bool:
    return value is None or isinstance(value, int)
