"""The daemons as processes: start, READY, STATUS, WATCHDOG, SIGTERM, exit codes, settings, the state directory."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from envoy2emon import systemd
from envoy2emon.demo.emoncms import HoldsUp, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.certificates import Certificate
from tests.conftest import StartDaemon, until
from tests.daemons import PROJECT, QUICK, Daemon, altered

COMMANDS = ("stream", "inverters")


@pytest.mark.parametrize("command", COMMANDS)
def test_notifications(daemon: StartDaemon, emoncms: StandInEmonCMS, command: str) -> None:
    """READY=1 is sent even if nothing answers, then STATUS= and WATCHDOG=1 at each tick, and STOPPING=1 at the end."""
    emoncms.fault = HoldsUp()
    process = daemon(command, QUICK, ENVOY_HOST="127.0.0.1:9")
    process.wait_for_notify("READY=1")
    assert process.notifications[0] == "READY=1"
    process.wait_for_notify(
        r"STATUS=no re(port|ading) yet; nothing is waiting; gateway failing for \d s: .*refuses the connection"
    )
    assert process.terminate() == 0
    assert process.notifications[-1] == "STOPPING=1"
    assert process.notifications.count("WATCHDOG=1") == sum("STATUS=" in line for line in process.notifications)
    warnings = [line for line in process.lines if "WARNING" in line]
    assert len(warnings) == 1
    assert "WARNING gateway: http" in warnings[0]


def test_watchdog_is_not_petted_for_a_stuck_thread(daemon: StartDaemon, envoy: SimulatedEnvoy, tmp_path: Path) -> None:
    """While a thread is stuck no WATCHDOG=1 is sent: an ERROR names the thread, and systemd restarts the daemon."""
    code = (
        "import threading\nimport envoy2emon.emoncms.delivery as delivery\nimport envoy2emon.systemd as systemd\n"
        "systemd.TURN_WITHIN_S = -300\n"
        "delivery.Delivery.run = lambda self, turned: threading.Event().wait()\n"
    )
    process = daemon("stream", QUICK | altered(tmp_path / "stuck", code))
    process.wait_for_line("ERROR the delivery thread is stuck: systemd will restart the daemon")
    assert "WATCHDOG=1" not in process.notifications
    envoy.wait_for(lambda: bool(envoy.requests))


def test_a_neighbours_words_are_no_orders_to_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the status quotes, STATUS= is one short line, because systemd would obey a second one."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind("")  # the kernel gives it an abstract name (unix(7))
        one: systemd.Daemon[None] = systemd.Daemon({"NOTIFY_SOCKET": "@" + notified.getsockname()[1:].decode()})

        def tick() -> str:
            one.inbox.put(None)
            return "D5\nWATCHDOG=trigger\n" + "x" * 50_000

        assert one.run(lambda _: None, lambda: None, tick) == 0
        _, report, _ = (notified.recv(100_000).decode() for _ in range(3))
    status, watchdog = report.splitlines()
    assert status.startswith("STATUS=D5 WATCHDOG=trigger xxx")
    assert len(status) < 2000
    assert watchdog == "WATCHDOG=1"


@pytest.mark.parametrize("hanging", ["gateway", "EmonCMS", "Enphase"])
def test_a_neighbour_that_hangs_holds_nothing_up(
    daemon: StartDaemon, envoy: SimulatedEnvoy, certificate: Certificate, hanging: str
) -> None:
    """While a neighbour does not answer, WATCHDOG=1 is still sent, and SIGTERM ends both daemons within 2 s."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        account = {"ENPHASE_EMAIL": "me@home", "ENPHASE_PASSWORD": "hunter2"}
        changes = {
            "gateway": {"ENVOY_HOST": address},
            "EmonCMS": {"EMONCMS_URL": f"http://{address}"},
            "Enphase": account | {"ENPHASE_LOGIN_URL": f"http://{address}"},
        }[hanging]
        if hanging == "Enphase":
            envoy.tls = certificate.context
            envoy.upgrade("D8.3.6086")
        processes = [daemon(command, QUICK, **changes) for command in COMMANDS]
        for _ in processes:
            silent.accept()[0].detach()
        for process in processes:
            process.notifications.clear()
            process.wait_for_notify("WATCHDOG=1")
        began = time.monotonic()
        for process in processes:
            process.process.terminate()
        assert [process.wait() for process in processes] == [0, 0]
        assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_a_stop_at_once_ends_well(daemon: StartDaemon, seconds: float) -> None:
    """SIGTERM while the daemon is starting is no failure: the exit code is 0 from the moment it catches the signal."""
    process = daemon("stream")
    status = Path(f"/proc/{process.process.pid}/status")

    def catches_sigterm() -> bool:
        caught = re.search(r"SigCgt:\s+([0-9a-f]+)", status.read_text())
        return bool(caught and int(caught[1], 16) & 1 << (signal.SIGTERM - 1))

    until(catches_sigterm)
    threading.Event().wait(seconds)
    assert process.terminate() == 0


def test_ctrl_c(daemon: StartDaemon) -> None:
    """Ctrl-C ends a daemon in the foreground at once, with exit code 0 and without a traceback."""
    process = daemon("stream")
    process.wait_for_notify("READY=1")
    process.process.send_signal(signal.SIGINT)
    assert process.wait(2) == 0
    assert len(process.lines) <= 2


@pytest.mark.parametrize(
    ("command", "module", "name", "words"),
    [
        ("stream", "envoy2emon.gateway.reader", "Reader.run", "CRITICAL the reader thread died"),
        ("stream", "envoy2emon.emoncms.delivery", "Delivery.run", "CRITICAL the delivery thread died"),
        ("inverters", "envoy2emon.inverters", "Poller.run", "CRITICAL the poller thread died"),
        ("inverters", "envoy2emon.inverters", "Inverters.take", "^Traceback"),
    ],
    ids=["reader", "delivery", "poller", "main"],
)
def test_a_thread_that_dies_ends_the_process(
    daemon: StartDaemon, tmp_path: Path, command: str, module: str, name: str, words: str
) -> None:
    """If a thread dies, the process ends with its traceback in the log and exit code 1."""
    code = (
        f"import {module}\ndef broken(*_):\n    raise RuntimeError('broken for the test')\n{module}.{name} = broken\n"
    )
    process = daemon(command, altered(tmp_path / "broken", code))
    assert process.wait() == 1
    process.wait_for_line(words)
    process.wait_for_line("^RuntimeError: broken for the test")


def test_a_configuration_error(daemon: StartDaemon) -> None:
    """On a configuration error the daemon prints every problem and warning but no secret, and the exit code is 78."""
    process = daemon(
        "stream", EMONCMS_APIKEY=None, STREAM_TIMEOUT=5, ENVOY_TOKEN="not-a token", ENVOY_PASSWORD="s3cret"
    )
    assert process.wait() == 78
    for words in ("ERROR EMONCMS_APIKEY is not set", "ERROR ENVOY_TOKEN is not valid", "WARNING STREAM_TIMEOUT is not"):
        process.wait_for_line(words)
    assert len(process.lines) == 3
    assert process.notifications == []


def test_a_likely_mistake_is_a_warning(daemon: StartDaemon) -> None:
    """A daemon whose settings are valid starts, and logs what is probably a mistake in them."""
    process = daemon("stream", STREAM_TIMEOUT=5)
    process.wait_for_notify("READY=1")
    process.wait_for_line("WARNING STREAM_TIMEOUT is not a setting of envoy2emon and is ignored")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "usage: envoy2emon"),
        (["sing"], 2, "usage: envoy2emon"),
        (["stream", "--env-file", "/no/my.env"], 78, "ERROR /no/my.env does not exist"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, words: str) -> None:
    """Wrong arguments give exit code 2 and the usage; a settings file that is not there gives 78 and its name."""
    command = [sys.executable, "-m", "envoy2emon", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT, env={})
    assert ended.returncode == code
    assert words in ended.stderr


def test_state_directory() -> None:
    """State is in $STATE_DIRECTORY, else in $XDG_STATE_HOME/envoy2emon, else in ~/.local/state/envoy2emon."""
    home = {"HOME": "/home/pi"}
    assert systemd.state_directory(home | {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert systemd.state_directory(home | {"XDG_STATE_HOME": "/srv/state"}) == Path("/srv/state/envoy2emon")
    assert systemd.state_directory(home | {"XDG_STATE_HOME": "relative"}) == Path("/home/pi/.local/state/envoy2emon")
    assert systemd.state_directory({}) is None


def test_a_second_daemon_of_a_kind_ends(daemon: StartDaemon, tmp_path: Path) -> None:
    """A second daemon of a kind would post readings twice: it exits with 78, naming the first and the directory."""
    shared = {"STATE_DIRECTORY": str(tmp_path / "shared")}
    first = daemon("stream", shared)
    first.wait_for_notify("READY=1")
    daemon("inverters", shared).wait_for_notify("READY=1")
    second = Daemon("stream", tmp_path / "second", first.settings)
    second.environment |= shared
    with second:
        assert second.wait() == 78
        second.wait_for_line(
            rf"ERROR another envoy2emon stream \(pid {first.process.pid}\) uses {tmp_path}/shared: stop that one first"
        )
        first.kill()
        second.start().wait_for_notify("READY=1")
