"""Runs of `envoy2emon check`, and assertions on what it prints."""

import logging
import re
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from envoy2emon.check import questions
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
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


class Check:
    """Runs the check of a gateway and EmonCMS in this process, because a process for each run would be slow.

    The check finds no systemd unless `tools` holds a systemctl. A setting that is None is left out.
    """

    def __init__(self, directory: Path, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
        self.directory = directory
        self.settings: dict[str, object] = {**envoy.settings(), **emoncms.settings()}
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
        env_file = write_settings(self.state.parent, self.settings | changes)
        environ = {"HOME": str(self.directory), "STATE_DIRECTORY": str(self.state), **(environment or {})}
        said, root = StringIO(), logging.getLogger()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
            patch.setenv("PATH", str(self.tools))
            patch.setattr(root, "handlers", root.handlers[:])
            level = root.level
            try:
                code = questions.run(env_file, environ, patience=self.patience)
            finally:
                root.setLevel(level)
        return code, said.getvalue().splitlines()

    def tool(self, name: str, script: str) -> None:
        """Install a shell script as a program for the check to call."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
