"""`envoy2emon check` as a process, and what it said."""

import re
from collections.abc import Mapping
from pathlib import Path

from tests.daemons import Daemon, altered


class Answers:
    """What one run said: its exit code and its lines, each of which can be posted in a forum."""

    def __init__(self, code: int, lines: list[str]) -> None:
        self.code, self.lines = code, lines
        text = "\n".join(lines)
        assert not re.search(r"(?<![^\W_])\d{10,}(?![^\W_])", text), text  # a whole serial number
        assert not re.search(r"\w@\w", text), text
        assert not re.search(r"Errno|\wError\b|Traceback", text), text
        assert not [line for line in lines if not re.match(r"(ok   |warn |FAIL ) \w+ +\S", line)], text
        assert code == (1 if any(line.startswith("FAIL") for line in lines) else 0)

    def subjects(self) -> str:
        """Name the subjects in their order, each once."""
        return " ".join(dict.fromkeys(line.split()[1] for line in self.lines))

    def words(self, subject: str) -> set[str]:
        """Return which of ok, warn and FAIL were said of a subject."""
        return {word for word, about, *_ in map(str.split, self.lines) if about == subject}

    def say(self, word: str, subject: str, *parts: str) -> None:
        """Assert that a line has this word and subject, and all parts in it."""
        texts = [line for line in self.lines if line.split()[:2] == [word, subject]]
        assert any(all(part in line for part in parts) for line in texts), (word, subject, parts, self.lines)


# Tells of whatever would change a file: Python's audit events.
_WATCH = """
import os, sys
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGE = {f"os.{name}" for name in "chmod chown link mkdir remove rename rmdir symlink truncate utime".split()}
def watch(event, args):
    opens = event == "open" and args[2] & WRITE or event == "sqlite3.connect" and args[0] != ":memory:"
    if (opens or event in CHANGE) and "/.coverage." not in str(args[0]):
        os.write(1, f"FAIL  changes    {event} {args}\\n".encode())
sys.addaudithook(watch)
"""


class Check:
    """Runs the command, where no systemd is unless `tools` holds a systemctl; None leaves a setting out.

    Whatever it would change is a line with the subject `changes`, and a failure.
    """

    def __init__(self, directory: Path, settings: Mapping[str, object]) -> None:
        self.directory, self.settings = directory, dict(settings)
        self.state = directory / "check" / "state"
        self.tools = directory / "tools"
        self.tools.mkdir()
        self._environment = altered(directory / "watch", _WATCH) | {"PYTHONDONTWRITEBYTECODE": "1"}

    def __call__(self, environment: Mapping[str, str] | None = None, /, **changes: object) -> Answers:
        """Run it."""
        process = Daemon("check", self.directory / "check", self.settings | changes)
        process.environment = {"PATH": str(self.tools)} | self._environment | dict(environment or {})
        with process:
            answers = Answers(process.wait(60), process.lines)
        assert answers.words("changes") == set(), answers.lines
        return answers

    def tool(self, name: str, script: str) -> None:
        """Put a program in place for check to call."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
