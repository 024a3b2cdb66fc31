"""What the tests share: a simulated gateway, a stand-in for EmonCMS, and daemons set up between them."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from envoy2emon import words
from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.gateway import SimulatedEnvoy
from tests.certificates import Certificate, self_signed
from tests.checks import Check
from tests.daemons import Daemon, skip_or_fail
from tests.emoncms import AnyEmonCMS
from tests.enlighten import Enlighten

StartDaemon = Callable[..., Daemon]

# Each run uses the same examples, so its result depends on the code only; `--hypothesis-profile=other` finds others.
# A busy computer has no deadlines, and the fixtures that the tests share between examples keep nothing of them.
settings.register_profile("other", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("same", settings.get_profile("other"), derandomize=True)
settings.load_profile("same")

# One worker runs a whole file. If these began last, one worker would be busy alone at the end.
LONGEST = ("test_systemd", "test_upgrade", "test_install", "test_outages", "test_live_daemon", "test_hostile")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: LONGEST.index(stem) if (stem := item.path.stem) in LONGEST else len(LONGEST))


def until(holds: Callable[[], bool], limit: float = 10.0) -> None:
    """Poll until a condition holds, for conditions that nothing signals."""
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, f"not within {limit} s"
        Event().wait(0.005)


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the secrets of earlier tests, because clean() would replace them in this test's texts."""
    monkeypatch.setattr(words, "secrets", set())


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return one gateway's certificate."""
    return self_signed("122112345678", tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def emoncms() -> Iterator[StandInEmonCMS]:
    """Serve a stand-in for EmonCMS."""
    with StandInEmonCMS() as emoncms:
        yield emoncms


@pytest.fixture
def envoy() -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 with three phases."""
    with SimulatedEnvoy() as envoy:
        yield envoy


@pytest.fixture
def check(tmp_path: Path, envoy: SimulatedEnvoy, emoncms: StandInEmonCMS) -> Check:
    """Return a check of the simulated gateway and EmonCMS."""
    return Check(tmp_path, envoy, emoncms)


@pytest.fixture
def enlighten() -> Iterator[Enlighten]:
    """Serve a stand-in for Enphase's two services."""
    with Enlighten() as enlighten:
        yield enlighten


@pytest.fixture
def daemon(tmp_path: Path, emoncms: StandInEmonCMS, envoy: SimulatedEnvoy) -> Iterator[StartDaemon]:
    """Start daemons by `daemon("stream", NAME=value)`, between the simulators unless a setting says otherwise.

    A setting that is None is left out. The same command started again uses the same directory.
    """
    settings = envoy.settings() | emoncms.settings()
    with ExitStack() as stack:

        def start(command: str, environment: Mapping[str, str] | None = None, **changes: object) -> Daemon:
            made = Daemon(command, tmp_path / command, settings | changes)
            made.environment |= environment or {}
            return stack.enter_context(made)

        yield start


@pytest.fixture(params=["stand-in", "real"])
def any_emoncms(request: pytest.FixtureRequest) -> Iterator[AnyEmonCMS]:
    """Give the stand-in, then the real EmonCMS that $EMONCMS_TEST_URL and $EMONCMS_TEST_APIKEY name, if they do."""
    if request.param == "stand-in":
        stand_in = request.getfixturevalue("emoncms")
        yield AnyEmonCMS(stand_in.url, stand_in.key, "Envoy-S", stand_in.account)
        return
    url, key = os.environ.get("EMONCMS_TEST_URL"), os.environ.get("EMONCMS_TEST_APIKEY")
    if not (url and key):
        skip_or_fail("EMONCMS_TEST_URL and EMONCMS_TEST_APIKEY name no EmonCMS", "REQUIRE_EMONCMS")
    emoncms = AnyEmonCMS(url.rstrip("/"), key, f"test-{uuid4().hex[:8]}")
    yield emoncms
    emoncms.delete_node(emoncms.node)
