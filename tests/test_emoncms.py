"""HTTP to EmonCMS: what its answers mean, and what a connection is worth."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from envoy2emon.emoncms import exchange as room
from envoy2emon.emoncms.client import Dropped, EmonCMS, Rejected, Unauthorized, Unavailable
from envoy2emon.settings import Secret
from envoy2emon.demo.emoncms import Fault, StandInEmonCMS
from tests.emoncms import FATAL_ERROR
from tests.faultproxy import FaultProxy

FORM = 'data=[[0,"Envoy-S",{"a":1}]]&sentat=0'
KEY = Secret("writekey")


def client(emoncms: StandInEmonCMS) -> EmonCMS:
    """Return a client with the write key."""
    return EmonCMS(emoncms.url, KEY)


@contextmanager
def answering(answer: bytes) -> Iterator[EmonCMS]:
    """Give a client of a server that answers each connection's first request with these bytes, and closes."""
    with FaultProxy("127.0.0.1", 9) as proxy:
        proxy.canned(answer)
        yield EmonCMS(f"http://127.0.0.1:{proxy.port}/emoncms", KEY)


def http(status: str, body: str = "", *headers: str) -> bytes:
    """Write an answer down."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return ("\r\n".join(lines) + f"\r\n\r\n{body}").encode()


@pytest.mark.parametrize("words", ["ok", '"ok"', '{"success": true}', "ok\n"])
def test_success_is_said_in_words(words: str) -> None:
    """A row counts as posted only when EmonCMS says so."""
    with answering(http("200 OK", words)) as emoncms:
        emoncms.post(FORM)


AWAY = {
    "500": (http("500 Internal Server Error"), "500", True),
    "502": (http("502 Bad Gateway", "<html>"), "502", True),
    "fatal error": (http("200 OK", FATAL_ERROR), "Fatal error", True),
    "nothing": (http("200 OK"), "is EMONCMS_APIKEY the write key", True),
    "false": (http("200 OK", "false"), "is EMONCMS_URL right", False),
    "404": (http("404 Not Found"), "is the path in EMONCMS_URL right", False),
    "redirect": (http("301 Moved", "", "Location: https://elsewhere/"), "redirects to https://elsewhere/", False),
    "another server": (http("200 OK", "<h1>It works!</h1>"), "It works", True),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "cannot be reached", True),
    "no answer": (b"", "without an answer", True),
    "half an answer": (b"HTTP/1.1 200 OK\r\nContent-Le", "nothing", True),
    "brackets": (http("200 OK", "[" * 100_000), "answers '\\[\\[", True),
    "a strange head": (b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x; boundary*=a\0b''c\r\n\r\nok", "null", True),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", "without an answer", True),
    "no body": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "without an answer", True),
    "half a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\no", "without an answer", True),
}


@pytest.mark.parametrize(("answer", "words", "unclear"), AWAY.values(), ids=AWAY.keys())
def test_all_else_is_trouble_in_words(answer: bytes, words: str, unclear: bool) -> None:  # noqa: FBT001 - a column
    """Whatever else comes means: keep the rows; it says whether they may have arrived all the same."""
    with answering(answer) as emoncms, pytest.raises(Unavailable, match=words) as trouble:
        emoncms.post(FORM)
    assert trouble.value.unclear == unclear
    assert not isinstance(trouble.value, Dropped)


def test_a_wrong_key_is_for_the_owner() -> None:
    """401 names the setting, and not the key."""
    with answering(http("401 Unauthorized", "Invalid API key")) as emoncms, pytest.raises(Unauthorized) as trouble:
        emoncms.post(FORM)
    assert "EMONCMS_APIKEY" in str(trouble.value)
    assert KEY.value not in str(trouble.value)


@pytest.mark.parametrize(
    "answer",
    [
        http("400 Bad Request", f"Bad Request: the header Authorization: Bearer {KEY.value}"),
        http(f"400 {KEY.value} {'x' * 40}{KEY.value}"),
        http("200 OK", f"{'x' * 100}{KEY.value}"),
        http("200 OK", json.dumps({"success": False, "message": "x" * 190 + KEY.value})),
        http(f"302 Found\r\nLocation: /{'x' * 180}{KEY.value}"),
    ],
)
def test_the_key_is_not_in_words_that_were_cut(answer: bytes) -> None:
    """A server that repeats what it was sent has no part of the key in the trouble's text."""
    with answering(answer) as emoncms:
        for ask in (lambda: emoncms.post(FORM), lambda: emoncms.inputs("Envoy-S")):
            with pytest.raises((Unavailable, Rejected)) as trouble:
                ask()
            assert KEY.value[:6] not in str(trouble.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (http("200 OK", '{"success": false, "message": "Format error, node must not be an object"}'), "Format error"),
        (http("413 Request Entity Too Large"), "413"),
        (http("414 Request-URI Too Long"), "414"),
    ],
)
def test_what_is_wrong_with_the_rows_is_rejected(answer: bytes, words: str) -> None:
    """EmonCMS's words say what it does not like."""
    with answering(answer) as emoncms, pytest.raises(Rejected, match=words):
        emoncms.post(FORM)


def test_a_refused_connection_is_clear(emoncms: StandInEmonCMS) -> None:
    """Nobody there: nothing can have arrived."""
    with FaultProxy("127.0.0.1", 9) as proxy:
        proxy.refuse()
        away = EmonCMS(f"http://127.0.0.1:{proxy.port}/emoncms", KEY)
        with pytest.raises(Unavailable, match="refuses the connection") as trouble:
            away.post(FORM)
        assert not trouble.value.unclear
    with pytest.raises(Unavailable, match="name that cannot be resolved") as trouble:
        EmonCMS("http://no-such-name.invalid/emoncms", KEY).post(FORM)
    assert not trouble.value.unclear
    assert emoncms.requests == 0


def test_an_unreachable_machine_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that does not answer a connection: nothing can have arrived."""
    monkeypatch.setattr(room, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.settimeout(0)
            one.connect_ex(full.getsockname())  # the queue is full now: further SYNs are dropped
        away = EmonCMS(f"http://127.0.0.1:{full.getsockname()[1]}/emoncms", KEY)
        with pytest.raises(Unavailable, match="does not answer within") as trouble:
            away.post(FORM)
        assert not trouble.value.unclear
        for one in waiting:
            one.close()


def test_silence_is_unclear(emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer in time: the rows may have arrived, or may still."""
    monkeypatch.setattr(room, "ANSWER_TIMEOUT_S", 0.2)
    emoncms.fault = Fault("hang")
    with pytest.raises(Unavailable, match="does not answer within") as trouble:
        client(emoncms).post(FORM)
    assert trouble.value.unclear


def test_a_hundred_posts_take_one_connection(emoncms: StandInEmonCMS) -> None:
    """The connection is kept."""
    one = client(emoncms)
    for _ in range(100):
        one.post(FORM)
    assert (emoncms.connections, emoncms.requests, len(emoncms.rows)) == (1, 100, 100)


def test_a_connection_that_was_closed_while_idle_is_no_trouble(emoncms: StandInEmonCMS) -> None:
    """Apache closes after 5 s of silence and after 100 requests: the next post opens a new one."""
    emoncms.idle_timeout = 0.01
    one = client(emoncms)
    for number in range(3):
        one.post(FORM)
        sock = one._exchange._connection.sock  # noqa: SLF001 - who else could know that it is closed
        assert sock.recv(1) == b""  # the server's farewell
        assert len(emoncms.rows) == number + 1
    emoncms.max_requests = 2
    emoncms.idle_timeout = 5.0
    for _ in range(6):
        one.post(FORM)
    assert len(emoncms.rows) == 9


def test_a_connection_that_is_closed_as_the_request_goes_out_is_dropped(emoncms: StandInEmonCMS) -> None:
    """The server's farewell and the request pass each other: try again at once, after asking."""
    one = client(emoncms)
    one.post(FORM)
    emoncms.fail_next(Fault("cut"))
    with pytest.raises(Dropped) as trouble:
        one.post(FORM)
    assert trouble.value.unclear
    emoncms.fail_next(Fault("cut"))
    with pytest.raises(Unavailable) as again:  # on a new connection it was not for idleness
        one.post(FORM)
    assert not isinstance(again.value, Dropped)


def test_the_key_travels_in_a_header_only() -> None:
    """No URL, and so no server's log, has the key; neither proxies nor .netrc are asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = EmonCMS(f"http://127.0.0.1:{server.getsockname()[1]}/emoncms/", KEY)

        def post() -> None:
            with pytest.raises(Unavailable):
                one.post(FORM)

        thread = threading.Thread(target=post)
        thread.start()
        connection, _ = server.accept()
        request = connection.recv(65536).decode()
        connection.close()
        thread.join()
    lines = request.split("\r\n")
    assert lines[0] == "POST /emoncms/input/bulk HTTP/1.1"
    assert "Authorization: Bearer writekey" in lines
    assert request.count("writekey") == 1


def test_proxies_are_not_asked(emoncms: StandInEmonCMS, monkeypatch: pytest.MonkeyPatch) -> None:
    """$http_proxy is for browsers: EmonCMS is in the house."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    client(emoncms).post(FORM)
    assert len(emoncms.rows) == 1


def test_what_arrived_is_told_with_its_time(emoncms: StandInEmonCMS) -> None:
    """Each input's time and value, and EmonCMS's clock, from the answer's Date."""
    emoncms.clock_offset = -7200
    one = client(emoncms)
    assert one.inputs("Envoy-S").inputs == {}
    one.post(FORM)
    arrived = one.inputs("Envoy-S")
    date, value = arrived.inputs["a"]
    assert value == 1.0
    assert abs(date - emoncms.now()) < 5
    assert arrived.date <= emoncms.now() < arrived.date + 5


def test_a_node_with_a_space_is_asked_for(emoncms: StandInEmonCMS) -> None:
    """Names are quoted."""
    one = client(emoncms)
    one.post('data=[[0,"My Envoy",{"a":1}]]&sentat=0')
    assert list(one.inputs("My Envoy").inputs) == ["a"]


STRANGE: list[object] = [
    [],
    {"success": False, "message": "no"},
    {"a": 7},
    {"a": {"time": "x", "value": 1}},
    {"a": {}},
    {"a": {"time": 1e999, "value": 1}},
    {"a": {"time": 1, "value": 10**400}},
    7,
]


@pytest.mark.parametrize("answer", [json.dumps(answer) for answer in STRANGE] + [FATAL_ERROR, ""])
def test_a_strange_answer_to_the_question_is_trouble(answer: str) -> None:
    """What is not a node's inputs is not taken for some."""
    with answering(http("200 OK", answer)) as emoncms, pytest.raises(Unavailable):
        emoncms.inputs("Envoy-S")


def test_inputs_that_never_had_a_value_are_zero() -> None:
    """EmonCMS tells null for the time and value of an input that was only created, and text where MySQL does."""
    answer = '{"a": {"time": null, "value": null}, "b": {"time": "17", "value": "2.5", "processList": ""}}'
    with answering(http("200 OK", answer)) as emoncms:
        assert emoncms.inputs("Envoy-S").inputs == {"a": (0, 0.0), "b": (17, 2.5)}


def test_a_server_without_a_clock_is_believed_to_have_ours() -> None:
    """Every web server sends a Date; one that does not is no reason to stop."""
    with answering(http("200 OK", "{}", "Date: yesterday")) as emoncms:
        assert emoncms.inputs("Envoy-S").date > 1_600_000_000


def test_the_version_is_asked_without_a_key(emoncms: StandInEmonCMS) -> None:
    """EmonCMS tells its version to anyone."""
    assert EmonCMS(emoncms.url, None).version() == "11.16.8"


@pytest.mark.parametrize("host", ["emon-pi..local", "x" * 64 + ".local", "nowhere.invalid"])
def test_a_name_that_is_none_is_trouble_in_words(host: str) -> None:
    """A label that is empty or too long, or a name that nobody knows, kills no thread."""
    with pytest.raises(Unavailable, match="has a name that cannot be resolved") as raised:
        EmonCMS(f"http://{host}/emoncms", KEY).post(FORM)
    assert not raised.value.unclear


def test_a_question_that_is_refused_is_told_in_words() -> None:
    """If `input/get` is answered with a refusal, the owner reads its words."""
    refusal = '{"success": false, "message": "Access denied"}'
    with (
        answering(http("200 OK", refusal)) as emoncms,
        pytest.raises(Unavailable, match="does not tell which inputs it has: Access denied"),
    ):
        emoncms.inputs("Envoy-S")
