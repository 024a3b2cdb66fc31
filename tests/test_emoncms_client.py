"""EmonCMS over HTTP: what its answers mean, and what they say about its clock."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from envoy2emon.demo.emoncms import (
    MARIADB_DOWN,
    PHP_DOWN,
    Answers,
    Cuts,
    DropsAuthorization,
    Failure,
    RedirectsToHttps,
    StandInEmonCMS,
)
from envoy2emon.emoncms import delivery
from envoy2emon.emoncms.backlog import Backlog
from envoy2emon.emoncms.client import EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.rows import Row
from envoy2emon.settings import Secret
from tests.certificates import Certificate
from tests.gateways import Scripted, settings_of

NODE = "Dach Süd 1"
ROWS = [Row(1_700_000_000 + second, {"prod_ph-a_wNow": Decimal("-0.50"), "b": Decimal("1E+3")}) for second in (0, 1)]


@pytest.fixture
def client(emoncms: StandInEmonCMS) -> Iterator[EmonCMS]:
    """Yield a client with the write key."""
    made = EmonCMS(emoncms.url, Secret(emoncms.key), NODE)
    yield made
    made.close()


def test_rows_arrive_with_their_dates_and_digits(client: EmonCMS, emoncms: StandInEmonCMS) -> None:
    """A post applies its rows, whatever letters are in the node's name, and EmonCMS shows their dates.

    Before the first post there is no node; after a restart of Redis the dates are unknown: 0.
    """
    assert client.shown() == {}
    client.post(ROWS)
    assert [(row.time, row.node) for row in emoncms.rows] == [(row.date, NODE) for row in ROWS]
    assert [{name: str(value) for name, value in row.inputs.items()} for row in emoncms.rows] == [
        {"prod_ph-a_wNow": "-0.50", "b": "1E+3"}
    ] * 2
    assert client.shown() == {"prod_ph-a_wNow": 1_700_000_001, "b": 1_700_000_001}
    emoncms.account.restart_redis()
    assert client.shown() == {"prod_ph-a_wNow": 0, "b": 0}


def test_the_owners_settings_are_used(certificate: Certificate) -> None:
    """EMONCMS_URL, its key, certificate and interval, and BACKLOG_HOURS are those with which rows are delivered."""
    with (
        StandInEmonCMS(tls=certificate.context) as emoncms,
        patch.object(delivery, "Backlog", wraps=Backlog) as backlog,
    ):
        known = settings_of(
            EMONCMS_URL=emoncms.url,
            EMONCMS_APIKEY=emoncms.key,
            EMONCMS_CERT_SHA256=certificate.sha256,
            EMONCMS_INTERVAL_S="10",
            BACKLOG_HOURS="7",
        )
        made = delivery.Delivery.to(known, NODE, None, "stream")
        made.append(ROWS)
        assert 5 < made.attempt() <= 10
        assert [row.node for row in emoncms.rows] == [NODE] * 2
        assert backlog.call_args.args[1] == 7 * 3600


def test_a_connection_is_kept_and_not_when_it_may_be_closing(
    client: EmonCMS, emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Posts share a connection; after a silence in which Apache may have closed it, a new one is opened."""
    emoncms.max_requests = 3
    for _ in range(4):
        client.post(ROWS)
    assert emoncms.connections == 2
    monkeypatch.setattr("envoy2emon.emoncms.client.KEEP_ALIVE_S", 0.0)
    client.post(ROWS)
    assert emoncms.connections == 3


def test_every_answer_teaches_the_clock(client: EmonCMS, emoncms: StandInEmonCMS) -> None:
    """EmonCMS's clock is learnt from the Date of any answer, even that of a failure."""
    emoncms.clock_offset = -86400.0 * 400
    emoncms.fault = PHP_DOWN
    with pytest.raises(Unavailable):
        client.shown()
    assert client.clock.ahead is not None
    assert abs(client.clock.date(time.monotonic()) - emoncms.now()) < 2.1


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (PHP_DOWN, Unavailable, "answers 502 Bad Gateway"),
        (MARIADB_DOWN, Unavailable, "its database (MariaDB or Redis) is down: Fatal error"),
        (Answers(500, MARIADB_DOWN.body), Unavailable, "its database (MariaDB or Redis) is down: Fatal error"),
        (DropsAuthorization(), Unavailable, "answers nothing: is EMONCMS_APIKEY the write key, and does a proxy"),
        (Answers(200, "false"), Unavailable, "does not know this request: is EMONCMS_URL right?"),
        (Answers(200, "<html>router</html>"), Unavailable, "answers an HTML page: is EMONCMS_URL right"),
        (Answers(200, "[" * 100_000), Unavailable, "answers '[[["),
        (Answers(401, "Invalid API key"), Unauthorized, "does not know EMONCMS_APIKEY (401): set the write key"),
        (Answers(404), Unavailable, "there is no EmonCMS at"),
        (Answers(413), Rejected, "413"),
        (Answers(200, '{"success": false, "message": "node limit"}'), Rejected, "node limit"),
        (Answers(200, "Error: Format error, rows"), Rejected, "Error: Format error, rows"),
        (RedirectsToHttps(), Unavailable, "redirects to https://127.0.0.1/emoncms/input/bulk: is EMONCMS_URL right?"),
        (Cuts(), Unavailable, "closed the connection"),
    ],
)
def test_what_an_answer_means(
    client: EmonCMS, emoncms: StandInEmonCMS, fault: Failure, kind: type[Exception], words: str
) -> None:
    """Each failure of EmonCMS raises the class on which the caller acts, with a message for the owner."""
    emoncms.fault = fault
    with pytest.raises(kind) as caught:
        client.post(ROWS)
    assert words in str(caught.value)
    assert "<" not in str(caught.value)
    assert emoncms.key not in str(caught.value)
    with pytest.raises(Unavailable if kind is Rejected else kind):
        client.shown()


def test_a_broken_date_ends_nothing() -> None:
    """An answer whose Date is none is read all the same."""
    head = b"HTTP/1.1 200 OK\r\nDate: Fri, 99 Abc 99999 99:99:99 GMT\r\n\r\n"
    with Scripted(head + b"{}") as server:
        assert EmonCMS(server.url, None, NODE).shown() == {}


VALUES = st.none() | st.floats() | st.integers() | st.text() | st.lists(st.none())
INPUTS = st.dictionaries(st.text(), VALUES | st.dictionaries(st.just("time"), VALUES))


@settings(max_examples=60)
@given(VALUES | INPUTS)
@example({"a": {"time": float("inf")}})
@example({"a": {"time": "\ud800"}})
def test_any_json_is_dates_or_unavailable(answer: object) -> None:
    """Whatever JSON a server answers, shown() returns dates or raises Unavailable."""
    with Scripted(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(answer).encode()) as server, suppress(Unavailable):
        assert all(isinstance(date, int) for date in EmonCMS(server.url, None, NODE).shown().values())
