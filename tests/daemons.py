"""The daemons as real processes.

A daemon depends on nothing of this computer but its interpreter, and leaves nothing behind.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Condition, Thread
from typing import NoReturn, Self
from uuid import uuid4

import pytest

PROJECT = Path(__file__).parent.parent
# The environment of a daemon that sends STATUS= and saves its backlog at intervals of a third of this.
QUICK = {"WATCHDOG_USEC": "600000"}
_SECRET = re.compile(r"PASSWORD|TOKEN$|APIKEY")
_JWT = re.compile(r"eyJ[\w-]+\.[\w-]+")
# The last two are for coverage's patch `subprocess`, which measures the daemons: a .pth file starts it in each of them.
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


def skip_or_fail(reason: str, variable: str) -> NoReturn:
    """Skip the test for this reason, or fail it if the environment has `variable`=1, which means that it must run."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{reason}, and {variable}=1")
    pytest.skip(reason)


def altered(directory: Path, code: str) -> dict[str, str]:
    """Return the environment of a process that runs this code before anything else."""
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}:{PROJECT}"}


def write_settings(directory: Path, settings: Mapping[str, object]) -> Path:
    """Write a .env in `directory` as an owner would, without the settings that are None, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    env_file = directory / ".env"
    env_file.touch(mode=0o600)
    env_file.write_text("".join(f"{k}={_quoted(v)}\n" for k, v in settings.items() if v is not None))
    return env_file


def assert_no_secret(lines: Sequence[str], settings: Mapping[str, object]) -> None:
    """Assert that no line holds a secret of these settings, or any token."""
    secrets = {str(value) for name, value in settings.items() if value and _SECRET.search(name)}
    for line in lines:
        assert not _JWT.search(line), line
        assert not any(secret in line for secret in secrets), line


class Daemon:
    """`envoy2emon COMMAND` in its own directory, which keeps settings and state from one start() to the next.

    settings, environment: what the next start() writes and passes on; a setting that is None is left out.
    lines: what it has written since its start; notifications: the lines that it has sent to $NOTIFY_SOCKET since then.
    """

    process: "subprocess.Popen[str]"

    def __init__(self, command: str, directory: Path, settings: Mapping[str, object]) -> None:
        self.command, self.directory = command, directory
        self.state = directory / "state"
        self.settings = dict(settings)
        self.environment: dict[str, str] = {}
        self.lines: list[str] = []
        self.notifications: list[str] = []
        self._changed = Condition()
        self._threads: list[Thread] = []
        self._silent = True

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Kill the process."""
        self.kill()

    def start(self) -> Self:
        """Write the settings and start."""
        self.state.mkdir(parents=True, exist_ok=True)
        env_file = write_settings(self.directory, self.settings)
        name = f"envoy2emon-{uuid4()}"  # abstract, as a path in pytest's directories can be too long for a socket
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"\0{name}")
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {
            "HOME": str(self.directory),
            "STATE_DIRECTORY": str(self.state),
            "PYTHONPATH": str(PROJECT),
            "NOTIFY_SOCKET": f"@{name}",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "envoy2emon", self.command, "--env-file", env_file],
            cwd=self.directory,
            env=environment | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self.lines, self.notifications, self._silent = [], [], False
        self._threads = [Thread(target=self._read), Thread(target=self._receive, args=(notify,))]
        for thread in self._threads:
            thread.start()
        return self

    def wait_for_line(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Return the first match among the lines. Raises AssertionError after `timeout` s or at the process's end."""
        return self._wait_for(self.lines, pattern, timeout)

    def wait_for_notify(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Return the first match among the notifications; otherwise as wait_for_line."""
        return self._wait_for(self.notifications, pattern, timeout)

    def wait(self, timeout: float = 10.0) -> int:
        """Return the exit code once the process has ended and its output is read; assert that it holds no secret."""
        code = self.process.wait(timeout)
        for thread in self._threads:
            thread.join()
        assert_no_secret([*self.lines, *self.notifications], self.settings)
        return code

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.wait()

    def kill(self) -> None:
        """Send SIGKILL if it was started and still runs, and wait for its end."""
        if self._threads:
            self.process.kill()
            self.wait()

    def memory(self) -> tuple[int, int]:
        """Return the resident memory in bytes: now (VmRSS), and its peak so far (VmHWM)."""
        kib = dict(re.findall(r"(?m)^(Vm\w+):\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text()))
        return int(kib["VmRSS"]) * 1024, int(kib["VmHWM"]) * 1024

    def _wait_for(self, texts: list[str], pattern: str, timeout: float) -> re.Match[str]:
        def match() -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, text) for text in texts)), None)

        with self._changed:
            self._changed.wait_for(lambda: match() or self._silent, timeout)
            if found := match():
                return found
            seen = "\n".join([*self.lines, *self.notifications])
            raise AssertionError(f"no {pattern!r} in {timeout} s; exit code {self.process.poll()}; seen:\n{seen}")

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self._add(self.lines, line.rstrip("\n"))
        with self._changed:
            self._silent = True
            self._changed.notify_all()

    def _receive(self, notify: socket.socket) -> None:
        with notify:
            notify.settimeout(0.05)
            while True:
                try:
                    message = notify.recv(4096)
                except TimeoutError:
                    if self._silent:
                        return
                else:
                    for line in message.decode().splitlines():
                        self._add(self.notifications, line)

    def _add(self, texts: list[str], text: str) -> None:
        with self._changed:
            texts.append(text)
            self._changed.notify_all()


def _quoted(value: object) -> str:
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
