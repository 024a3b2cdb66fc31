"""Runs of `envoy2emon check`, and assertions on what it prints."""

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
    """The exit code and lines of one run; asserts that each line can be posted in a forum."""

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
        """Return the subjects in their order, each once."""
        return " ".join(dict.fromkeys(line.split()[1] for line in self.lines))

    def words(self, subject: str) -> set[str]:
        """Return which of ok, warn and FAIL a subject got."""
        return {word for word, about, *_ in map(str.split, self.lines) if about == subject}

    def say(self, word: str, subject: str, *parts: str) -> None:
        """Assert that a line has this word and subject, and contains all parts."""
        texts = [line for line in self.lines if line.split()[:2] == [word, subject]]
        assert any(all(part in line for part in parts) for line in texts), (word, subject, parts, self.lines)


_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = re.compile(r"os\.(chmod|chown|link|mkdir|remove|rename|rmdir|symlink|truncate|utime)")
_changes: list[str] | None = None  # files changed during a run; None between runs


def _watch(event: str, args: tuple[object, ...]) -> None:
    """Note each of Python's audit events that changes a file."""
    if _changes is not None:
        opens = event == "open" and isinstance(args[2], int) and args[2] & _WRITE
        if opens or _CHANGES.fullmatch(event) or (event == "sqlite3.connect" and args[0] != ":memory:"):
            _changes.append(f"{event} {args}")


sys.addaudithook(_watch)  # a hook cannot be removed


class Check:
    """Runs the check in this process, because a process for each run would make the tests slow.

    It asserts that no file is changed. The check finds no systemd unless `tools` holds a systemctl. A setting that is
    None is left out.
    """

    def __init__(self, directory: Path, settings: Mapping[str, object]) -> None:
        self.directory, self.settings = directory, dict(settings)
        self.state = directory / "check" / "state"
        self.tools = directory / "tools"
        self.tools.mkdir()
        self.patience = questions.PATIENCE_S

    def __call__(self, environment: Mapping[str, str] | None = None, /, **changes: object) -> Answers:
        """Run the check, and assert what holds for every run."""
        code, lines = self.run(environment, **changes)
        return Answers(code, lines, self.settings | changes)

    def run(self, environment: Mapping[str, str] | None = None, /, **changes: object) -> tuple[int, list[str]]:
        """Run the check, and return the exit code and the lines without further assertions."""
        global _changes  # noqa: PLW0603 - the audit hook is global as well
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
        """Install a shell script as a program for the check to call."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
