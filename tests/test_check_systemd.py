"""What `envoy2emon check` says of the units where a real systemd runs."""

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.machine import PROGRAM, SETTINGS, Machine, wait_for

INSTALLED = {"ENVOY2EMON_ENV_FILE": str(SETTINGS), "STATE_DIRECTORY": "/var/lib/envoy2emon"}


def units(machine: Machine) -> list[str]:
    """Run the installed command as root, and return what it says of the units."""
    machine.run("journalctl", "--sync")
    done = machine.enter(str(PROGRAM / "bin" / "python"), "-m", "envoy2emon", "check", environ=INSTALLED)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == any(line.startswith("FAIL") for line in lines), done
    return [line for line in lines if line.split()[1] == "units"]


def test_what_systemd_tells() -> None:
    """A unit is reported as running, running with old settings, or failed with the reason from this run's journal."""
    with (
        Machine() as machine,
        machine.network(),
        SimulatedEnvoy(source=lambda: THREE_PHASE_EVENT, interval=0.2) as envoy,
        StandInEmonCMS() as emoncms,
    ):
        machine.install_program()
        settings = f"ENVOY_HOST={envoy.host}\nENVOY_PASSWORD={envoy.password}\nEMONCMS_URL={emoncms.url}\n"
        machine.write(SETTINGS, f"{settings}EMONCMS_APIKEY={emoncms.key}\n", "0600")
        machine.run("systemctl", "enable", "envoy2emon", "envoy2emon_inv")
        machine.run("systemctl", "start", "envoy2emon")
        emoncms.wait_for(lambda: len(emoncms.rows) > 0)

        machine.write(SETTINGS, f"{settings}EMONCMS_APIKEY=\n", "0600")
        machine.enter("systemctl", "start", "envoy2emon_inv")
        wait_for("the unit to fail", lambda: machine.show("envoy2emon_inv", "ActiveState") == "failed")
        machine.write(SETTINGS, f"{settings}EMONCMS_APIKEY={emoncms.key}\n", "0600")
        machine.run("touch", "--date=1 minute", str(SETTINGS))  # systemd reports whole seconds
        running, failed = units(machine)
        assert running.startswith("warn  units      envoy2emon runs: ")
        assert running.endswith("The settings have changed since it started: sudo systemctl restart envoy2emon")
        assert failed.startswith(
            "FAIL  units      envoy2emon_inv has failed (exit-code, exit status 78); last trouble,"
        )
        assert "EMONCMS_APIKEY is not set" in failed
        assert failed.endswith("Fix that, then: sudo systemctl restart envoy2emon_inv")

        machine.run("touch", str(SETTINGS))
        machine.run("systemctl", "restart", "envoy2emon_inv")
        emoncms.wait_for(lambda: any(row.node == "Envoy-S-inverters" for row in emoncms.rows))
        _, running = units(machine)
        assert running.startswith("ok    units      envoy2emon_inv runs: 12 inverters")
        assert "last trouble" not in running
