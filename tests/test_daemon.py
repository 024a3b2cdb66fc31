"""The daemons as processes: start, READY, STATUS, WATCHDOG, SIGTERM, exit codes, settings, the state directory."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import HoldsUp, StandInEmonCMS
from envoy2emon.demo.gateway import Answer, SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.systemd import state_directory
from tests.certificates import Certificate
from tests.conftest import StartDaemon, until
from tests.daemons import PROJECT, Daemon, altered
from tests.enlighten import Enlighten
from tests.faultproxy import FaultProxy

COMMANDS = ("stream", "inverters")
QUICK = {"WATCHDOG_USEC": "600000"}


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield HOST:PORT of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def broken(directory: Path, module: str, name: str) -> dict[str, str]:
    """Return the environment of a process in which this function of this module fails."""
    error = "RuntimeError('broken for the test')"
    return altered(directory, f"import {module}\ndef broken(*_):\n    raise {error}\n{module}.{name} = broken\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_notifications(daemon: StartDaemon, emoncms: StandInEmonCMS, command: str) -> None:
    """READY=1 is sent even if nothing answers, then STATUS= and WATCHDOG=1 at each tick, and STOPPING=1 at the end."""
    emoncms.fault = HoldsUp()
    process = daemon(command, ENVOY_HOST="127.0.0.1:9", environment=QUICK)
    process.wait_for_notify("READY=1")
    assert process.notifications[0] == "READY=1"
    process.wait_for_notify(
        r"STATUS=no re(port|ading) yet; nothing is waiting; gateway failing for \d s: .*refuses the connection"
    )
    assert process.terminate()[0] == 0
    assert process.notifications[-1] == "STOPPING=1"
    assert process.notifications.count("WATCHDOG=1") == sum("STATUS=" in line for line in process.notifications)
    warnings = [line for line in process.lines if "WARNING" in line]
    assert len(warnings) == 1
    assert "WARNING gateway: http" in warnings[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_watchdog_is_not_petted_for_a_stuck_thread(
    daemon: StartDaemon, envoy: SimulatedEnvoy, tmp_path: Path, command: str
) -> None:
    """While a thread is stuck no WATCHDOG=1 is sent: an ERROR names the thread, and systemd restarts the daemon."""
    code = (
        "import threading\nimport envoy2emon.emoncms.delivery as delivery\nimport envoy2emon.systemd as systemd\n"
        "systemd.TURN_WITHIN_S = -300\n"
        "delivery.Delivery.run = lambda self, turned: threading.Event().wait()\n"
    )
    process = daemon(command, environment=QUICK | altered(tmp_path / "stuck", code))
    process.wait_for_line("ERROR the delivery thread is stuck: systemd will restart the daemon")
    assert "WATCHDOG=1" not in process.notifications
    envoy.wait_for(lambda: bool(envoy.requests))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(daemon: StartDaemon, emoncms: StandInEmonCMS, command: str, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end a daemon at once, with exit code 0 and no message."""
    process = daemon(command)
    process.wait_for_notify("READY=1")
    process.process.send_signal(number)
    assert process.wait(2) == 0
    assert len(process.lines) <= 2
    assert emoncms.requests <= 2


@pytest.mark.parametrize("hanging", ["envoy", "envoy connecting", "emoncms", "emoncms connecting"])
def test_sigterm_while_a_neighbour_hangs(
    daemon: StartDaemon, envoy: SimulatedEnvoy, silent: str, full: str, hanging: str
) -> None:
    """SIGTERM ends both daemons in under two seconds if the gateway or EmonCMS hangs, on connecting or answering."""
    where = full if "connecting" in hanging else silent
    changes = {"ENVOY_HOST": where} if "envoy" in hanging else {"EMONCMS_URL": f"http://{where}"}
    stream, inverters = processes = [daemon(command, environment=QUICK, **changes) for command in COMMANDS]
    if "envoy" in hanging:
        for process in processes:
            process.wait_for_notify("WATCHDOG=1")
    else:
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
        stream.wait_for_notify("1 row waiting|nothing is waiting")
        inverters.wait_for_notify("12 inverters")
    start = time.monotonic()
    for process in processes:
        process.process.terminate()
    assert [process.wait() for process in processes] == [0, 0]
    assert time.monotonic() - start < 2.0


def test_sigterm_while_the_stream_hangs(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """SIGTERM ends the daemon at once while its stream is stalled."""
    host, port = envoy.address
    with FaultProxy(host, port) as proxy:
        process = daemon("stream", ENVOY_HOST=f"{proxy.host}:{proxy.port}")
        envoy.wait_for_stream()
        proxy.stall()
        code, took = process.terminate()
    assert (code, took < 1.0) == (0, True)


def test_sigterm_while_enphase_hangs(
    daemon: StartDaemon, envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path
) -> None:
    """SIGTERM ends both daemons at once while one waits for Enphase and the other waits for its turn."""
    envoy.tls = certificate.context
    envoy.upgrade("D8.3.6086")
    with Enlighten() as enlighten:
        enlighten.hangs = True
        processes = [
            daemon(
                command,
                ENPHASE_EMAIL=enlighten.email,
                ENPHASE_PASSWORD=enlighten.password,
                ENPHASE_LOGIN_URL=enlighten.login_url,
                environment={"STATE_DIRECTORY": str(tmp_path)},
            )
            for command in COMMANDS
        ]
        for process in processes:
            process.wait_for_line("firmware D8.3.6086")
        for process in processes:
            code, took = process.terminate()
            assert (code, took < 1.0) == (0, True)


@pytest.mark.parametrize(
    ("command", "thread", "module", "attribute"),
    [
        ("stream", "reader", "envoy2emon.gateway.reader", "parse_event"),
        ("stream", "delivery", "envoy2emon.emoncms.client", "EmonCMS.shown"),
        ("inverters", "poller", "envoy2emon.inverters", "parse_inverters"),
        ("inverters", "delivery", "envoy2emon.emoncms.client", "EmonCMS.shown"),
    ],
)
def test_thread_dies(
    daemon: StartDaemon, envoy: SimulatedEnvoy, tmp_path: Path, command: str, thread: str, module: str, attribute: str
) -> None:
    """A thread that dies takes the process with it: its traceback in the log, exit code 1."""
    process = daemon(command, environment=broken(tmp_path / "broken", module, attribute))
    if thread == "reader":
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
    assert process.wait() == 1
    process.wait_for_line(f"CRITICAL the {thread} thread died")
    process.wait_for_line("^Traceback")
    process.wait_for_line("^RuntimeError: broken for the test")
    assert process.notifications[-1] == "STOPPING=1"


@pytest.mark.parametrize("command", COMMANDS)
def test_main_thread_dies(daemon: StartDaemon, envoy: SimulatedEnvoy, tmp_path: Path, command: str) -> None:
    """If the main thread dies, the process ends with its traceback and exit code 1, whatever the other threads do."""
    name = {"stream": "stream_inputs", "inverters": "inverter_row"}[command]
    process = daemon(command, environment=broken(tmp_path / "broken", f"envoy2emon.{command}", name))
    if command == "stream":
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
    assert process.wait() == 1
    process.wait_for_line("RuntimeError: broken for the test")


@pytest.mark.parametrize("command", COMMANDS)
def test_configuration_error(daemon: StartDaemon, command: str) -> None:
    """On a configuration error the daemon prints every problem but no secret, and the exit code is 78."""
    process = daemon(
        command, EMONCMS_APIKEY=None, STREAM_SOURCE="radio", ENVOY_TOKEN="not-a token", ENVOY_PASSWORD="s3cret"
    )
    assert process.wait() == 78
    for name in ("EMONCMS_APIKEY", "STREAM_SOURCE is 'radio': expected one of", "ENVOY_TOKEN is not valid"):
        process.wait_for_line(f"ERROR {name}")
    assert len(process.lines) == 3
    assert process.notifications == []


@pytest.mark.parametrize("arguments", [[], ["sing"], ["stream", "--loud"], ["stream", "--env-file"]])
def test_wrong_usage(arguments: list[str]) -> None:
    """Wrong usage prints the right usage, and the exit code is 2."""
    ended = subprocess.run(
        [sys.executable, "-m", "envoy2emon", *arguments], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: envoy2emon")


def test_env_file_not_there(tmp_path: Path) -> None:
    """A file that was asked for and is not there is a configuration error that names it."""
    path = tmp_path / "my.env"
    command = [sys.executable, "-m", "envoy2emon", "stream", "--env-file", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT, env={})
    assert ended.returncode == 78
    assert f"ERROR {path} does not exist" in ended.stderr


def test_env_file_open_to_all(daemon: StartDaemon, tmp_path: Path) -> None:
    """A .env that everyone can read is a WARNING."""
    env_file = tmp_path / "stream" / ".env"
    env_file.parent.mkdir()
    env_file.touch()
    env_file.chmod(0o644)
    process: Daemon = daemon("stream")
    process.wait_for_line(f"WARNING {env_file} holds passwords and everyone can read it: chmod 600 {env_file}")


def test_state_directory() -> None:
    """State is in $STATE_DIRECTORY, else in $XDG_STATE_HOME/envoy2emon, else in ~/.local/state/envoy2emon."""
    home = {"HOME": "/home/pi"}
    assert state_directory(home | {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert state_directory(home | {"XDG_STATE_HOME": "/srv/state"}) == Path("/srv/state/envoy2emon")
    assert state_directory(home | {"XDG_STATE_HOME": "relative"}) == Path("/home/pi/.local/state/envoy2emon")
    assert state_directory({}) is None


def test_a_neighbours_words_are_no_orders_to_systemd(daemon: StartDaemon, envoy: SimulatedEnvoy) -> None:
    """The firmware's name in /info can neither send systemd a line nor make STATUS= long; WATCHDOG=1 is still sent."""
    software = "D5\nWATCHDOG=trigger\n" + "x" * 50_000
    device = f"<device><sn>{envoy.serial}</sn><software>{software}</software></device>"
    envoy.answers["/info"] = Answer(200, f"<envoy_info>{device}</envoy_info>")
    process = daemon("stream", ENVOY_PASSWORD="wrong-password", environment=QUICK)
    process.wait_for_notify("^STATUS=.*refuses user installer")
    process.wait_for_notify("^WATCHDOG=1$")
    assert {line.partition("=")[0] for line in process.notifications} == {"READY", "STATUS", "WATCHDOG"}
    assert set(process.notifications) >= {"WATCHDOG=1"}
    assert "WATCHDOG=trigger" not in process.notifications
    assert max(map(len, process.notifications + process.lines)) < 2000


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_daemon_of_a_kind_ends(daemon: StartDaemon, tmp_path: Path, command: str) -> None:
    """A second daemon of a kind would post readings twice: it exits with 78, naming the first and the directory."""
    shared = {"STATE_DIRECTORY": str(tmp_path / "shared")}
    first = daemon(command, environment=shared)
    first.wait_for_notify("READY=1")
    second = Daemon(command, tmp_path / "second", first.settings)
    second.environment |= shared
    with second:
        assert second.wait() == 78
        line = f"ERROR another envoy2emon {command} \\(pid {first.process.pid}\\) uses {tmp_path / 'shared'}: stop that"
        second.wait_for_line(line)
    other = daemon({"stream": "inverters", "inverters": "stream"}[command], environment=shared)
    other.wait_for_notify("READY=1")
    first.kill()
    second.start()
    second.wait_for_notify("READY=1")
    assert second.terminate()[0] == 0


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2])
def test_a_stop_at_once_ends_well(daemon: StartDaemon, seconds: float) -> None:
    """SIGTERM while the daemon is starting is no failure: the exit code is 0 from the moment it catches the signal."""
    process = daemon("stream", environment={"PYTHONVERBOSE": ""})
    command = Path(f"/proc/{process.process.pid}")
    until(lambda: "signal" in maps(command))
    threading.Event().wait(seconds)
    assert process.terminate()[0] == 0


def maps(process: Path) -> str:
    """Return "signal" once a process catches SIGTERM, which is signal 15."""
    caught = re.search(r"SigCgt:\s+([0-9a-f]+)", (process / "status").read_text())
    return "signal" if caught and int(caught[1], 16) & 1 << 14 else ""
