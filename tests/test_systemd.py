"""Both daemons under a real systemd, in a throw-away machine with a simulated gateway and a stand-in for EmonCMS."""

import fcntl
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic

import pytest

from envoy2emon.demo.emoncms import PHP_DOWN, HoldsUp, StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.machine import PROGRAM, SETTINGS, Machine, wait_for
from tests.readme import commands

pytestmark = pytest.mark.timeout(120)
STREAM, INVERTERS = "envoy2emon", "envoy2emon_inv"
BOTH = (STREAM, INVERTERS)
AWAY = PHP_DOWN


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
    booted.run("systemctl", "stop", *BOTH)
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
    settings = {
        "ENVOY_HOST": envoy.host,
        "ENVOY_PASSWORD": envoy.password,
        "EMONCMS_URL": emoncms.url,
        "EMONCMS_APIKEY": emoncms.key,
        "INVERTERS_INTERVAL_S": "1",
    }
    write(machine, settings)
    return settings


def write(machine: Machine, settings: dict[str, str]) -> None:
    """Write the settings as the owner does."""
    machine.write(SETTINGS, "".join(f"{name}={value}\n" for name, value in settings.items()), "0600")


def override(machine: Machine, unit: str, *lines: str) -> None:
    """Change directives of a unit's service until the end of the test."""
    path = Path(f"/run/systemd/system/{unit}.service.d/{lines[0].partition('=')[0]}.conf")
    machine.write(path, "\n".join(("[Service]", *lines, "")))
    machine.run("systemctl", "daemon-reload")


def wait_for_row(emoncms: StandInEmonCMS, node: str = "Envoy-S") -> None:
    """Wait for a row that is not there yet."""
    seen = len(emoncms.rows)
    emoncms.wait_for(lambda: any(row.node == node for row in list(emoncms.rows)[seen:]), 20)


def wait_for_status(machine: Machine, pattern: str, unit: str = STREAM) -> str:
    """Wait until the unit's status line matches and return its first group."""
    found: list[str] = []

    def says() -> bool:
        found[:] = re.findall(pattern, machine.show(unit, "StatusText"))
        return bool(found)

    wait_for(f"a status line like {pattern!r}", says)
    return found[0]


def outlive_watchdog(machine: Machine) -> None:
    """Wait until both units have pinged their 1 s watchdog for 2.5 s, and check that neither was restarted."""
    patience = 2_500_000
    for unit in BOTH:
        override(machine, unit, "WatchdogSec=1")
    machine.run("systemctl", "restart", *BOTH)

    def pinged(unit: str) -> bool:
        started, last = (int(machine.show(unit, f"{name}TimestampMonotonic")) for name in ("ActiveEnter", "Watchdog"))
        return last - started > patience

    wait_for(f"both to ping their watchdog for {patience} us", lambda: all(map(pinged, BOTH)))
    assert [machine.show(unit, "NRestarts") for unit in BOTH] == ["0", "0"]


@pytest.mark.usefixtures("settings")
def test_both_start_and_rows_arrive(machine: Machine, emoncms: StandInEmonCMS) -> None:
    """`systemctl start` returns when both run, and both nodes' rows reach EmonCMS."""
    machine.run("systemctl", "start", *BOTH)
    assert [machine.show(unit, "ActiveState") for unit in BOTH] == ["active", "active"]
    emoncms.wait_for(lambda: {row.node for row in emoncms.rows} == {"Envoy-S", "Envoy-S-inverters"})


@pytest.mark.usefixtures("settings")
def test_status_tells_how_it_stands(machine: Machine) -> None:
    """`systemctl status` shows the current watts, the age of the last reading, and how many rows are waiting."""
    machine.run("systemctl", "start", *BOTH)
    line = r"^\d+ W generating, 2192 W consuming; last reading \d+ s ago; (nothing is waiting|\d rows? waiting)$"
    wait_for_status(machine, line)
    wait_for_status(machine, r"^12 inverters, \d+ W; newest report .* ago; nothing is waiting$", INVERTERS)
    assert re.search(r'Status: "\d+ W generating', machine.run("systemctl", "status", STREAM))


@pytest.mark.usefixtures("settings")
def test_the_journal_has_levels(machine: Machine, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """`journalctl -p warning` shows troubles and nothing else; a start and a recovery are not among them."""
    machine.run("systemctl", "start", STREAM)
    wait_for_row(emoncms)
    assert machine.journal(STREAM, "--priority=warning") == []
    assert re.match(r"envoy2emon [\d.]+: ", machine.journal(STREAM, f"--identifier={STREAM}", "--priority=info")[0])
    emoncms.fault = AWAY
    wait_for_status(machine, "waiting; EmonCMS failing for .*502")
    envoy.stop()
    wait_for_status(machine, "gateway failing for ")
    troubles = machine.journal(STREAM, "--priority=warning")
    assert [line.partition(":")[0] for line in troubles] == ["EmonCMS", "gateway"]
    emoncms.fault = None
    with machine.network():
        envoy.start()
    wait_for("both back", lambda: str(machine.journal(STREAM)).count(": back after") == len(troubles))
    assert machine.journal(STREAM, "--priority=warning") == troubles


def test_a_stop_waits_for_nobody(machine: Machine, emoncms: StandInEmonCMS, settings: dict[str, str]) -> None:
    """`systemctl stop` waits neither for a silent gateway nor for an EmonCMS that does not answer.

    systemd would kill after ten seconds; the limit of five allows for a computer that is busy with other tests.
    """
    emoncms.fault = HoldsUp()
    machine.run("systemctl", "start", *BOTH)
    emoncms.wait_for(lambda: emoncms.requests >= len(BOTH))
    stop_within(machine, 5.0)
    with machine.network(), socket.create_server(("127.0.0.1", 0)) as silent:
        write(machine, settings | {"ENVOY_HOST": f"127.0.0.1:{silent.getsockname()[1]}"})
        machine.run("systemctl", "start", *BOTH)
        for _ in BOTH:
            silent.accept()[0].detach()
        stop_within(machine, 5.0)


def stop_within(machine: Machine, limit: float) -> None:
    """Stop both daemons, and check that they end in time and with success."""
    began = monotonic()
    machine.run("systemctl", "stop", *BOTH)
    assert monotonic() - began < limit
    assert [machine.show(unit, "Result") for unit in BOTH] == ["success", "success"]


def test_a_restart_reads_the_settings(machine: Machine, emoncms: StandInEmonCMS, settings: dict[str, str]) -> None:
    """A change of the settings takes effect after `systemctl restart`."""
    machine.run("systemctl", "start", STREAM)
    wait_for_row(emoncms)
    write(machine, settings | {"EMONCMS_NODE": "Roof"})
    machine.run("systemctl", "restart", STREAM)
    wait_for_row(emoncms, "Roof")


@pytest.mark.usefixtures("settings")
def test_a_killed_daemon_starts_again(machine: Machine, emoncms: StandInEmonCMS) -> None:
    """After `kill -9` systemd restarts the daemon, and rows arrive again."""
    machine.run("systemctl", "start", STREAM)
    wait_for_row(emoncms)
    machine.run("systemctl", "kill", "--signal=KILL", STREAM)
    wait_for("a restart", lambda: machine.show(STREAM, "NRestarts") == "1")
    wait_for_row(emoncms)


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("unit", BOTH)
def test_a_hung_daemon_tells_where_and_starts_again(machine: Machine, unit: str) -> None:
    """The watchdog ends a process that hangs, with its Python traceback in the journal, and it is restarted."""
    override(machine, unit, "WatchdogSec=1")
    machine.run("systemctl", "start", unit)
    wait_for("its threads to wait", lambda: any("firmware D5" in line for line in machine.journal(unit)))
    machine.run("systemctl", "kill", "--signal=STOP", unit)
    wait_for("a restart", lambda: machine.show(unit, "NRestarts") == "1")
    lines = machine.journal(unit)
    assert "Fatal Python error: Aborted" in lines
    # Any thread's line will do: faulthandler does not hold the GIL, so a thread that runs then can garble the rest.
    assert any(re.search(r'File "/opt/envoy2emon/.*/envoy2emon/[\w/]+.py", line \d+ in \w+', line) for line in lines)
    wait_for("it to run again", lambda: machine.show(unit, "ActiveState") == "active")


@pytest.mark.parametrize("unit", BOTH)
def test_a_configuration_error_is_final(machine: Machine, settings: dict[str, str], unit: str) -> None:
    """With bad settings the unit fails at once, `systemctl status` names every problem, and systemd does not retry."""
    write(machine, settings | {"EMONCMS_APIKEY": "", "INVERTERS_INTERVAL_S": "often"})
    assert machine.enter("systemctl", "start", unit).returncode != 0
    assert machine.show(unit, "ActiveState") == "failed"
    assert machine.show(unit, "ExecMainStatus") == "78"
    assert machine.show(unit, "NRestarts") == "0"
    status = machine.enter("systemctl", "status", "--full", unit).stdout.decode()
    assert "EMONCMS_APIKEY is not set" in status
    assert "INVERTERS_INTERVAL_S is 'often'" in status
    assert machine.journal(unit, "--priority=err", f"--identifier={unit}")


@pytest.mark.parametrize("text", [None, ""], ids=["missing", "empty"])
def test_missing_settings_are_said_in_words(machine: Machine, text: str | None) -> None:
    """If /etc/envoy2emon/.env is missing or empty, the daemon names the file and exits with status 78."""
    if text is not None:
        machine.write(SETTINGS, text, "0600")
    assert machine.enter("systemctl", "start", STREAM).returncode != 0
    assert machine.show(STREAM, "ExecMainStatus") == "78"
    status = machine.enter("systemctl", "status", "--full", STREAM).stdout.decode()
    assert str(SETTINGS) in status


@pytest.mark.usefixtures("settings")
def test_an_emoncms_that_hangs_restarts_nothing(machine: Machine, emoncms: StandInEmonCMS) -> None:
    """If EmonCMS is silent for longer than the watchdog's limit, no daemon is restarted."""
    emoncms.fault = HoldsUp()
    outlive_watchdog(machine)


def test_an_envoy_that_hangs_restarts_nothing(machine: Machine, settings: dict[str, str]) -> None:
    """If the gateway is silent for longer than the watchdog's limit, no daemon is restarted."""
    with machine.network(), socket.create_server(("127.0.0.1", 0)) as silent:
        write(machine, settings | {"ENVOY_HOST": f"127.0.0.1:{silent.getsockname()[1]}"})
        outlive_watchdog(machine)


@contextmanager
def network_down(machine: Machine) -> Iterator[None]:
    """Take the machine's only network interface down while the `with` lasts."""
    with machine.network(), socket.socket() as any_socket:
        set_flags, up = 0x8914, 1  # SIOCSIFFLAGS and IFF_UP, netdevice(7)
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", 0))
        try:
            yield
        finally:
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", up))


@pytest.mark.usefixtures("settings")
def test_a_start_without_neighbours_ends_well(machine: Machine, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> None:
    """On a Pi that boots without a network the daemons start, and they recover by themselves."""
    envoy.stop()
    with network_down(machine):
        machine.run("systemctl", "start", *BOTH)
        for unit in BOTH:
            wait_for_status(machine, "gateway failing for ", unit)
    with machine.network():
        envoy.start()
    emoncms.wait_for(lambda: {row.node for row in emoncms.rows} == {"Envoy-S", "Envoy-S-inverters"}, 20)
    assert [machine.show(unit, "NRestarts") for unit in BOTH] == ["0", "0"]


@pytest.mark.usefixtures("settings")
def test_the_backlog_outlives_a_restart(machine: Machine, emoncms: StandInEmonCMS) -> None:
    """Rows that wait for EmonCMS when the daemon is restarted all arrive afterwards, before newer ones."""
    emoncms.fault = AWAY
    machine.run("systemctl", "start", STREAM)
    waiting = int(wait_for_status(machine, r"(\d\d+) rows waiting"))
    machine.run("systemctl", "restart", STREAM)
    emoncms.fault = None
    emoncms.wait_for(lambda: len(emoncms.rows) > waiting, 30)
    watts = [int(row.inputs["prod_ph-a_wNow"]) for row in list(emoncms.rows)]
    assert set(watts[:waiting]) == set(range(watts[0], watts[0] + waiting))
    assert any("of an earlier run" in line for line in machine.journal(STREAM))


def test_the_sandbox_lets_the_live_page_be_seen(machine: Machine, settings: dict[str, str]) -> None:
    """With LIVE_LISTEN the sandboxed daemon serves the page and its figures."""
    write(machine, settings | {"LIVE_LISTEN": "0.0.0.0:8080"})
    machine.run("systemctl", "start", STREAM)
    wait_for_status(machine, r"(\d+) W generating")
    with machine.network(), socket.create_connection(("127.0.0.1", 8080), timeout=10) as viewer:
        viewer.sendall(b"GET /events HTTP/1.1\r\nHost: pi\r\n\r\n")
        received = b""
        while b"event: solar_data\ndata: {" not in received:
            received += viewer.recv(4096)
    assert b"Access-Control-Allow-Origin: *" in received


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
        for line in commands("Two gateways"):
            if "nano" in line:
                second = settings | {
                    "ENVOY_HOST": other.host,
                    "EMONCMS_NODE": "Barn",
                    "EMONCMS_INVERTERS_NODE": "Barn-i",
                }
                machine.write(
                    SETTINGS.with_name("second.env"), "".join(f"{k}={v}\n" for k, v in second.items()), "0600"
                )
            else:
                machine.run("sh", "-c", line.replace("sudo ", ""))
        try:
            emoncms.wait_for(lambda: {"Envoy-S", "Barn", "Barn-i"} <= {row.node for row in list(emoncms.rows)}, 20)
            machine.run("test", "-e", "/var/lib/envoy2emon-second/stream.lock")
            assert machine.journal("envoy2emon-second", "--identifier=envoy2emon-second")
        finally:
            machine.run("systemctl", "disable", "--now", "envoy2emon-second", "envoy2emon_inv-second")
