"""What `envoy2emon check` asks, and what it said."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from envoy2emon.check import questions
from tests.daemons import assert_no_secret, write_settings


class Answers:
    """What one run said: its exit code and its lines, each of which can be posted in a forum."""

    def __init__(self, code: int, lines: list[str], settings: Mapping[str, object]) -> None:
        self.code, self.lines = code, lines
        assert_no_secret(lines, settings)
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


_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = re.compile(r"os\.(chmod|chown|link|mkdir|remove|rename|rmdir|symlink|truncate|utime)")
_changes: list[str] | None = None  # what was changed since it became a list


def _watch(event: str, args: tuple[object, ...]) -> None:
    """Note whatever changes a file: Python's audit events."""
    if _changes is not None:
        opens = event == "open" and isinstance(args[2], int) and args[2] & _WRITE
        if opens or _CHANGES.fullmatch(event) or (event == "sqlite3.connect" and args[0] != ":memory:"):
            _changes.append(f"{event} {args}")


sys.addaudithook(_watch)  # for good: there is no way to take one back


class Check:
    """Asks what the command asks, where no systemd is unless `tools` holds a systemctl; None leaves a setting out.

    It asks in this process, because a process for each question would make the tests slow, and changes no file.
    """

    def __init__(self, directory: Path, settings: Mapping[str, object]) -> None:
        self.directory, self.settings = directory, dict(settings)
        self.state = directory / "check" / "state"
        self.tools = directory / "tools"
        self.tools.mkdir()
        self.patience = questions.PATIENCE_S

    def __call__(self, environment: Mapping[str, str] | None = None, /, **changes: object) -> Answers:
        """Ask."""
        code, lines = self.run(environment, **changes)
        return Answers(code, lines, self.settings | changes)

    def run(self, environment: Mapping[str, str] | None = None, /, **changes: object) -> tuple[int, list[str]]:
        """Ask, and return the exit code and the lines as they are."""
        global _changes  # noqa: PLW0603 - the audit hook is this process's
        env_file = write_settings(self.state.parent, self.settings | changes)
        environ = {"HOME": str(self.directory), "STATE_DIRECTORY": str(self.state), **(environment or {})}
        said, root = StringIO(), logging.getLogger()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            patch.setenv("PATH", str(self.tools))
            patch.setattr(sys, "dont_write_bytecode", True)
            patch.setattr(root, "handlers", root.handlers[:])
            level = root.level
            changed: list[str] = []
            _changes = changed
            try:
                code = questions.run(env_file, environ, patience=self.patience)
            finally:
                _changes = None
                root.setLevel(level)
        assert not changed
        return code, said.getvalue().splitlines()

    def tool(self, name: str, script: str) -> None:
        """Put a program in place for check to call."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
