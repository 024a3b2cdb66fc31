"""The main job, end to end: against the stand-in, and against a real EmonCMS where $EMONCMS_TEST_URL names one."""

import time
from urllib.parse import urlsplit

import pytest

from envoy2emon.demo.gateway import SimulatedEnvoy
from envoy2emon.demo.site import THREE_PHASE_EVENT
from tests.conftest import StartDaemon
from tests.emoncms import AnyEmonCMS
from tests.faultproxy import FaultProxy
from tests.test_stream import inputs_of, numbered


def test_the_meters(daemon: StartDaemon, envoy: SimulatedEnvoy, any_emoncms: AnyEmonCMS) -> None:
    """An event arrives as 36 inputs with the gateway's values, dated now; after an outage the newest arrives last."""
    parts, node = urlsplit(any_emoncms.url), any_emoncms.node
    with FaultProxy(parts.hostname or "", parts.port or 80) as proxy:
        url = f"http://{proxy.host}:{proxy.port}{parts.path}"
        stream = daemon("stream", EMONCMS_URL=url, EMONCMS_APIKEY=any_emoncms.key, EMONCMS_NODE=node)
        envoy.wait_for_stream()
        envoy.emit(THREE_PHASE_EVENT)
        inputs = any_emoncms.wait_for_inputs(node, lambda inputs: len(inputs) == 36)
        expected = {name: float(digits) for name, digits in inputs_of(THREE_PHASE_EVENT).items()}
        assert {name: value for name, (_, value) in inputs.items()} == pytest.approx(expected, rel=1e-5)
        assert all(abs(date - time.time()) <= 5 for date, _ in inputs.values())
        proxy.refuse()
        for number in range(5):
            envoy.emit(numbered(number))
        stream.wait_for_line("WARNING EmonCMS: ")
        proxy.pass_through()
        any_emoncms.wait_for_inputs(node, lambda inputs: inputs["prod_ph-a_wNow"][1] == 4.5)
        stream.wait_for_line(r"INFO EmonCMS: back after .*; \d+ rows waited")
        assert stream.terminate() == 0


def test_the_inverters(daemon: StartDaemon, envoy: SimulatedEnvoy, any_emoncms: AnyEmonCMS) -> None:
    """Each inverter's report arrives with its own date."""
    url, key, node = any_emoncms.url, any_emoncms.key, any_emoncms.node
    daemon("inverters", EMONCMS_URL=url, EMONCMS_APIKEY=key, EMONCMS_INVERTERS_NODE=node)
    expected = {f"{unit['serialNumber']}_wNow": unit for unit in envoy.inverters}
    inputs = any_emoncms.wait_for_inputs(node, lambda inputs: expected.keys() <= inputs.keys())
    for name, unit in expected.items():
        assert inputs[name] == (unit["lastReportDate"], unit["lastReportWatts"])
