"""The stand-in for EmonCMS as a server: its connections and its faults, over real sockets."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests
import urllib3

from envoy2emon.demo.emoncms import (
    MARIADB_DOWN,
    PHP_DOWN,
    Answers,
    AnswersLate,
    Cuts,
    Dies,
    DropsAuthorization,
    HoldsUp,
    RedirectsToHttps,
    StandInEmonCMS,
)
from tests.certificates import Certificate
from tests.emoncms import bulk, client

ROWS = [[-2, "n", {"a": 1}], [-1, "n", {"a": 2}], [0, "n", {"a": 3}]]


@pytest.fixture
def later() -> Iterator[ThreadPoolExecutor]:
    """Ask in other threads."""
    with ThreadPoolExecutor() as pool:
        yield pool


def test_a_connection_ends_by_silence_and_by_count(emoncms: StandInEmonCMS) -> None:
    """A connection serves many requests; it is closed with notice after so many, and when it is silent."""
    emoncms.max_requests = 2
    with requests.Session() as session:
        notices = [session.get(f"{emoncms.url}/version").headers.get("Connection") for _ in range(3)]
    assert notices == [None, "close", None]
    assert (emoncms.connections, emoncms.requests) == (2, 3)
    emoncms.idle_timeout = 0.05
    with socket.create_connection((urlsplit(emoncms.url).hostname, urlsplit(emoncms.url).port)) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize("applied", [0, 2, None])
def test_bad_answers(emoncms: StandInEmonCMS, applied: int | None) -> None:
    """A fault's answer comes once, to a post, after so many rows went in; then all is well."""
    emoncms.fail_next(Answers(200, "<b>Fatal error</b>", applied))
    assert client(emoncms).ask("version") == (200, "11.16.8")
    assert bulk(emoncms, ROWS) == (200, "<b>Fatal error</b>")
    assert len(emoncms.rows) == (3 if applied is None else applied)
    assert bulk(emoncms, ROWS) == (200, "ok")


def test_a_fault_in_force(emoncms: StandInEmonCMS) -> None:
    """A fault in force meets every request until it is taken away; with MariaDB down EmonCMS answers 200."""
    for fault in (PHP_DOWN, MARIADB_DOWN):
        emoncms.fault = fault
        assert bulk(emoncms, ROWS) == client(emoncms).ask("version") == (fault.status, fault.body)
    emoncms.fault = None
    assert bulk(emoncms, ROWS) == (200, "ok")


@pytest.mark.parametrize("applied", [0, None])
def test_cut(emoncms: StandInEmonCMS, applied: int | None) -> None:
    """A cut ends the connection without an answer, before or after the rows went in."""
    emoncms.fail_next(Cuts(applied))
    with pytest.raises(requests.ConnectionError):
        bulk(emoncms, ROWS)
    assert len(emoncms.rows) == (3 if applied is None else 0)


def test_held_up(emoncms: StandInEmonCMS, later: ThreadPoolExecutor) -> None:
    """A post by age that is held up is dated when it is read; one with its own dates is not moved."""
    emoncms.fail_next(HoldsUp(), HoldsUp())
    posts = [later.submit(bulk, emoncms, ROWS), later.submit(bulk, emoncms, [[50, "n", {"b": 1}]], time=0)]
    emoncms.wait_for(lambda: emoncms.requests == 2)
    before, emoncms.clock_offset = emoncms.now(), 3600
    assert client(emoncms).ask("version")[0] == 200  # only posts are held
    assert not emoncms.rows
    _release(emoncms, posts)
    dates = {name: row.time for row in emoncms.rows for name in row.inputs}
    assert dates["b"] == 50
    assert abs(dates["a"] - before - 3600) < 10


def test_held_up_for_a_time(emoncms: StandInEmonCMS) -> None:
    """A hold-up may have a length of its own."""
    emoncms.fault = HoldsUp(0.02)
    assert bulk(emoncms, ROWS) == (200, "ok")


@pytest.mark.parametrize(("fault", "before"), [(HoldsUp(), 0), (AnswersLate(), 3)])
def test_a_client_that_leaves_stops_nothing(emoncms: StandInEmonCMS, fault: HoldsUp | AnswersLate, before: int) -> None:
    """A post is applied once, by release() at the latest, whether its client waits or not."""
    emoncms.fail_next(fault)
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{emoncms.url}/input/bulk?sentat=0&apikey={emoncms.key}", {"data": json.dumps(ROWS)}, timeout=0.1
        )
    assert len(emoncms.rows) == before
    emoncms.release()
    emoncms.wait_for(lambda: len(emoncms.rows) == 3)
    assert bulk(emoncms, ROWS) == (200, "ok")
    assert len(emoncms.rows) == 6


def test_death_between_inputs_and_processes(emoncms: StandInEmonCMS) -> None:
    """The row in which PHP dies is shown, and its energy is not counted; sent again with its date it is."""
    rows = [[date, "n", {"a": 3600}] for date in (100, 110, 120, 130)]
    emoncms.fail_next(Dies(row=2))
    assert bulk(emoncms, rows, time=0) == (PHP_DOWN.status, PHP_DOWN.body)
    assert client(emoncms).read_inputs("n") == {"a": (120, 3600)}
    assert (len(emoncms.rows), emoncms.account.kwh("n", "a")) == (2, 0.01)
    assert bulk(emoncms, rows[2:], time=0) == (200, "ok")
    assert (len(emoncms.rows), emoncms.account.kwh("n", "a")) == (4, 0.03)


def test_a_proxy_that_drops_the_key(emoncms: StandInEmonCMS) -> None:
    """Without the header `input/get` answers the login page, and `input/bulk` nothing."""
    emoncms.fault = DropsAuthorization()
    assert bulk(emoncms, ROWS) == (200, "")
    status, page = client(emoncms).ask("input/get", node="n")
    assert (status, "login" in page) == (200, True)
    assert not emoncms.rows


def test_a_proxy_that_wants_https(emoncms: StandInEmonCMS) -> None:
    """Each request is answered with its own address by https."""
    emoncms.fault = RedirectsToHttps()
    answer = requests.get(f"{emoncms.url}/input/get?node=n", allow_redirects=False, timeout=5)
    assert (answer.status_code, answer.headers["Location"]) == (301, "https://127.0.0.1/emoncms/input/get?node=n")


def test_tls(certificate: Certificate) -> None:
    """With a certificate there is https only, and a client that does not like it harms nobody."""
    with StandInEmonCMS(tls=certificate.context) as emoncms:
        with pytest.raises(requests.exceptions.SSLError):
            bulk(emoncms, ROWS)
        pinned = urllib3.PoolManager(cert_reqs="CERT_NONE", assert_fingerprint=certificate.sha256)
        for _ in range(2):
            assert pinned.request("GET", f"{emoncms.url}/version").data == b"11.16.8"
        assert emoncms.connections == 1


def test_end(emoncms: StandInEmonCMS) -> None:
    """Waiting ends with the change, or with what was seen; after its end what comes is refused."""
    with pytest.raises(TimeoutError, match="0 rows, 0 requests"):
        emoncms.wait_for(lambda: len(emoncms.rows) == 3, timeout=0.01)
    with StandInEmonCMS() as ended:
        pass
    with pytest.raises(requests.ConnectionError):
        bulk(ended, ROWS)


def _release(emoncms: StandInEmonCMS, posts: "list[Future[tuple[int, str]]]") -> None:
    """Release until all is answered: a request is counted a moment before it is held."""
    while not all(post.done() for post in posts):
        emoncms.release()
    assert [post.result() for post in posts] == [(200, "ok")] * len(posts)
