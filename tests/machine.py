"""A throw-away machine with a real systemd: boot-systemd.sh boots it, and nsenter runs commands in it.

Nothing that a test does in the machine outlives it or reaches the computer that runs the test.
"""

import ctypes
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from threading import Event
from time import monotonic, time
from typing import Self

from tests.daemons import PROJECT, skip_or_fail

BOOT = PROJECT / "tests" / "boot-systemd.sh"
PROGRAM = Path("/opt/envoy2emon")
SETTINGS = Path("/etc/envoy2emon/.env")
CANNOT_BOOT = 77
_CLONE_NEWNET = 0x40000000  # <sched.h>; os.setns came with Python 3.12
_PURE = ("requests", "urllib3", "certifi", "idna", "charset_normalizer", "dotenv", "envoy2emon")
# The same as in boot-systemd.sh: capabilities that namespaces do not confine.
_FENCE = "setpriv --bounding-set=-sys_time,-wake_alarm,-sys_module,-sys_rawio,-syslog,-mac_admin,-mac_override --"
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "cat",
}


def wait_for(what: str, predicate: Callable[[], bool], timeout: float = 15.0) -> None:
    """Poll until the predicate holds. Raises AssertionError with `what` after `timeout` s."""
    limit = monotonic() + timeout
    while not predicate():
        assert monotonic() < limit, f"not within {timeout} s: {what}"
        Event().wait(0.2)  # each poll starts a process or two


class Machine:
    """A machine that is up within the `with` block: an overlay of `root`, with `share` at /mnt, read-only."""

    def __init__(self, root: Path = Path("/"), share: Path | None = None) -> None:
        command = [str(BOOT), "-r", str(root), "cat"]
        environ = os.environ | ({"SHARE": str(share)} if share else {})
        pipe = subprocess.PIPE
        self._boot = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.pid = 0
        self._since = "--boot"

    def __enter__(self) -> Self:
        """Wait for the end of the boot; skip the test where nothing can boot."""
        assert self._boot.stderr
        line = self._boot.stderr.readline()
        if not line.startswith("machine "):
            reason = line + self._boot.communicate()[1]
            assert self._boot.returncode == CANNOT_BOOT, reason
            skip_or_fail(reason.strip(), "REQUIRE_SYSTEMD")
        self.pid = int(line.split()[1])
        return self

    def __exit__(self, *_: object) -> None:
        """Power off."""
        self._boot.communicate(timeout=30)

    def enter(
        self, *command: str, stdin: bytes = b"", environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the machine as root, and return its result even if it fails."""
        inside = ["nsenter", "--all", f"--target={self.pid}", *_FENCE.split(), *command]
        return subprocess.run(
            inside, input=stdin, env=_ENVIRONMENT | dict(environ or {}), capture_output=True, check=False, timeout=300
        )

    def run(self, *command: str, stdin: bytes = b"") -> str:
        """Run a command that must succeed, and return what it printed on stdout."""
        done = self.enter(*command, stdin=stdin)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{(done.stdout + done.stderr).decode()}"
        return done.stdout.decode()

    def write(self, path: Path, text: str, mode: str = "0644") -> None:
        """Write a file, and the folders that it needs."""
        self.run("install", "-D", f"--mode={mode}", "/dev/stdin", str(path), stdin=text.encode())

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit, as `systemctl show` knows it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def mark(self) -> None:
        """Let journal() begin here."""
        self._since = f"--since=@{time():.6f}"  # in systemd 252 --after-cursor with a filter loses an entry

    def journal(self, unit: str, *options: str) -> list[str]:
        """Return the messages of a unit's journal since the mark, the oldest first."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--quiet", "--output=cat", f"--unit={unit}", self._since, *options).splitlines()

    @contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread, and threads that it starts, open their sockets in the machine's network."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{self.pid}/ns/net").open() as theirs:
            assert libc.setns(theirs.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(ours.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def install_program(self) -> None:
        """Install this environment's packages, pure Python only, in /opt/envoy2emon, and the units in systemd."""
        self.run("/usr/bin/python3", "-m", "venv", "--without-pip", str(PROGRAM))
        site = self.run(str(PROGRAM / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for package in _PURE:
                tar.add(_folder(package), package, filter=_pure)
        self.run("tar", "--extract", "--no-same-owner", f"--directory={site.strip()}", stdin=archive.getvalue())
        self.run(str(PROGRAM / "bin" / "python"), "-m", "compileall", "-q", site.strip())  # as pip does
        for unit in (PROJECT / "systemd").glob("*.service"):
            self.write(Path("/etc/systemd/system") / unit.name, unit.read_text())
        self.run("systemctl", "daemon-reload")


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent


def _pure(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out files that belong to one version of Python, because the machine's may be another."""
    return None if member.name.endswith((".so", "/__pycache__")) else member
