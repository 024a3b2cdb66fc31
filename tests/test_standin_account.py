"""What the stand-in does with requests and rows, over real sockets: as EmonCMS 11.16.8 when measured."""

import json
import time
import zlib
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from envoy2emon.demo.emoncms import StandInEmonCMS
from envoy2emon.demo.account import MAX_BODY
from tests.emoncms import ask, bulk, connect

ROWS = [[-2, "n", {"a": 1}], [-1, "n", {"a": 2}], [0, "n", {"a": 3}]]
REFUSED = '{"success": false, "message": "%s"}'
NOT_JSON = REFUSED % "Format error, json string supplied is not valid"


def test_bulk(emoncms: StandInEmonCMS) -> None:
    """Rows are applied in order, in the digits in which they came, and `ok` is said."""
    assert bulk(emoncms, '[[-1,"n",{"a":0.10,"b":-0.0}],[0,"n",{"a":240.500}]]', sentat=0) == (200, "ok")
    assert [{k: str(v) for k, v in row.inputs.items()} for row in emoncms.rows] == [
        {"a": "0.10", "b": "-0.0"},
        {"a": "240.500"},
    ]
    assert emoncms.rows[1].time - emoncms.rows[0].time == 1
    assert time.monotonic() - emoncms.rows[0].arrived < 10


@pytest.mark.parametrize(
    ("params", "date"),
    [
        ({"sentat": 60}, 1_000_000 - 60 - 5),
        ({"offset": -10}, 1_000_000 + 10 - 5),
        ({"time": 1387730127}, 1387730127 - 5),
        ({"cb": 0}, 1_000_000),
    ],
)
def test_reference(emoncms: StandInEmonCMS, params: dict[str, int], date: int) -> None:
    """A row's time is the reference plus t: by sentat, by offset, by time, or so that the last row is of now."""
    emoncms.now = lambda: 1_000_000.7  # type: ignore[method-assign]
    assert bulk(emoncms, [[-5, "n", {"a": 1}]], **params) == (200, "ok")
    assert emoncms.rows[0].time == date


def test_compressed(emoncms: StandInEmonCMS) -> None:
    """With cb=1 the body is the rows as a raw zlib stream; anything else in it is a format error."""
    for body, words in ((zlib.compress(json.dumps(ROWS).encode()), "ok"), (b"?", NOT_JSON)):
        connection = connect(emoncms)
        headers = {"Authorization": "Bearer writekey"}
        connection.request("POST", "/emoncms/input/bulk?cb=1&sentat=0", body, headers)
        assert connection.getresponse().read().decode() == words
    assert len(emoncms.rows) == 3


@pytest.mark.parametrize(
    ("query", "form", "header", "answer"),
    [
        ("writekey", None, None, "ok"),
        (None, "writekey", None, "ok"),
        (None, None, "writekey", "ok"),
        ("bad", None, "writekey", "Invalid API key"),
        (None, "bad", "writekey", "Invalid API key"),
        ("", None, "writekey", ""),
        (None, None, None, ""),
        (None, None, "readkey", ""),
        (None, None, "WRITEKEY", "Invalid API key"),
    ],
)
def test_key(emoncms: StandInEmonCMS, query: str | None, form: str | None, header: str | None, answer: str) -> None:
    """The key is taken from the query, then the form, then the header; without write access the answer is empty."""
    path = "/emoncms/input/bulk" + ("" if query is None else f"?apikey={query}")
    params = {"data": json.dumps(ROWS), "sentat": "0"} | ({} if form is None else {"apikey": form})
    assert ask(emoncms, path, params, header) == (401 if answer.startswith("Invalid") else 200, answer)
    assert len(emoncms.rows) == (3 if answer == "ok" else 0)


@pytest.mark.parametrize("data", ["", "{}", "[]", "null", "[[0,'n',1]]", '[[0,"n",{"a":NaN}]]', "[" * 100_000])
def test_no_rows(emoncms: StandInEmonCMS, data: str) -> None:
    """What is no JSON list of rows rejects all."""
    assert bulk(emoncms, data, sentat=0) == (200, NOT_JSON)
    assert not emoncms.rows


def test_too_long(emoncms: StandInEmonCMS) -> None:
    """A form beyond PHP's limit is as good as empty."""
    assert bulk(emoncms, json.dumps(ROWS) + " " * MAX_BODY, sentat=0) == (200, NOT_JSON)


def test_bad_row_in_the_middle(emoncms: StandInEmonCMS) -> None:
    """Rows before a bad one stay applied, those after it are not, and no row number is given."""
    rows = [*ROWS, [0, {}, {"a": 4}], [0, "n", {"a": 5}]]
    assert bulk(emoncms, rows) == (200, REFUSED % "Format error, node must not be an object")
    assert [row.inputs["a"] for row in emoncms.rows] == [1, 2, 3]


def test_empty_last_row(emoncms: StandInEmonCMS) -> None:
    """An empty last row rejects all, short ones before it are passed over."""
    words = "Format error, last item in bulk data does not contain any data"
    assert bulk(emoncms, [*ROWS, []]) == (200, REFUSED % words)
    assert bulk(emoncms, [[0, "n"], [0, "n", 7, None, {"b": "x"}]]) == (200, "ok")
    assert [row.inputs for row in emoncms.rows] == [{"1": 7, "2": 0, "b": 0}]


def test_reject(emoncms: StandInEmonCMS) -> None:
    """A row for which the predicate holds is a format error."""
    emoncms.account.reject = lambda node, inputs: node == "n" and inputs["a"] == 2
    assert bulk(emoncms, ROWS)[1].startswith('{"success": false')
    assert len(emoncms.rows) == 1


def test_node_limit(emoncms: StandInEmonCMS) -> None:
    """The 33rd node is refused."""
    rows = [[0, f"n{number}", {"a": 1}] for number in range(33)]
    assert "Reached the maximal allowed number" in bulk(emoncms, rows)[1]
    assert len(emoncms.rows) == 32


def test_names(emoncms: StandInEmonCMS) -> None:
    """Characters outside letters, digits, `_`, `-`, `.` and space are deleted, and backslashes stripped."""
    assert bulk(emoncms, [[0, "No/de-1.é x", {"a:b_c": 1}]]) == (200, "ok")
    assert emoncms.rows[0].node == "Node-1.u00e9 x"
    assert list(emoncms.rows[0].inputs) == ["ab_c"]


def test_post(emoncms: StandInEmonCMS) -> None:
    """`input/post` takes fulljson, null as 0, and a time beside it or in it."""
    for form, date in (({"fulljson": '{"a":1,"time":50}'}, 50), ({"fulljson": '{"a":null}', "time": 60}, 60)):
        assert ask(emoncms, "/emoncms/input/post", {"node": "n", **form}) == (200, '{"success": true}')
        assert emoncms.rows[-1].time == date
    assert [row.inputs for row in emoncms.rows] == [{"a": 1}, {"a": 0}]
    words = REFUSED % "Input must be a JSON object"
    assert ask(emoncms, "/emoncms/input/post", {"node": "n", "fulljson": "[1]"}) == (200, words)
    assert ask(emoncms, "/emoncms/input/post?node=m&fulljson=%7B%22a%22:2%7D")[1] == '{"success": true}'


def test_get(emoncms: StandInEmonCMS) -> None:
    """`input/get` gives each input's last value and date, also to the read key, and says what does not exist."""
    bulk(emoncms, [[100, "n", {"a": 1.5}]], time=0)
    one = {"time": 100, "value": 1.5, "processList": ""}
    answers = {
        "/emoncms/input/get": {"n": {"a": one}},
        "/emoncms/input/get.json?node=n": {"a": one},
        "/emoncms/input/get?node=n&name=a": one,
        "/emoncms/input/get?node=n&name=b": "Node variable does not exist",
        "/emoncms/input/get?node=m": "Node does not exist",
        "/emoncms/input/get?node=m&name=a": "Node does not exist",
        "/emoncms/input/list": [{"id": 1, "nodeid": "n", "name": "a", **one}],
        "/emoncms/input/nonsense": False,
    }
    for path, answer in answers.items():
        status, body = ask(emoncms, path, key="readkey")
        assert (status, json.loads(body)) == (200, answer)
    assert ask(emoncms, "/emoncms/input/get", key=None) == (200, "false")


def test_clock(emoncms: StandInEmonCMS) -> None:
    """The server's clock dates rows and answers, and may be set apart from ours."""
    emoncms.clock_offset = -86_400
    connection = connect(emoncms)
    connection.request("GET", "/emoncms/version")
    shown = parsedate_to_datetime(connection.getresponse().headers["Date"]).timestamp()
    bulk(emoncms, ROWS)
    for date in (shown, emoncms.rows[-1].time):
        assert abs(date - (time.time() - 86_400)) < 5


def test_energy(emoncms: StandInEmonCMS) -> None:
    """`power to kWh` as measured: 0.66 kWh in order; 1.2 with live data first; doubled by a batch sent twice."""
    backlog = [[60 * n, {"a": 3600}] for n in range(1, 11)]

    def kwh(node: str, rows: list[list[Any]]) -> float:
        bulk(emoncms, [[date, node, inputs] for date, inputs in rows], time=0)
        return round(emoncms.account.nodes[node]["a"].kwh, 6)

    first, live = [0, {"a": 3600}], [660, {"a": 3600}]
    assert kwh("ordered", [first, *backlog, live]) == 0.66
    assert kwh("live first", [first, live, *backlog]) == 1.2
    assert kwh("twice", [first, *backlog]) * 2 == kwh("twice", [first, *backlog])
    assert kwh("newest again", [first, *backlog, live, live]) == 0.66


def test_keep() -> None:
    """With `keep` only the newest rows are held; all are counted."""
    with StandInEmonCMS(keep=2) as emoncms:
        bulk(emoncms, ROWS)
        assert [row.inputs["a"] for row in emoncms.rows] == [2, 3]
        assert emoncms.account.applied == 3
