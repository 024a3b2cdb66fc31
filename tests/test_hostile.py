"""Hostile and spoilt answers, on the gateway's side and on EmonCMS's, end no daemon process."""

import socket
from itertools import cycle
from pathlib import Path

import pytest

from tests import fuzz
from tests.conftest import StartDaemon, until
from tests.daemons import altered
from tests.gateways import Scripted
from tests.test_gateway_client import ANSWERS

IMPATIENT = (
    "import envoy2emon.outage as outage\nfails = outage.Outage.fails\n"
    "outage.Outage.fails = lambda self, reason: min(0.01, fails(self, reason))\n"
)


def test_no_answer_ends_a_daemon(daemon: StartDaemon, tmp_path: Path) -> None:
    """No broken head, length, chunk or body ends a daemon, whether the gateway or EmonCMS gives it."""
    answers, given = cycle(answer for answer, _ in ANSWERS.values()), []

    def answer(client: socket.socket) -> None:
        given.append(next(answers))
        client.sendall(given[-1])

    with Scripted(answer) as both:
        environment = altered(tmp_path / "impatient", IMPATIENT)
        daemons = [
            daemon(name, environment, ENVOY_HOST=both.url, EMONCMS_URL=both.url, INVERTERS_INTERVAL_S=1)
            for name in ("stream", "inverters")
        ]
        until(lambda: len(given) > 20 * len(ANSWERS), 20)
        assert [one.terminate() for one in daemons] == [0, 0]
    assert not [line for one in daemons for line in one.lines if "Traceback" in line or "CRITICAL" in line]


def test_spoilt_answers_end_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes cut, doubled and invented on both sides: no traceback, no exit, no date that goes back, and rows go on."""
    assert fuzz.run(0.15, seed=1) == 0, capsys.readouterr().out
