"""What `envoy2emon check` says of EmonCMS: the questions alone, asked of the stand-in."""

from collections.abc import Callable
from pathlib import Path

import pytest

from envoy2emon import config
from envoy2emon.check import emoncms as check_emoncms
from envoy2emon.check.verdict import Verdict
from envoy2emon.emoncms.client import EmonCMS
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.emoncms import FATAL_ERROR, bulk

Ask = Callable[[], list[Verdict]]
OLD = -900


@pytest.fixture
def ask(emoncms: StandInEmonCMS, tmp_path: Path) -> Ask:
    """Ask all of it."""
    environ = {"EMONCMS_URL": emoncms.url, "EMONCMS_APIKEY": emoncms.key}
    settings, _ = config.load(tmp_path / ".env", environ, required=False)
    return lambda: list(check_emoncms.ask(settings, {}))


@pytest.mark.parametrize(
    ("answer", "told", "cure"),
    [
        ((403, "Forbidden"), "answers 403 Forbidden", "a proxy in front of it, forbids this"),
        ((502, "Bad Gateway"), "answers 502 Bad Gateway", "Is its PHP or its database down?"),
        ((200, FATAL_ERROR), "Fatal error", "Is its PHP or its database down?"),
    ],
)
def test_a_post_that_fails(ask: Ask, emoncms: StandInEmonCMS, answer: tuple[int, str], told: str, cure: str) -> None:
    """A post that fails where reading works is EmonCMS's trouble, told with its cure, and says nothing of the key."""
    emoncms.fail_next(Fault(answer))
    last = ask()[-1]
    assert (last.word, last.subject) == ("FAIL", "EmonCMS")
    assert told in last.text
    assert cure in last.text
    assert "read key" not in last.text


def test_an_empty_answer_to_a_post(ask: Ask, emoncms: StandInEmonCMS) -> None:
    """An empty 200 where reading works is what the read key gets."""
    emoncms.fail_next(Fault((200, "")))
    (key,) = [verdict for verdict in ask() if verdict.subject == "key"]
    assert key.word == "FAIL"
    assert "is the read key, which cannot post" in key.text


def test_a_dead_stream_behind_another_sensor(ask: Ask, emoncms: StandInEmonCMS) -> None:
    """Another sensor's input in the meters' node hides neither that the stream's are old nor that there are none."""
    sensor = [0, "Envoy-S", {"temperature": 21, "net_power": 1}]
    bulk(emoncms, [sensor, [0, "Envoy-S-inverters", {"1_wNow": 1}]])
    none = ask()[-1]
    assert none.word == "warn"
    assert "none of envoy2emon's in node Envoy-S yet" in none.text
    bulk(emoncms, [[OLD, "Envoy-S", {"prod_ph-a_wNow": 1}], sensor])
    old = ask()[-1]
    assert old.word == "warn"
    assert "1 in node Envoy-S, the newest 15 min old" in old.text


def test_meters_without_inputs_beside_inverters(ask: Ask, emoncms: StandInEmonCMS) -> None:
    """Inverters that arrive do not make up for a stream that does not; a stream without inverters is well."""
    bulk(emoncms, [[0, "Envoy-S-inverters", {"1_wNow": 1, "1_wMax": 2, "battery": 3}]])
    assert ask()[-1].word == "warn"
    assert "2 in node Envoy-S-inverters," in ask()[-1].text
    emoncms.account.nodes.clear()
    bulk(emoncms, [[0, "Envoy-S", {"prod_ph-a_wNow": 1}]])
    assert ask()[-1].word == "ok"


def test_both_daemons_in_one_node(emoncms: StandInEmonCMS, tmp_path: Path) -> None:
    """Where both nodes are one, inverters are not taken for meters."""
    environ = {"EMONCMS_URL": emoncms.url, "EMONCMS_APIKEY": emoncms.key, "EMONCMS_INVERTERS_NODE": "Envoy-S"}
    settings, _ = config.load(tmp_path / ".env", environ, required=False)
    bulk(emoncms, [[OLD, "Envoy-S", {"prod_ph-a_wNow": 1}], [0, "Envoy-S", {"1_wNow": 1}]])
    last = list(check_emoncms.ask(settings, {}))[-1]
    assert last.word == "warn"
    assert last.text.startswith("1 in node Envoy-S, the newest 15 min old; 1 in node Envoy-S, the newest 0 s old")


def test_connections_are_closed(ask: Ask, emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that is opened is closed, an error or not."""
    closed: list[str] = []
    close = EmonCMS.close

    def note(self: EmonCMS) -> None:
        closed.append(self.url)
        close(self)

    monkeypatch.setattr(EmonCMS, "close", note)
    emoncms.fault = Fault((502, "Bad Gateway"))
    ask()
    assert emoncms.connections > 0
    assert len(closed) == emoncms.connections
