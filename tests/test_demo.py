"""`envoy2emon demo`, as a reader of the README uses it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.daemons import PROJECT

Demo = Callable[..., "subprocess.Popen[str]"]
ROW = r"^ \d\d:\d\d +.*W +\d+$"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Yield a function that starts the demo on a free port, and check that no file is left behind."""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    started = []

    def start(*arguments: str, listen: str | None = "127.0.0.1:0") -> "subprocess.Popen[str]":
        page = [] if listen is None else ["--listen", listen]
        process = subprocess.Popen(
            [sys.executable, "-m", "envoy2emon", "demo", *page, *arguments],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
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
    """With --seconds N the demo shows changing inputs, ends by itself and leaves no process behind."""
    process = demo("--seconds", "5")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    lines = re.findall(ROW, output, re.MULTILINE)
    assert len(set(lines)) >= 2, output
    assert all(len(line) <= 80 for line in lines)
    assert re.search(r"EmonCMS has received [1-9]\d* rows", output)
    assert not re.search("ERROR|WARNING|Traceback", output), output


def test_the_page_begins_with_a_history(demo: Demo) -> None:
    """The live page has a graph of the last fifteen minutes from the start, and receives the current watts."""
    output = lines_until(process := demo(), ROW)
    url = re.findall(r"The live page: (http://127\.0\.0\.1:\d+/)\n", output)[0]
    with urllib.request.urlopen(f"{url}events", timeout=10) as events:
        assert b"retry" in events.readline()
        lines = [line.decode() for line in iter(events.readline, b"event: solar_data\n")]
    history = json.loads(next(line for line in lines if line.startswith("data: ")).removeprefix("data: "))
    seconds, produced, consumed = zip(*history["points"], strict=True)
    assert history["now"] - seconds[0] > 880
    assert max(later - earlier for earlier, later in pairwise(seconds)) <= 30
    assert (min(produced), max(produced) > 3000, min(consumed) > 300) == (0, True, True)
    process.terminate()
    assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("A simulated gateway", signal.SIGINT),
        ("The live page", signal.SIGTERM),
        (ROW, signal.SIGHUP),
    ],
)
def test_ends_at_once(demo: Demo, moment: str, number: signal.Signals) -> None:
    """Ctrl-C, kill and a terminal that is closed end the demo and its daemons cleanly, at whatever moment."""
    process = demo()
    lines_until(process, moment)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=10)  # returns only once the daemons, which hold the pipe too, have ended
    assert process.returncode == 0, rest
    assert "Traceback" not in rest
    assert "Ended; EmonCMS has received" in rest


def test_a_pipe_that_closes_ends_it(demo: Demo) -> None:
    """`envoy2emon demo | head` ends the demo without a traceback."""
    process = demo()
    assert process.stdout
    assert "A simulated gateway" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(10) == 0


def test_a_port_that_is_taken(demo: Demo) -> None:
    """If the port given with --listen is taken, a plain error says so; without --listen another port is used."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = f"127.0.0.1:{taken.getsockname()[1]}"
        process = demo(listen=page)
        output, _ = process.communicate(timeout=10)
        assert process.returncode == 2
        assert f"no page at {page}: Address already in use. HOST must be" in output
        assert "Traceback" not in output
    with socket.socket() as taken:
        with suppress(OSError):  # another program has it
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        output, _ = demo("--seconds", "1", listen=None).communicate(timeout=30)
        assert re.search(r"The live page: http://127\.0\.0\.1:(?!8080/|0/)\d+/\n", output), output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "nonsense"), "expected HOST:PORT, such as 0.0.0.0:8080"),
        (("--seconds", "nan"), "expected more than 0 seconds"),
    ],
)
def test_wrong_usage(demo: Demo, arguments: tuple[str, ...], words: str) -> None:
    """For a wrong argument the demo says what is expected or what is wrong, and starts nothing."""
    process = demo(*arguments)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 2
    assert words in output
    assert "Traceback" not in output
    assert "A simulated gateway" not in output
