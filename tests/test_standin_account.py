"""How EmonCMS handles requests and rows; where there is a real EmonCMS, it has to answer as the stand-in does."""

import json
import time
from typing import Any

import pytest

from envoy2emon.demo.account import KWH_GAP, MAX_NODES
from envoy2emon.demo.emoncms import StandInEmonCMS
from tests.emoncms import AnyEmonCMS, bulk, client

REFUSED = '{"success": false, "message": "%s"}'
NOT_JSON = REFUSED % "Format error, json string supplied is not valid"
NO_LAST_ROW = REFUSED % "Format error, last item in bulk data does not contain any data"
LOG = [[100, "n", {"a": 3600}]]


def values(any_emoncms: AnyEmonCMS) -> dict[str, float]:
    """Return the values of the test's node."""
    return {name: value for name, (_, value) in any_emoncms.read_inputs(any_emoncms.node).items()}


def dates(any_emoncms: AnyEmonCMS) -> dict[str, int]:
    """Return the dates of the test's node."""
    return {name: date for name, (date, _) in any_emoncms.read_inputs(any_emoncms.node).items()}


def test_rows_are_applied_in_order(any_emoncms: AnyEmonCMS) -> None:
    """The last row given wins, even if its date is before that of others."""
    node = any_emoncms.node
    rows = [[100, node, {"a": 1, "b": 0.5}], [120, node, {"a": 2}], [110, node, {"a": -3.25}]]
    assert any_emoncms.bulk(rows, time=0) == (200, "ok")
    assert any_emoncms.read_inputs(node) == {"a": (110, -3.25), "b": (100, 0.5)}


@pytest.mark.parametrize(
    ("params", "least"),
    [({"sentat": 60}, -65), ({"time": 1387730127}, 1387730122), ({"fulljson": 1}, 0)],
)
def test_reference(any_emoncms: AnyEmonCMS, params: dict[str, int], least: int) -> None:
    """A row's date is t plus a reference: now - sentat, `time`, or the one that dates the last row now."""
    now = 0 if "time" in params else int(time.time())
    words = '{"success": true}' if "fulljson" in params else "ok"
    assert any_emoncms.bulk([[-5, any_emoncms.node, {"a": 1}]], **params) == (200, words)
    assert 0 <= dates(any_emoncms)["a"] - now - least <= 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", NOT_JSON),
        ("[]", NOT_JSON),
        ("null", NOT_JSON),
        ("[[0,'n',1]]", NOT_JSON),
        ('[[0,"n",{"a":NaN}]]', NOT_JSON),
        ("[" * 100_000, NOT_JSON),
        ('[[0,"n",{"a":1}],[]]', NO_LAST_ROW),
        ('[[0,"n",{"a":1}],7]', NO_LAST_ROW),
        ('[[0,{},{"a":1}]]', REFUSED % "Format error, node must not be an object"),
    ],
)
def test_what_is_no_list_of_rows(any_emoncms: AnyEmonCMS, data: str, words: str) -> None:
    """Data that is not a list of rows is refused with status 200, and nothing is applied."""
    assert any_emoncms.bulk(data.replace("n", any_emoncms.node) if "n" in data[:6] else data, sentat=0) == (200, words)
    assert values(any_emoncms) == {}


def test_a_bad_row_in_the_middle(any_emoncms: AnyEmonCMS) -> None:
    """Rows before a bad one stay applied, those after it are not, and no row number is given."""
    node = any_emoncms.node
    rows: list[object] = [[0, node, {"a": 1}], [0, node], [0, {}, {"a": 2}], [0, node, {"a": 3}]]
    assert any_emoncms.bulk(rows) == (200, REFUSED % "Format error, node must not be an object")
    assert values(any_emoncms) == {"a": 1}


def test_names_and_values(any_emoncms: AnyEmonCMS) -> None:
    """Names lose all but letters, digits, `_`, `-`, `.` and space; backslashes are deleted; non-numbers become 0."""
    node = any_emoncms.node
    data = f'[[0,"{node[:2]}/:{node[2:]}",7,null,{{"a:b_c":1,"\\u00e9 x.y-z":2,"text":"x","none":null}}]]'
    assert any_emoncms.bulk(data, sentat=0) == (200, "ok")
    assert values(any_emoncms) == {"1": 7, "2": 0, "ab_c": 1, "u00e9 x.y-z": 2, "text": 0, "none": 0}


@pytest.mark.parametrize(
    ("form", "date"), [({"fulljson": '{"a":1,"time":50}'}, 50), ({"fulljson": '{"a":1}', "time": 60}, 60)]
)
def test_post(any_emoncms: AnyEmonCMS, form: dict[str, Any], date: int) -> None:
    """`input/post` accepts fulljson, with a time beside it or in it."""
    assert any_emoncms.ask("input/post", {"node": any_emoncms.node, **form}) == (200, '{"success": true}')
    assert any_emoncms.read_inputs(any_emoncms.node) == {"a": (date, 1)}
    bad = any_emoncms.ask("input/post", {"node": any_emoncms.node, "fulljson": "{"})
    assert bad == (200, REFUSED % "Input in not a valid JSON object")


def test_the_key(any_emoncms: AnyEmonCMS) -> None:
    """The key is taken from the query, then the form, then the header; a post without one gets an empty answer."""
    key, rows = any_emoncms.key, {"data": json.dumps([[0, any_emoncms.node, {"a": 1}]]), "sentat": "0"}

    def post(query: str | None, form: str | None, header: str | None) -> tuple[int, str]:
        asked = {} if query is None else {"apikey": query}
        return any_emoncms.ask("input/bulk", rows | ({} if form is None else {"apikey": form}), key=header, **asked)

    assert post(key, None, None) == post(None, key, None) == post(None, None, key) == (200, "ok")
    for bad in (post("bad", None, key), post(None, "bad", key), post(None, None, key.upper() + "g")):
        assert bad == (401, "Invalid API key")
    assert post(None, None, None) == post("", None, key) == (200, "")


def test_get(any_emoncms: AnyEmonCMS) -> None:
    """`input/get` gives each input's last value and date, and says what does not exist."""
    node = any_emoncms.node
    any_emoncms.bulk([[100, node, {"a": 1.5}]], time=0)
    one = {"time": 100, "value": 1.5, "processList": ""}
    for query, answer in {
        f"?node={node}": {"a": one},
        f"?node={node}x": "Node does not exist",
    }.items():
        status, body = any_emoncms.ask(f"input/get{query}")
        assert (status, json.loads(body)) == (200, answer)


def test_questions_without_a_key(any_emoncms: AnyEmonCMS) -> None:
    """`version` needs no key but refuses a wrong one; without a key others answer false in JSON, or a login page."""
    assert any_emoncms.ask("version", key=None)[1].startswith("11.")
    assert any_emoncms.ask("version", key="bad") == (401, "Invalid API key")
    assert any_emoncms.ask("input/get.json", key=None) == (200, "false")
    status, page = any_emoncms.ask("input/get", key=None)
    assert (status, page.startswith("<"), "login" in page) == (200, True, True)
    assert any_emoncms.ask("input/nonsense.json") == (200, "false")


def test_a_path_that_is_not_there(emoncms: StandInEmonCMS) -> None:
    """Outside the base path everything is 404; the read key cannot write."""
    assert AnyEmonCMS(emoncms.url.removesuffix("emoncms") + "emon", "", "").ask("version", key=None)[0] == 404
    assert client(emoncms).ask("input/bulk", {"data": json.dumps(LOG), "time": 0}, key=emoncms.read_key) == (200, "")
    assert not emoncms.rows


def test_digits(emoncms: StandInEmonCMS) -> None:
    """The stand-in keeps the newest `keep` rows, in the digits in which they came, and counts all."""
    assert bulk(emoncms, '[[-1,"n",{"a":0.10,"b":-0.0}],[0,"n",{"a":240.500}]]', sentat=0) == (200, "ok")
    assert [{k: str(v) for k, v in row.inputs.items()} for row in emoncms.rows] == [
        {"a": "0.10", "b": "-0.0"},
        {"a": "240.500"},
    ]
    with StandInEmonCMS(keep=2) as short:
        bulk(short, LOG * 3, time=0)
        assert (len(short.rows), short.account.applied) == (2, 3)


def test_limits_and_old_words(emoncms: StandInEmonCMS) -> None:
    """The 33rd node is refused, and so are rows that the test chooses, on request in plain text as in 2016."""
    words = (
        f"Error: Reached the maximal allowed number of different NodeIds, limit is {MAX_NODES}. Node 'n32' was ignored."
    )
    assert bulk(emoncms, [[0, f"n{number}", {"a": 1}] for number in range(33)]) == (200, REFUSED % words)
    assert len(emoncms.rows) == 32
    emoncms.account.reject = lambda node, inputs: node == "n1" and inputs["a"] == 2
    emoncms.account.plain_errors = True
    assert bulk(emoncms, [[0, "n1", {"a": 2}]]) == (200, "Format error, this row is rejected")


def test_clocks(emoncms: StandInEmonCMS) -> None:
    """Rows are dated by the server's clock, which may differ from ours; a restarted Redis has no dates."""
    with StandInEmonCMS(clock=lambda: 1_000_000.7) as other:
        assert bulk(other, [[-5, "n", {"a": 1}]]) == (200, "ok")
        assert client(other).read_inputs("n") == {"a": (999_995, 1)}
        assert other.now() == 1_000_000.7
    bulk(emoncms, LOG, time=0)
    emoncms.account.restart_redis()
    assert json.loads(client(emoncms).ask("input/get", node="n")[1])["a"] == {
        "time": None,
        "value": None,
        "processList": "",
    }


@pytest.mark.parametrize(
    ("seconds", "kwh"),
    [
        ([*range(0, 660, 60), 660], 0.66),
        ([0, 660, *range(60, 660, 60)], 1.2),  # live data first
        ([*range(0, 660, 60)] * 2, 1.2),  # a batch twice
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
