"""The stand-in for EmonCMS is like EmonCMS: where there is a real one, it has to answer as the stand-in does."""

import json
import time
from urllib.parse import urlencode

import pytest
import requests

from envoy2emon.demo.account import KWH_GAP
from envoy2emon.demo.emoncms import Answer, Answers, AnswersLate, Cuts, Dies, HoldsUp, StandInEmonCMS
from tests.emoncms import AnyEmonCMS

BAD_NODE = '{"success": false, "message": "Format error, node must not be an object"}'


def test_rows_are_applied_in_order(any_emoncms: AnyEmonCMS) -> None:
    """The last row given wins, whatever its date; a row that is too short is skipped, a bad one ends the rows."""
    node = any_emoncms.node
    assert any_emoncms.bulk("[[0]]", time=0) == (200, "ok")
    assert json.loads(any_emoncms.ask("input/get", node=node)[1]) == "Node does not exist"
    good = [[100, node, {"a": 1, "b": 0.5}], [0, node], [120, node, {"a": 2}], [110, node, {"a": -3.25}]]
    assert any_emoncms.bulk([*good, [0, {}, {"a": 4}], [130, node, {"a": 5}]], time=0) == (200, BAD_NODE)
    assert any_emoncms.read_inputs(node) == {"a": (110, -3.25), "b": (100, 0.5)}


def test_rows_without_a_date_of_their_own(any_emoncms: AnyEmonCMS) -> None:
    """A row's age counts from the time at which it was sent; what the forum scripts post is dated when it arrives."""
    node, now = any_emoncms.node, int(time.time())
    assert any_emoncms.bulk([[-5, node, {"a": 1}]], sentat=60) == (200, "ok")
    assert any_emoncms.ask("input/post", {"node": node, "fulljson": '{"b":1}'}) == (200, '{"success": true}')
    dates = {name: date - now for name, (date, _) in any_emoncms.read_inputs(node).items()}
    assert -65 <= dates["a"] <= -62
    assert 0 <= dates["b"] <= 3


def test_names_and_values(any_emoncms: AnyEmonCMS) -> None:
    """Names lose all but letters, digits, `_`, `-`, `.` and space; backslashes are deleted; non-numbers become 0."""
    node = any_emoncms.node
    data = f'[[0,"{node[:2]}/:{node[2:]}",7,null,{{"a:b_c":1,"\\u00e9 x.y-z":2,"text":"x","none":null}}]]'
    assert any_emoncms.bulk(data) == (200, "ok")
    values = {name: value for name, (_, value) in any_emoncms.read_inputs(node).items()}
    assert values == {"1": 7, "2": 0, "ab_c": 1, "u00e9 x.y-z": 2, "text": 0, "none": 0}


def test_the_key(any_emoncms: AnyEmonCMS) -> None:
    """The key may be in the query, the form or the header; without one a post gets an empty answer, not a refusal."""
    key, row = any_emoncms.key, {"data": json.dumps([[0, any_emoncms.node, {"a": 1}]]), "time": 0}
    assert any_emoncms.ask("input/bulk", row) == (200, "ok")
    assert any_emoncms.ask("input/bulk", row | {"apikey": key}, key=None) == (200, "ok")
    assert any_emoncms.ask("input/bulk", row, key=None, apikey=key) == (200, "ok")
    assert any_emoncms.ask("input/bulk", row, key=None) == (200, "")
    assert any_emoncms.ask("input/bulk", row, key=f"{key.upper()}g") == (401, "Invalid API key")


def test_questions_without_a_key(any_emoncms: AnyEmonCMS) -> None:
    """`version` needs no key but refuses a wrong one; without a key others answer false in JSON, or a login page."""
    assert any_emoncms.ask("version", key=None)[1].startswith("11.")
    assert any_emoncms.ask("version", key="bad") == (401, "Invalid API key")
    assert any_emoncms.ask("input/get.json", key=None) == (200, "false")
    status, page = any_emoncms.ask("input/get", key=None)
    assert (status, page.startswith("<"), "login" in page) == (200, True, True)
    assert any_emoncms.ask("input/nonsense.json") == (200, "false")


@pytest.mark.parametrize(
    ("seconds", "kwh"),
    [
        ([*range(0, 660, 60), 660], 0.66),
        ([0, 660, *range(60, 660, 60)], 1.2),  # live data first
        ([*range(0, 660, 60), 660, 660], 0.66),  # the newest row twice
        ([0, 7200, 7260], 0.06),  # a gap
    ],
)
def test_energy(any_emoncms: AnyEmonCMS, seconds: list[int], kwh: float) -> None:
    """`power to kWh` is exact for rows in order of date, and counts energy again where dates go back."""
    node, start = any_emoncms.node, 1_700_000_000
    any_emoncms.bulk([[start - 2 * KWH_GAP, node, {"a": 0}]], time=0)
    with any_emoncms.counting("a") as counted:
        any_emoncms.bulk([[start + second, node, {"a": 3600}] for second in seconds], time=0)
        assert counted() == pytest.approx(kwh, abs=1e-12)


def posted(emoncms: StandInEmonCMS, *dates: int) -> Answer | None:
    """Return the answer to a post of 3600 W at these dates, None if the connection is cut."""
    rows = json.dumps([[date, "n", {"a": 3600}] for date in dates])
    return emoncms.answer("/emoncms/input/bulk?" + urlencode({"data": rows, "time": 0, "apikey": emoncms.key}))


@pytest.mark.parametrize(
    ("fault", "status", "shown"),
    [(Answers(500, applied=2), 500, 110), (Cuts(applied=2), None, 110), (Dies(row=2), 502, 120)],
)
def test_a_post_that_fails_halfway(
    emoncms: StandInEmonCMS, fault: Answers | Cuts | Dies, status: int | None, shown: int
) -> None:
    """Rows before the failure are applied; that in which PHP dies is shown, but only a repetition counts its energy."""
    emoncms.fail_next(fault)
    answer = posted(emoncms, 100, 110, 120, 130)
    assert (answer and answer.status) == status
    assert emoncms.account.nodes["n"]["a"].time == shown
    assert (len(emoncms.rows), emoncms.account.kwh("n", "a")) == (2, 0.01)
    assert posted(emoncms, 120, 130) == Answer(200, "ok")
    assert (len(emoncms.rows), emoncms.account.kwh("n", "a")) == (4, 0.03)


@pytest.mark.parametrize(("fault", "before"), [(HoldsUp(), 0), (AnswersLate(), 1)])
def test_a_client_that_leaves_stops_nothing(emoncms: StandInEmonCMS, fault: HoldsUp | AnswersLate, before: int) -> None:
    """A post is applied once, by release() at the latest, whether its client waits or not."""
    emoncms.fail_next(fault)
    with pytest.raises(requests.Timeout):
        requests.post(f"{emoncms.url}/input/bulk?apikey={emoncms.key}", {"data": '[[0,"n",{"a":1}]]'}, timeout=0.1)
    assert len(emoncms.rows) == before
    emoncms.release()
    emoncms.wait_for(lambda: len(emoncms.rows) == 1)
