"""`envoy2emon demo`, as the README's reader meets it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.daemons import PROJECT

ENVIRONMENT = {
    name: os.environ[name] for name in os.environ if name.startswith(("PATH", "HOME", "PIP_", "SSL_", "COVERAGE"))
}


def demo(*arguments: str) -> "subprocess.Popen[str]":
    """Start the demo on a port of its own."""
    command = [sys.executable, "-m", "envoy2emon", "demo", "--listen", "127.0.0.1:0", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_ends_after_its_seconds() -> None:
    """With --seconds N it shows inputs that change, ends by itself and leaves no process."""
    process = demo("--seconds", "5")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    lines = re.findall(r"^ +\d\d:\d\d +.*W", output, re.MULTILINE)
    assert len(set(lines)) >= 2, output
    assert re.search(r"EmonCMS has received [1-9]\d* rows", output)
    assert "ERROR" not in output
    assert "WARNING" not in output


def test_ctrl_c_ends_it() -> None:
    """Ctrl-C ends the demo and its daemons cleanly."""
    process = demo()
    assert process.stdout
    output = ""
    while not re.search(r"^ +\d\d:\d\d", output, re.MULTILINE):
        output += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def test_the_readmes_line_in_a_fresh_clone(tmp_path: Path) -> None:
    """The README's very line sets up and runs the demo in a checkout of what git tracks, and nothing else."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    section = (PROJECT / "README.md").read_text().partition("\n## Try it\n")[2]
    line = re.findall(r"^    (python3 .*)$", section, re.MULTILINE)[0]
    done = subprocess.run(
        f"{line} --seconds 4 --listen 127.0.0.1:0",
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"EmonCMS has received [1-9]\d* rows", done.stdout)
