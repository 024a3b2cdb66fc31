"""The live page: the answer to a request, and over raw sockets what is sent, to how many, and who is dropped."""

import base64
import hashlib
import json
import logging
import re
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import pytest

from envoy2emon.gateway.readings import MeterReading
from envoy2emon.live import http as live_http
from envoy2emon.live import server as live
from envoy2emon.live.server import Live, figures
from tests.clocks import Time
from tests.conftest import until

LIMIT_S = 20  # for whatever a test waits for
NOW = 5000.0
PAGE = Path(live.__file__).with_name("page.html").read_bytes()
EVENTS = b"GET /events HTTP/1.1\r\n\r\n"


def reading(at: float, p: str | None, c: str | None) -> MeterReading:
    """Build a reading of one phase; None leaves a section out."""
    given = (("production", p), ("total-consumption", c))
    return MeterReading(at, {name: {"ph-a": {"p": Decimal(watts)}} for name, watts in given if watts is not None})


class Client:
    """A socket to the page that has sent `request` and gives back what arrives."""

    def __init__(self, port: int, request: bytes, source: str = "127.0.0.1", receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        self.socket.bind((source, 0))
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(request)
        self.got = b""

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the socket."""
        self.socket.close()

    def until(self, mark: bytes) -> bytes:
        """Return what arrives up to the mark; the rest waits for the next call."""
        while mark not in self.got:
            data = self.socket.recv(65536)
            assert data, f"closed before {mark!r}: {self.got!r}"
            self.got += data
        found, _, self.got = self.got.partition(mark)
        return found + mark

    def event(self, name: str) -> Any:  # noqa: ANN401 - whatever the event carries
        """Return the data of the next event of this name."""
        self.until(f"event: {name}\ndata: ".encode())
        return json.loads(self.until(b"\n\n"))

    def to_end(self) -> bytes:
        """Return all that arrives before the other side ends the connection."""
        try:
            while data := self.socket.recv(65536):
                self.got += data
        except ConnectionError:
            pass
        return self.got


Ask = Callable[..., Client]


@pytest.fixture
def clock() -> Time:
    """Return the page's clock."""
    return Time(NOW)


@contextmanager
def serving(
    listen: str = "127.0.0.1:0", state: Path | None = None, clock: Callable[[], float] = lambda: NOW
) -> Iterator[Live]:
    """Serve the page."""
    page = Live(listen, state, clock)
    page.start()
    try:
        yield page
    finally:
        page.close()


@pytest.fixture
def page(clock: Time) -> Iterator[Live]:
    """Serve the page by the test's clock."""
    with serving(clock=clock) as page:
        yield page


@pytest.fixture
def ask(page: Live) -> Iterator[Ask]:
    """Connect with `ask()` for the events, or with the bytes of another request."""
    with ExitStack() as stack:

        def connect(request: bytes = EVENTS, source: str = "127.0.0.1", receive_buffer: int = 0) -> Client:
            return stack.enter_context(Client(page.port or 0, request, source, receive_buffer))

        yield connect


def await_place(ask: Ask) -> Client:
    """Ask until there is a place, because the server notices a departure only after a moment."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with suppress(ConnectionError):
            client = ask()
            if b"200 OK" in client.socket.recv(15):
                return client
    pytest.fail("no place became free")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"production": ["6540.9"], "total-consumption": ["4426.1"]}, {"p": 6540, "c": 4426, "n": -2114}),
        ({"production": ["4", "6"], "total-consumption": ["300.9"]}, {"p": 0, "c": 300, "n": 300}),
        ({"production": ["6", "5"], "total-consumption": ["5", "6", "0.5"]}, {"p": 11, "c": 11, "n": 0}),
        ({"total-consumption": ["500"]}, {"p": None, "c": 500, "n": None}),
        ({"production": ["500"], "net-consumption": ["-100"]}, {"p": 500, "c": None, "n": None}),
        ({"production": ["500", None], "total-consumption": []}, {"p": None, "c": None, "n": None}),
    ],
)
def test_figures(sections: dict[str, list[str | None]], expected: dict[str, int | None]) -> None:
    """Figures are integer sums over phases; production of 10 W or less is 0; n = c - p; a missing value gives None."""
    phases = {
        name: {f"ph-{i}": {} if p is None else {"p": Decimal(p)} for i, p in enumerate(powers)}
        for name, powers in sections.items()
    }
    assert figures(MeterReading(0.0, phases)) == expected


def answer(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Return the status, headers and body that a request's first line gets."""
    head, _, body = live_http.answer(request + b"\r\n\r\n", PAGE, 0)[0].partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status.removeprefix("HTTP/1.1 "), dict(line.split(": ", 1) for line in lines), body


def test_page_headers() -> None:
    """The page names its type and length, is not cached, and allows only the style and script that are in it."""
    status, headers, body = answer(b"GET / HTTP/1.1")
    assert (status, body) == ("200 OK", PAGE)
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Length"] == str(len(body))
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Connection"] == "close"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), PAGE, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in policy[f"{tag}-src"]


@pytest.mark.parametrize("path", [b"/", b"/events", b"/nothing"])
def test_head(path: bytes) -> None:
    """HEAD gets the headers of GET and nothing after them."""
    head, events_follow = live_http.answer(b"HEAD %b HTTP/1.1\r\n\r\n" % path, PAGE, 0)
    whole, _ = live_http.answer(b"GET %b HTTP/1.1\r\n\r\n" % path, PAGE, 0)
    assert head + whole.partition(b"\r\n\r\n")[2] == whole
    assert not events_follow


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /../.env HTTP/1.1", "404 Not Found"),
        (b"GET //events HTTP/1.0", "404 Not Found"),
        (b"POST /events HTTP/1.1", "405 Method Not Allowed"),
        (b"hello", "400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "400 Bad Request"),
        (b"GET / HTTP/2", "400 Bad Request"),
    ],
)
def test_other_requests(request_: bytes, status: str) -> None:
    """Other methods, other paths and anything that is not HTTP get a sentence."""
    said, headers, body = answer(request_)
    assert said == status
    assert headers.get("Allow") == ("GET, HEAD" if "405" in status else None)
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert body.endswith(b".\n")


@pytest.mark.parametrize("line", [b" " * 8000, b"a?" * 4000, b"GET " + b"/ " * 3900, b"GET /" + b"x" * 7900])
def test_a_request_is_read_in_linear_time(line: bytes) -> None:
    """A request line of 8 kB is refused within 2 ms of processor time, whatever it contains."""
    began = time.process_time()
    assert {answer(line)[0] for _ in range(100)} == {"400 Bad Request"}
    assert time.process_time() - began < 0.2


def test_icons() -> None:
    """The icons that the page names, and the one that iOS asks for of its own accord, are pictures."""
    named = re.findall(rb'<link [^>]*href="([^"]+)"', PAGE)
    assert len(named) == 2
    for name in (*named, b"apple-touch-icon-precomposed.png"):
        _, headers, body = answer(b"GET /%b HTTP/1.1" % name)
        assert headers["Content-Type"] == "image/png"
        assert body.startswith(b"\x89PNG")


def test_events_as_in_the_contract(page: Live, ask: Ask) -> None:
    """A reading arrives as `event: solar_data` with p, c and n in one line, readable from any origin."""
    viewer = ask(b"GET /events?from=elsewhere HTTP/1.1\r\n\r\n")
    head = viewer.until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
    assert b"\r\nAccess-Control-Allow-Origin: *\r\n" in head
    assert b"Content-Length" not in head
    assert viewer.until(b"\n\n") == b"retry: 3000\n\n"
    history = viewer.event("history")
    assert (history["now"], history["last"], history["patience"], history["points"]) == (NOW, None, live.STALE_S, [])
    for at in (NOW, NOW + 1):
        page.show(reading(at, "6540.7", "4426.2"))
        viewer.until(b"id: ")  # before the first reading comes an event with today's energy
        event = viewer.until(b"\n\n")
        assert event == b'%d\nevent: solar_data\ndata: {"p":6540,"c":4426,"n":-2114}\n\n' % at


def test_latest_at_once_unless_stale(page: Live, ask: Ask, clock: Time) -> None:
    """A new viewer gets the latest reading at once; if that is stale, only its date."""
    first = ask()
    page.show(reading(NOW, "100", "300"))
    first.event("solar_data")
    assert ask().event("solar_data") == {"p": 100, "c": 300, "n": 200}
    clock.now += live.STALE_S + 1
    late = ask()
    assert late.event("history")["last"] == NOW
    page.show(reading(clock.now, "7000", "300"))
    assert late.event("solar_data")["p"] == 7000


def test_history(page: Live, ask: Ask, clock: Time) -> None:
    """The history covers the last 15 minutes, one point a second (the later of two), and fits the send buffer."""
    for half in range(4000):
        page.show(reading(NOW + half / 2, str(10000 + half), "12345"))
    page.show(reading(NOW + 2000, None, "7"))
    page.show(reading(NOW + 2001, None, None))
    clock.now = NOW + 2000
    viewer = ask()
    viewer.until(b"event: history\ndata: ")
    text = viewer.until(b"\n\n")
    assert len(text) < 20_000
    points = json.loads(text)["points"]
    assert [at for at, _, _ in points] == list(range(6101, 7001))
    assert points[-2:] == [[6999, 13999, 12345], [7000, None, 7]]
    clock.now += 300
    assert len(ask().event("history")["points"]) == 600


def test_burst(page: Live, ask: Ask) -> None:
    """A gateway that sends 22 readings at once counts as silent only after the time that the next 22 take."""
    viewer = ask()
    viewer.event("history")
    for age in range(21, -1, -1):
        page.show(reading(NOW - age, "100", "300"))
    ids = [int(viewer.until(b"\n")) for _ in range(22) if viewer.until(b"id: ")]
    assert ids == list(range(4979, 5001))
    assert ask().event("history")["patience"] == live.STALE_S + 2 * 21


def test_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 15 seconds come a comment line and an event that tells the page's script that the connection is alive."""
    assert live.HEARTBEAT_S == 15
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.05)
    with serving() as page, Client(page.port or 0, EVENTS) as viewer:
        viewer.event("history")
        assert viewer.until(b"\n\n").startswith(b": ")
        alive = viewer.event("alive")
    assert alive.keys() == {"now", "last", "patience", "run", "page", "today"}
    assert len(alive["page"]) == 8


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nCookie: ", b"GET /events HTTP/1.1\r\n\r\n"])
def test_endless_request(ask: Ask, head: bytes) -> None:
    """A client that never stops sending is cut off, before the end of the request's head or after it."""
    client = ask(head)
    with pytest.raises(ConnectionError):  # noqa: PT012 - the connection ends at some piece
        for _ in range(10_000):
            client.socket.sendall(b"x" * 8192)


def test_no_descriptors_left(page: Live, ask: Ask, capfd: pytest.CaptureFixture[str]) -> None:
    """While the process can open no more files, viewers stay and stderr is empty; a waiting client is served later."""
    viewer = ask()
    viewer.event("history")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    waiting = socket.socket()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
        waiting.settimeout(LIMIT_S)
        waiting.connect(("127.0.0.1", page.port or 0))
        waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for second in range(3):
            page.show(reading(NOW + second, "100", "300"))
            assert viewer.event("solar_data")["p"] == 100
        assert not select.select([waiting], [], [], 0.1)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with waiting:
        assert waiting.recv(15) == b"HTTP/1.1 200 OK"
    assert capfd.readouterr().err == ""


def test_slow_request(page: Live, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is never completed is dropped; a viewer stays for longer than a request may take."""
    monkeypatch.setattr(live, "REQUEST_S", 0.3)
    viewer = ask()
    viewer.event("history")
    assert ask(b"GET / HT").to_end() == b""
    page.show(reading(NOW, "100", "300"))
    assert viewer.event("solar_data")["p"] == 100


def test_cap(page: Live, ask: Ask) -> None:
    """The 33rd viewer gets 503 with a sentence, for the page too; a place that becomes free can be taken."""
    viewers = [ask() for _ in range(live_http.MAX_VIEWERS)]
    for viewer in viewers:
        viewer.event("history")
    for request in (EVENTS, b"GET / HTTP/1.1\r\n\r\n"):
        head, _, body = ask(request).to_end().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 30" in head
        assert body == b"32 viewers are watching, and no more are possible: close one, then try again.\n"
    viewers[0].socket.close()
    # A reset instead of a FIN, as from a device that has lost its network and come back.
    viewers[1].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    viewers[1].socket.close()
    newcomers = [await_place(ask), await_place(ask)]
    page.show(reading(NOW, "100", "300"))
    for viewer in viewers[2:] + newcomers:
        assert viewer.event("solar_data")["p"] == 100


def test_idle_connections_lock_nobody_out(page: Live, ask: Ask) -> None:
    """Connections that ask for nothing take at most 16 places per address, and disturb no viewer."""
    viewer = ask()
    viewer.event("history")
    idle = [ask(b"") for _ in range(live.MAX_REQUESTING_EACH)]
    for _ in range(64):
        one_more = ask(b"")
        one_more.socket.settimeout(live.REQUEST_S / 2)  # it is dropped at once, not after REQUEST_S
        assert one_more.to_end() == b""
    ask(source="127.0.0.2").event("history")
    for client in idle:
        client.socket.close()
    await_place(ask)
    page.show(reading(NOW, "100", "300"))
    assert viewer.event("solar_data")["p"] == 100


def test_slow_reader(page: Live, ask: Ask) -> None:
    """A viewer that does not read is dropped when 64 KiB wait for it; one that reads gets every reading."""
    reader, sleeper = ask(), ask(receive_buffer=4096)
    reader.event("history")
    sleeper.event("history")
    count = 20_000
    for n in range(count):
        page.show(reading(NOW, "100", str(n)))
        if n % 100 == 99:
            assert [reader.event("solar_data")["c"] for _ in range(100)] == list(range(n - 99, n + 1))
    assert len(sleeper.to_end()) < count * 60 / 2
    page.show(reading(NOW, "100", "777777"))
    assert reader.event("solar_data")["c"] == 777777


def test_a_port_that_is_taken_is_tried_again(
    page: Live, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another program holds the port, one ERROR gives the cure and `trouble` the reason; it is tried again."""
    monkeypatch.setattr(live, "TRY_AGAIN_S", 0.02)
    place = f"127.0.0.1:{page.port}"
    with serving(place) as second:
        second.show(reading(NOW, "1", "2"))
        (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
        assert f"no live page on LIVE_LISTEN={place}: address already in use. HOST must be" in record.message
        assert second.trouble == f"no live page on {place}: address already in use"
        assert second.port is None
        page.close()
        until(lambda: second.port is not None)
        assert second.trouble == ""


@pytest.mark.parametrize("listen", ["192.0.2.1:8080", f"{'a' * 70}:8080"])
def test_no_such_address(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    """An address that is not this computer's is one ERROR too."""
    with serving(listen):
        assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_both_families() -> None:
    """`[::]` serves IPv4 as well."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this computer has no IPv6")
    with serving("[::]:0") as page:
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, page.port or 0), LIMIT_S) as client:
                client.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_a_restart_keeps_graph_and_energy(tmp_path: Path) -> None:
    """After a restart, the graph begins with the points of the previous run, and today's energy with what it saved."""
    with serving(state=tmp_path, clock=time.monotonic) as first, Client(first.port or 0, EVENTS) as viewer:
        for age in (9, 0):
            first.show(reading(time.monotonic() - age, "4000", "1000"))
            viewer.event("solar_data")
    with serving(state=tmp_path, clock=time.monotonic) as second, Client(second.port or 0, EVENTS) as viewer:
        history = viewer.event("history")
    assert [(p, c) for _, p, c in history["points"]] == [(4000, 1000)] * 2
    assert history["today"]["produced"] == 0.01
