"""`envoy2emon demo`, as the README's reader meets it."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envoy2emon.demo import run as room
from envoy2emon.demo.emoncms import StandInEmonCMS
from tests.daemons import PROJECT
from tests.emoncms import bulk

Demo = Callable[..., "subprocess.Popen[str]"]
ENVIRONMENT = {
    name: os.environ[name] for name in os.environ if name.startswith(("PATH", "HOME", "PIP_", "SSL_", "COVERAGE"))
}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Start the demo on a port of its own; it leaves no file behind."""
    command = [sys.executable, "-m", "envoy2emon", "demo", "--listen", "127.0.0.1:0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    started = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*command, *arguments], cwd=PROJECT, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    assert not list(tmp_path.iterdir())


def lines_until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Return what the process writes, up to the first line in which the pattern is found."""
    assert process.stdout
    output = ""
    while not re.search(pattern, output, re.MULTILINE):
        line = process.stdout.readline()
        assert line, output
        output += line
    return output


def test_ends_after_its_seconds(demo: Demo) -> None:
    """With --seconds N it shows inputs that change, ends by itself and leaves no process."""
    process = demo("--seconds", "5")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    lines = re.findall(r"^ +\d\d:\d\d +.*W", output, re.MULTILINE)
    assert len(set(lines)) >= 2, output
    assert all(len(line) <= 80 for line in lines)
    assert re.search(r"EmonCMS has received [1-9]\d* rows", output)
    assert "ERROR" not in output
    assert "WARNING" not in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["A simulated Envoy", "The live page", r"^ +\d\d:\d\d"])
def test_ends_at_once(demo: Demo, number: signal.Signals, moment: str) -> None:
    """Ctrl-C, kill and a terminal that is closed end the demo and its daemons cleanly, at whatever moment."""
    process = demo()
    lines_until(process, moment)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=10)  # so the daemons, which hold the pipe too, have ended
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert "Ended; EmonCMS has received" in rest


def test_a_pipe_that_closes_ends_it(demo: Demo) -> None:
    """`envoy2emon demo | head` ends the demo without a traceback."""
    process = demo()
    assert process.stdout
    assert "A simulated Envoy" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == 0


def test_a_port_that_is_taken(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    """A taken port that was asked for is an error in plain words; without --listen another one is found."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = demo("--listen", f"127.0.0.1:{port}")
        output, _ = process.communicate(timeout=10)
        assert process.returncode == 2
        assert f"no page at 127.0.0.1:{port}: Address already in use. HOST must be" in output
        assert "Traceback" not in output

        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            assert room.run(1.0, None, port) == 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        shown = re.findall(r"The live page: http://127.0.0.1:(\d+)/\n", capsys.readouterr().out)
        assert shown not in ([], ["0"], [str(port)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "nonsense"), "expected HOST:PORT, such as 0.0.0.0:8080"),
        (("--listen", ""), "expected HOST:PORT, such as 0.0.0.0:8080"),
        (("--listen", "no-such-name.invalid:80"), "no page at no-such-name.invalid:80: "),
        (("--seconds", "0"), "expected more than 0 seconds"),
        (("--seconds", "nan"), "expected more than 0 seconds"),
        (("--seconds", "nonsense"), "argument --seconds: invalid float value: 'nonsense'"),
    ],
)
def test_wrong_usage(demo: Demo, arguments: tuple[str, ...], words: str) -> None:
    """An argument that does not do is named with what is expected, and nothing is started."""
    process = demo(*arguments)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 2
    assert words in output
    assert "Traceback" not in output
    assert "A simulated Envoy" not in output


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


def test_a_node_that_is_half_filled(emoncms: StandInEmonCMS) -> None:
    """Inputs that have not arrived yet are shown as 0."""
    bulk(emoncms, [[0, "Envoy-S", {"prod_ph-b_wNow": 5}]])
    assert re.fullmatch(r" +07:30 +5 W +0 W +0 W +0 W +0 W +1", room._shown(7.5, emoncms))  # noqa: SLF001
