"""From the inverters' reports to EmonCMS's inputs: what is news, and how gently the gateway is asked."""

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from envoy2emon.connection import Refused, StreamLost
from envoy2emon.envoy import Envoy
from envoy2emon.inverters import Poller
from envoy2emon.outage import REFUSED_WAIT_S
from envoy2emon.readings import InverterReport
from envoy2emon.simulator import SimulatedEnvoy
from envoy2emon.simulator_gate import INVERTERS
from envoy2emon.simulator_port import Answer
from envoy2emon.simulator_site import inverters
from envoy2emon.standin import FaultKind, StandInEmonCMS
from tests import fixtures
from tests.conftest import StartDaemon
