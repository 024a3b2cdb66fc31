"""The stand-in for EmonCMS as a server: its connections and its faults, over real sockets."""

import http.client
import socket
from threading import Thread
from typing import Any

import pytest

from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.emoncms import ask, bulk, connect

ROWS = [[-2, "n", {"a": 1}], [-1, "n", {"a": 2}], [0, "n", {"a": 3}]]


def test_recognised(emoncms: StandInEmonCMS) -> None:
    """`version` and `describe` need no key but refuse a wrong one; outside the base path there is nothing."""
    assert ask(emoncms, "/emoncms/version", key=None) == (200, "11.16.8")
    assert ask(emoncms, "/emoncms/describe") == (200, "emoncms")
    assert ask(emoncms, "/emoncms/version", key="bad") == (401, "Invalid API key")
    assert ask(emoncms, "/emon/version")[0] == 404


def test_keep_alive(emoncms: StandInEmonCMS) -> None:
    """A connection serves many requests, and both are counted."""
    connection = connect(emoncms)
    for _ in range(3):
        connection.request("GET", "/emoncms/version")
        connection.getresponse().read()
    assert (emoncms.connections, emoncms.requests) == (1, 3)


def test_idle_timeout(emoncms: StandInEmonCMS) -> None:
    """A silent connection is closed."""
    emoncms.idle_timeout = 0.05
    connection = connect(emoncms)
    connection.connect()
    assert connection.sock.recv(1) == b""


def test_max_requests(emoncms: StandInEmonCMS) -> None:
    """A connection is closed after so many requests, with notice."""
    emoncms.max_requests = 2
    connection = connect(emoncms)
    notices = []
    for _ in range(2):
        connection.request("GET", "/emoncms/version")
        answer = connection.getresponse()
        notices.append((answer.headers["Connection"], answer.read()))
    assert notices == [(None, b"11.16.8"), ("close", b"11.16.8")]


@pytest.mark.parametrize("answer", [(500, ""), (502, "<h1>Bad Gateway</h1>"), (200, "<b>Fatal error</b>"), (200, "")])
@pytest.mark.parametrize("applied", [0, 2, None])
def test_bad_answers(emoncms: StandInEmonCMS, answer: tuple[int, str], applied: int | None) -> None:
    """A fault's answer comes once, after so many rows went in; then all is well."""
    emoncms.fail_next(Fault(answer, applied))
    assert ask(emoncms, "/emoncms/version") == (200, "11.16.8")
    assert bulk(emoncms, ROWS) == answer
    assert len(emoncms.rows) == (3 if applied is None else applied)
    assert bulk(emoncms, ROWS) == (200, "ok")


@pytest.mark.parametrize("applied", [0, None])
def test_cut(emoncms: StandInEmonCMS, applied: int | None) -> None:
    """A cut ends the connection without an answer, before or after the rows went in."""
    emoncms.fail_next(Fault("cut", applied))
    with pytest.raises(http.client.RemoteDisconnected):
        bulk(emoncms, ROWS)
    assert len(emoncms.rows) == (3 if applied is None else 0)


@pytest.mark.parametrize("applied", [0, None])
def test_hang(emoncms: StandInEmonCMS, applied: int | None) -> None:
    """A silent request is answered after its release, and its rows go in once."""
    emoncms.fail_next(Fault("hang", applied))
    answers: list[Any] = []
    thread = Thread(target=lambda: answers.append(bulk(emoncms, ROWS)))
    thread.start()
    emoncms.wait_for(lambda: emoncms.requests == 1 and len(emoncms.rows) == (0 if applied == 0 else 3))
    assert not answers
    while thread.is_alive():  # the request is counted a moment before it hangs
        emoncms.release()
        thread.join(0.05)
    assert answers == [(200, "ok")]
    assert len(emoncms.rows) == 3


def test_fault(emoncms: StandInEmonCMS) -> None:
    """A fault in force meets every request until it is taken away."""
    emoncms.fault = Fault((502, ""))
    for _ in range(2):
        assert bulk(emoncms, ROWS) == ask(emoncms, "/emoncms/version") == (502, "")
    emoncms.fault = None
    assert bulk(emoncms, ROWS) == (200, "ok")


def test_wait_for(emoncms: StandInEmonCMS) -> None:
    """Waiting ends with the change, or with what was seen instead."""
    with pytest.raises(TimeoutError, match="0 rows, 0 requests"):
        emoncms.wait_for(lambda: len(emoncms.rows) == 3, timeout=0.01)
    thread = Thread(target=bulk, args=(emoncms, ROWS))
    thread.start()
    emoncms.wait_for(lambda: len(emoncms.rows) == 3)
    thread.join()


def test_end() -> None:
    """After its end the stand-in is gone: what was open is cut, what comes is refused."""
    with StandInEmonCMS() as emoncms:
        client = connect(emoncms)
        client.request("GET", "/emoncms/version")
        client.getresponse().read()
    assert client.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError), socket.create_connection((client.host, client.port)):
        pass
