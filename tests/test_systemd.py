"""Both daemons under a real systemd, in a throw-away machine with a simulated gateway and a stand-in for EmonCMS."""

import json
import re
import socket
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from envoy2emon.demo.emoncms import PHP_DOWN, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.machine import PROGRAM, SETTINGS, Machine, wait_for
from tests.readme import commands

pytestmark = pytest.mark.timeout(120)
STREAM, INVERTERS = "envoy2emon", "envoy2emon_inv"
BOTH = (STREAM, INVERTERS)


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """Boot a machine like this computer, with envoy2emon installed."""
    with Machine() as machine:
        machine.install_program()
        yield machine


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """Give the machine without traces of another test; its daemons restart at once and report their status often."""
    booted.mark()
    for unit in BOTH:
        override(booted, unit, "RestartSec=0.2", "WatchdogSec=6")
    yield booted
    for unit in BOTH:
        print(*booted.journal(unit), sep="\n")  # pytest shows it if the test fails
    booted.enter("systemctl", "kill", "--signal=KILL", *BOTH)
    booted.run("systemctl", "disable", "--now", *BOTH)
    booted.enter("systemctl", "reset-failed", *BOTH)
    booted.run("systemctl", "clean", "--what=all", *BOTH)
    booted.run(
        "rm", "--recursive", "--force", str(SETTINGS), *(f"/run/systemd/system/{unit}.service.d" for unit in BOTH)
    )


@pytest.fixture
def envoy(machine: Machine) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway in the machine; it sends five events a second, with 1 W of production, 2 W, and so on."""
    watts = count(1)
    with (
        machine.network(),
        SimulatedEnvoy(interval=0.2, source=lambda: THREE_PHASE_EVENT.replace("54.745", str(next(watts)))) as envoy,
    ):
        yield envoy


@pytest.fixture
def emoncms(machine: Machine) -> Iterator[StandInEmonCMS]:
    """Serve a stand-in for EmonCMS in the machine."""
    with machine.network(), StandInEmonCMS() as emoncms:
        yield emoncms


@pytest.fixture
def settings(machine: Machine, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> dict[str, str]:
    """Write settings for the gateway and EmonCMS, and return them."""
    settings = envoy.settings() | emoncms.settings()
    write(machine, settings)
    return settings


def write(machine: Machine, settings: dict[str, str], path: Path = SETTINGS) -> None:
    """Write settings as the owner does."""
    machine.write(path, "".join(f"{name}={value}\n" for name, value in settings.items()), "0600")


def override(machine: Machine, unit: str, *lines: str) -> None:
    """Change directives of a unit's service until the end of the test."""
    path = Path(f"/run/systemd/system/{unit}.service.d/{lines[0].partition('=')[0]}.conf")
    machine.write(path, "\n".join(("[Service]", *lines, "")))
    machine.run("systemctl", "daemon-reload")


def wait_for_nodes(emoncms: StandInEmonCMS, *nodes: str) -> None:
    """Wait until rows of all these nodes have arrived."""
    emoncms.wait_for(lambda: set(nodes) <= {row.node for row in emoncms.rows}, 20)


def wait_for_status(machine: Machine, pattern: str, unit: str = STREAM) -> str:
    """Wait until the unit's status line matches and return its first group."""
    found: list[str] = []

    def says() -> bool:
        found[:] = re.findall(pattern, machine.show(unit, "StatusText"))
        return bool(found)

    wait_for(f"a status line like {pattern!r}", says)
    return found[0]


def assert_fails(machine: Machine, *problems: str) -> None:
    """Start a daemon, and check that it fails, is not started again, and has these problems in its status."""
    assert machine.enter("systemctl", "start", STREAM).returncode != 0
    state = [machine.show(STREAM, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
    assert state == ["failed", "78", "0"]
    status = machine.enter("systemctl", "status", "--full", STREAM).stdout.decode()
    assert all(problem in status for problem in problems), status


def test_both_daemons_run(machine: Machine, emoncms: StandInEmonCMS, settings: dict[str, str]) -> None:
    """`systemctl start` starts both: rows arrive, `systemctl status` shows the watts, and the live page is served."""
    write(machine, settings | {"LIVE_LISTEN": "0.0.0.0:8080"})
    machine.run("systemctl", "start", *BOTH)
    assert [machine.show(unit, "ActiveState") for unit in BOTH] == ["active", "active"]
    wait_for_nodes(emoncms, "Envoy-S", "Envoy-S-inverters")
    line = r"^\d+ W generating, 2192 W consuming; last reading \d+ s ago; (nothing is waiting|\d rows? waiting)$"
    wait_for_status(machine, line)
    wait_for_status(machine, r"^12 inverters, \d+ W; newest report .* ago; nothing is waiting$", INVERTERS)
    assert re.search(r'Status: "\d+ W generating', machine.run("systemctl", "status", STREAM))
    with machine.network(), socket.create_connection(("127.0.0.1", 8080), timeout=10) as viewer:
        viewer.sendall(b"GET /events HTTP/1.1\r\nHost: pi\r\n\r\n")
        received = b""
        while b"event: solar_data\ndata: {" not in received:
            received += viewer.recv(4096)


@pytest.mark.usefixtures("settings")
def test_the_backlog_outlives_a_restart(machine: Machine, emoncms: StandInEmonCMS) -> None:
    """Rows that wait at a restart arrive, before newer ones; `journalctl -p warning` shows the outage and no more."""
    emoncms.fault = PHP_DOWN
    machine.run("systemctl", "start", STREAM)
    waiting = int(wait_for_status(machine, r"(\d\d+) rows waiting"))
    (trouble,) = machine.journal(STREAM, f"--identifier={STREAM}", "--priority=warning")
    assert trouble.startswith("EmonCMS: ")
    machine.run("systemctl", "restart", STREAM)
    emoncms.fault = None
    emoncms.wait_for(lambda: len(emoncms.rows) > waiting, 30)
    watts = [int(row.inputs["prod_ph-a_wNow"]) for row in list(emoncms.rows)]
    assert set(watts[:waiting]) == set(range(watts[0], watts[0] + waiting))
    assert any("of an earlier run" in line for line in machine.journal(STREAM))


@pytest.mark.usefixtures("settings")
def test_a_hung_daemon_tells_where_and_starts_again(machine: Machine) -> None:
    """The watchdog ends a process that hangs, with its Python traceback in the journal, and it is restarted."""
    override(machine, STREAM, "WatchdogSec=1")
    machine.run("systemctl", "start", STREAM)
    wait_for("its threads to wait", lambda: any("firmware D5" in line for line in machine.journal(STREAM)))
    machine.run("systemctl", "kill", "--signal=STOP", STREAM)
    wait_for("a restart", lambda: machine.show(STREAM, "NRestarts") == "1")
    lines = machine.journal(STREAM)
    assert "Fatal Python error: Aborted" in lines
    # Any thread's line will do: faulthandler does not hold the GIL, so a thread that runs then can garble the rest.
    assert any(re.search(r'File "/opt/envoy2emon/.*/envoy2emon/[\w/]+.py", line \d+ in \w+', line) for line in lines)
    wait_for("it to run again", lambda: machine.show(STREAM, "ActiveState") == "active")


def test_a_configuration_error_is_final(machine: Machine, emoncms: StandInEmonCMS, settings: dict[str, str]) -> None:
    """Without or with wrong settings the unit fails for good, and its status says why; a restart reads new settings."""
    wrong = settings | {"EMONCMS_APIKEY": "", "STREAM_TIMEOUT_S": "often"}
    machine.run("rm", str(SETTINGS))
    assert_fails(machine, f"{SETTINGS} is missing or holds no setting")
    write(machine, wrong)
    assert_fails(machine, "EMONCMS_APIKEY is not set", "STREAM_TIMEOUT_S is 'often'")
    write(machine, settings)
    machine.run("systemctl", "restart", STREAM)
    wait_for_nodes(emoncms, "Envoy-S")


@pytest.mark.usefixtures("settings")
def test_root_by_hand_leaves_nothing_that_the_service_cannot_use(machine: Machine) -> None:
    """`sudo envoy2emon stream` runs as the service's user, so the service can start later; beside it, it exits 78."""
    machine.run("systemctl", "start", STREAM)
    machine.run("systemctl", "stop", STREAM)
    daemon = f"{PROGRAM}/bin/python -I -m envoy2emon stream --env-file {SETTINGS}"
    by_hand = f"STATE_DIRECTORY=/var/lib/envoy2emon timeout 2 {daemon}"
    assert machine.enter("sh", "-c", by_hand).returncode in (0, 124)
    owners = machine.run("find", "/var/lib/envoy2emon/", "-printf", "%U\n").split()
    assert set(owners) == {machine.run("stat", "-Lc", "%u", "/var/lib/envoy2emon").strip()} != {"0"}
    machine.run("systemctl", "start", STREAM)
    wait_for_status(machine, r"(\d+) W generating")
    second = machine.enter("sh", "-c", by_hand)
    assert second.returncode == 78
    pid = machine.show(STREAM, "MainPID")
    assert f"another envoy2emon stream (pid {pid}) uses /var/lib/envoy2emon" in (second.stdout + second.stderr).decode()


def test_two_gateways(machine: Machine, settings: dict[str, str], emoncms: StandInEmonCMS) -> None:
    """The README's recipe gives a second gateway its own units, settings and state."""
    machine.run("systemctl", "start", STREAM)
    with (
        machine.network(),
        SimulatedEnvoy(serial="122199999999", source=lambda: THREE_PHASE_EVENT, interval=0.2) as other,
    ):
        second = settings | {"ENVOY_HOST": other.host, "EMONCMS_NODE": "Barn", "EMONCMS_INVERTERS_NODE": "Barn-i"}
        for line in commands("Two gateways"):
            if "nano" in line:
                write(machine, second, SETTINGS.with_name("second.env"))
            else:
                machine.run("sh", "-c", line.replace("sudo ", ""))
        try:
            wait_for_nodes(emoncms, "Envoy-S", "Barn", "Barn-i")
            machine.run("test", "-e", "/var/lib/envoy2emon-second/stream.lock")
            write(machine, second | {"EMONCMS_APIKEY": ""}, SETTINGS.with_name("second.env"))
            assert machine.enter("systemctl", "restart", "envoy2emon-second").returncode != 0
            lines = machine.journal("envoy2emon-second", "--identifier=envoy2emon-second")
            assert any("EMONCMS_APIKEY is not set: in /etc/envoy2emon/second.env" in line for line in lines)
        finally:
            machine.run("systemctl", "disable", "--now", "envoy2emon-second", "envoy2emon_inv-second")


def units(machine: Machine) -> list[str]:
    """Run the installed `envoy2emon check` as root, and return what it says of the units."""
    machine.run("journalctl", "--sync")
    environ = {"ENVOY2EMON_ENV_FILE": str(SETTINGS), "STATE_DIRECTORY": "/var/lib/envoy2emon"}
    done = machine.enter(str(PROGRAM / "bin" / "python"), "-m", "envoy2emon", "check", environ=environ)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == any(line.startswith("FAIL") for line in lines), done
    return [line for line in lines if line.split()[1] == "units"]


def test_check_says_how_the_units_are(machine: Machine, emoncms: StandInEmonCMS, settings: dict[str, str]) -> None:
    """A unit is reported as running, running with old settings, or failed with the reason from this run's journal."""
    machine.run("systemctl", "enable", *BOTH)
    machine.run("systemctl", "start", STREAM)
    wait_for_nodes(emoncms, "Envoy-S")
    write(machine, settings | {"EMONCMS_APIKEY": ""})
    machine.enter("systemctl", "start", INVERTERS)
    wait_for("the unit to fail", lambda: machine.show(INVERTERS, "ActiveState") == "failed")
    write(machine, settings)
    machine.run("touch", "--date=1 minute", str(SETTINGS))  # systemd reports whole seconds
    running, failed = units(machine)
    assert running.startswith("warn  units      envoy2emon runs: ")
    assert running.endswith("The settings have changed since it started: sudo systemctl restart envoy2emon")
    assert failed.startswith("FAIL  units      envoy2emon_inv has failed (exit-code, exit status 78); last trouble,")
    assert "EMONCMS_APIKEY is not set" in failed
    assert failed.endswith("Fix that, then: sudo systemctl restart envoy2emon_inv")
    machine.run("touch", str(SETTINGS))
    machine.run("systemctl", "restart", INVERTERS)
    wait_for_nodes(emoncms, "Envoy-S-inverters")
    _, running = units(machine)
    assert running.startswith("ok    units      envoy2emon_inv runs: 12 inverters")
    assert "last trouble" not in running


PROBE = """
import json, os, socket, sys
def try_to(name, action):
    try:
        action()
        seen[name] = "yes"
    except OSError as error:
        seen[name] = error.strerror
seen = {"user": os.getuid()}
for path in sys.argv[1:]:
    try_to(f"read {path}", lambda: open(path).read())
    try_to(f"write {path}", lambda: open(path, "w"))
for variable in "STATE_DIRECTORY", "LOGS_DIRECTORY", "CREDENTIALS_DIRECTORY":
    try_to(f"write {variable}", lambda: open(os.environ[variable] + "/probe", "w"))
try_to("read settings", lambda: open(os.environ["ENVOY2EMON_ENV_FILE"]).read())
try_to("raw socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
print(json.dumps(seen))
"""


@pytest.mark.usefixtures("settings")
def test_the_sandbox_holds(machine: Machine) -> None:
    """A program in the unit can read none of the owner's files, and can write only to the unit's state and logs."""
    machine.write(Path("/home/pi/notes"), "private")
    machine.write(Path("/usr/local/lib/probe.py"), PROBE)
    paths = f"{SETTINGS} /home/pi/notes /root/probe {PROGRAM}/probe /etc/probe /var/lib/probe"
    probe = f"ExecStart={PROGRAM}/bin/python /usr/local/lib/probe.py {paths}"
    override(machine, STREAM, "Type=oneshot", "Restart=no", "WatchdogSec=0", "ExecStart=", probe)
    machine.run("systemctl", "start", STREAM)
    seen = json.loads(machine.journal(STREAM, f"--identifier={STREAM}")[0])
    assert seen["user"] >= 61184  # systemd's dynamic users
    allowed = {name for name, answer in seen.items() if answer == "yes"}
    assert allowed == {"write STATE_DIRECTORY", "write LOGS_DIRECTORY", "read settings"}
    assert seen[f"read {SETTINGS}"] == seen["read /home/pi/notes"] == "Permission denied"
