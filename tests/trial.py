"""What the soak and the fuzz share: both daemons between a simulated gateway and EmonCMS, each behind a proxy."""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.daemons import Daemon
from tests.faultproxy import FaultProxy
from tests.ledger import kwh_error

NODES = {"stream": "Envoy-S", "inverters": "Envoy-S-inverters"}
LARGEST_MEMORY = 64 * 1024 * 1024


class Trial:
    """The simulators, the proxies, the daemons by their commands, and the complaints about what they did."""

    def __init__(self, stack: ExitStack, emoncms: StandInEmonCMS, stream_timeout_s: int) -> None:
        self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.emoncms = stack.enter_context(emoncms)
        self.gateway = stack.enter_context(SimulatedEnvoy())
        self.to_emoncms = stack.enter_context(FaultProxy("127.0.0.1", urlsplit(emoncms.url).port or 0))
        self.to_gateway = stack.enter_context(FaultProxy(*self.gateway.address))
        settings = {
            "ENVOY_HOST": f"127.0.0.1:{self.to_gateway.port}",
            "ENVOY_PASSWORD": self.gateway.password,
            "EMONCMS_URL": f"http://127.0.0.1:{self.to_emoncms.port}/emoncms",
            "EMONCMS_APIKEY": emoncms.key,
            "STREAM_TIMEOUT_S": stream_timeout_s,
            "INVERTERS_INTERVAL_S": 1,
        }
        self.daemons = {name: Daemon(name, self.directory / name, settings) for name in NODES}
        for daemon in self.daemons.values():
            stack.callback(daemon.kill)
        self.complaints: list[str] = []
        self._memory = 0

    def start(self, name: str) -> None:
        """Start a daemon and wait until it is ready."""
        self.daemons[name].start().wait_for_notify("READY=1")

    def end(self, name: str, *, kill: bool = False) -> None:
        """Note a daemon's memory and end it; complain if it had ended by itself, or of an exit code or a traceback."""
        daemon = self.daemons[name]
        runs, code = daemon.process.poll() is None, 0
        if runs:
            self._memory = max(self._memory, daemon.memory()[1])
        if runs and kill:
            daemon.kill()
        else:
            code = daemon.terminate()
        if not runs or code or any("Traceback" in line for line in daemon.lines):
            how = "" if runs else "by itself "
            self.complaints.append(f"{name} ended {how}with exit code {code}: {daemon.lines[-20:]}")

    def report(self) -> int:
        """Print the energy's error, the largest memory and all complaints, and return the exit code, 0 for none."""
        error, mib = kwh_error(self.emoncms.account), self._memory / 2**20
        print(f"{'kWh error':<16}{error:>12.9f}\n{'largest memory':<16}{mib:>8.1f} MiB")
        if error:
            self.complaints.append(f"the energy is wrong by {error} kWh")
        if self._memory > LARGEST_MEMORY:
            self.complaints.append(f"a daemon takes {mib:.1f} MiB")
        for complaint in self.complaints:
            print(f"BROKEN: {complaint}")
        print("a promise is BROKEN" if self.complaints else "every promise is kept")
        return 1 if self.complaints else 0


def arguments(program: str, description: str) -> argparse.Namespace:
    """Return the command line's --minutes and --seed."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()
