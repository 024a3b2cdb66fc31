"""The gateway's client on sockets: which gateway is there, each way of logging in, and whatever else may answer."""

import json
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envoy2emon.demo.gateway import Answer, SimulatedEnvoy, make_token
from envoy2emon.demo.logins import STREAM
from envoy2emon.demo.site import THREE_PHASE_EVENT
from envoy2emon.gateway import client
from envoy2emon.gateway.client import INVERTERS, METERS, REPORTS, Gateway, Lost, NotFound, Refused
from envoy2emon.gateway.info import Info, read_info, urls
from envoy2emon.gateway.tokens import LOGIN_EVERY_S, Tokens
from tests import fixtures
from tests.certificates import Certificate, self_signed
from tests.clocks import Time
from tests.enlighten import Enlighten
from tests.gateways import INFO, Scripted, asked, client_at, settings_of

CHECK = "/auth/check_jwt"
Ask = Callable[[Gateway, float], object]


@pytest.fixture
def envoy(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 that can be upgraded."""
    with SimulatedEnvoy(tls=certificate.context) as envoy:
        yield envoy


def token_for(envoy: SimulatedEnvoy, user: str = "owner") -> str:
    """Make a good token."""
    return make_token(envoy.serial, time.time() + 86_400, user)


def page(gateway: Gateway, patience: float) -> str:
    """Read a page. Raises as the client does."""
    return gateway.text(METERS, patience)


def follow(gateway: Gateway, patience: float) -> None:
    """Follow the stream to its end. Raises as the client does."""
    with gateway.stream(patience) as stream:
        list(stream)


def other_certificate(envoy: SimulatedEnvoy, directory: Path) -> str:
    """Give the gateway another certificate and return its SHA-256."""
    made = self_signed(envoy.serial, directory)
    envoy.tls = made.context
    envoy.upgrade(envoy.firmware)
    return made.sha256


# --- Which gateway is there


@pytest.mark.parametrize("firmware", fixtures.FIRMWARES)
def test_info(firmware: str) -> None:
    """A recorded /info says which gateway it is, whether it needs a token, and whether it has meters."""
    text = fixtures.text(firmware, "info.xml")
    found = read_info("https://envoy", text)
    assert (found.firmware, found.needs_token) == (firmware, int(firmware[1]) >= 7)
    assert f"<sn>{found.serial}</sn>" in text
    assert found.metered == ("<imeter>true</imeter>" in text)


@pytest.mark.parametrize(
    ("text", "ahead"), [("<time>{later}</time>", pytest.approx(7200, abs=3)), ("<time>1e17</time>", None), ("", None)]
)
def test_its_clock(text: str, ahead: float | None) -> None:
    """The gateway's clock, which dates the inverters' reports, is taken from /info, if it is there."""
    info = INFO.replace("<device>", text.format(later=int(time.time()) + 7200) + "<device>")
    assert read_info("http://envoy", info).ahead == ahead


NOT_A_GATEWAY = "/info is not a gateway's: is ENVOY_HOST right?"
NO_SERIAL = "/info gives no serial number: is ENVOY_HOST right?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<html><p>busy</html>", NOT_A_GATEWAY),
        ("<!DOCTYPE html><html/>", NOT_A_GATEWAY),  # a DOCTYPE may define entities that crash the parser
        ("<a>" * 9000 + "</a>" * 9000, NO_SERIAL),
        ("<envoy_info><device><sn>12 34</sn></device></envoy_info>", NO_SERIAL),
        ("<envoy_info><device><sn>" + "1" * 99 + "</sn></device></envoy_info>", NO_SERIAL),
    ],
    ids=lambda text: text[:30],
)
def test_bad_info(text: str, words: str) -> None:
    """An /info that is not a gateway's is reported as such, and not parsed if it has a DOCTYPE."""
    with pytest.raises(ValueError, match=re.escape(words)):
        read_info("http://envoy", text)


@settings(max_examples=300)
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["<envoy_info>", "<device>", "</device>", "</envoy_info>", "<sn>1</sn>", "<!", "DOCTYPE", "&#0;", "<a "]
        )
        | st.text(max_size=5)
    ).map("".join)
)
def test_any_info_is_read_or_bad(text: str) -> None:
    """read_info() returns an Info or raises ValueError, whatever the text."""
    with suppress(ValueError):
        assert isinstance(read_info("http://envoy", text), Info)


def test_info_is_bounded(envoy: SimulatedEnvoy) -> None:
    """An /info of more than 64 KiB is Lost."""
    envoy.answers["/info"] = Answer(200, " " * 70_000)
    with pytest.raises(Lost, match="/info answers without end"):
        client_at(envoy.host).identify()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("envoy.local", ["https://envoy.local", "http://envoy.local"]),
        ("envoy.local:443", ["https://envoy.local:443", "http://envoy.local:443"]),
        ("envoy.local:8080", ["http://envoy.local:8080", "https://envoy.local:8080"]),
        ("[fe80::1]", ["https://[fe80::1]", "http://[fe80::1]"]),
        ("https://envoy.local:8443", ["https://envoy.local:8443"]),
    ],
)
def test_where_it_is_asked_for(host: str, expected: list[str]) -> None:
    """A gateway is tried by https, then by http, at a port other than 443 by http first; a URL says how."""
    assert urls(host) == expected


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("nowhere.invalid", "nowhere.invalid cannot be resolved: is ENVOY_HOST right?"),
        ("a..b", "a..b cannot be resolved: is ENVOY_HOST right?"),
        ("127.0.0.1:9", "http://127.0.0.1:9 refuses the connection; https://127.0.0.1:9 refuses the connection"),
    ],
)
def test_nobody_is_there(host: str, words: str) -> None:
    """The owner reads what is wrong in plain words, not in Python's, and an unknown name is reported only once."""
    with pytest.raises(Lost) as raised:
        client_at(host).text("/x")
    assert str(raised.value) == words


def test_redirected_to_https(envoy: SimulatedEnvoy) -> None:
    """D7 to D8.2 redirect http to https://localhost: the client does not follow, but asks the same host by https."""
    envoy.upgrade("D7.0.88")
    envoy.redirects = True
    assert client_at(envoy.host).identify().url == f"https://{envoy.host}"
    assert asked(envoy) == [("/info", 301), ("/info", 200)]


def test_another_gateway(envoy: SimulatedEnvoy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each change of the serial number, since the last run or during this one, is one WARNING."""
    for serial in ("122100000001", "122100000002", "122100000002"):
        envoy.serial = serial
        one = client_at(envoy.host, tmp_path)
        one.identify()
        one.identify()
    envoy.serial = "122100000003"
    one.identify()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [re.findall(r"\d{12}", words) for words in warnings] == [
        ["122100000002", "122100000001"],
        ["122100000003", "122100000002"],
    ]


def test_the_one_gateway(envoy: SimulatedEnvoy) -> None:
    """With ENVOY_SERIAL set, another gateway is refused in words that name both, and gets no password."""
    with pytest.raises(Refused, match="is the gateway 122112345678, but ENVOY_SERIAL is 122100000000"):
        client_at(envoy.host, ENVOY_SERIAL="122100000000").text(INVERTERS)
    assert asked(envoy) == [("/info", 200)]
    assert client_at(envoy.host, ENVOY_SERIAL=envoy.serial).text(INVERTERS)


# --- Below firmware 7: a password


def test_digest(envoy: SimulatedEnvoy) -> None:
    """The installer reads the meters; envoy, with the serial number's last digits, or who is in .env, the inverters."""
    assert json.loads(client_at(envoy.host).text(REPORTS)) == envoy.reports
    assert json.loads(client_at(envoy.host, inverters=True).text(INVERTERS)) == envoy.inverters
    installer = {"ENVOY_INVERTERS_USER": "installer", "ENVOY_INVERTERS_PASSWORD": envoy.password}
    client_at(envoy.host, inverters=True, **installer).text(INVERTERS)
    users = [(request.path, request.user) for request in envoy.requests if request.user]
    assert users == [(REPORTS, "installer"), (INVERTERS, "envoy"), (INVERTERS, "installer")]


def test_wrong_password(envoy: SimulatedEnvoy) -> None:
    """A wrong password is Refused with the cure, after at most two questions; each attempt asks /info again."""
    one = client_at(envoy.host, ENVOY_PASSWORD="wrong")
    cure = r"firmware D5.0.62, refuses user installer \(401\): are ENVOY_USER and ENVOY_PASSWORD right\?$"
    for attempt in (1, 2):
        with pytest.raises(Refused, match=cure):
            one.text(INVERTERS)
        assert asked(envoy) == [("/info", 200), (INVERTERS, 401), (INVERTERS, 401)] * attempt
    with pytest.raises(Refused, match=r"ENVOY_INVERTERS_PASSWORD right\? .* some firmware needs installer"):
        client_at(envoy.host, inverters=True, ENVOY_INVERTERS_PASSWORD="wrong").text(INVERTERS)


@pytest.mark.parametrize(
    ("firmware", "words"),
    [
        ("D5.0.62", "firmware D5.0.62 needs the installer's password: set ENVOY_PASSWORD in .env"),
        ("D8.3.6086", "firmware D8.3.6086: this firmware needs a token: set ENPHASE_EMAIL and ENPHASE_PASSWORD"),
    ],
)
def test_nothing_to_log_in_with(envoy: SimulatedEnvoy, firmware: str, words: str) -> None:
    """Without the kind of login that the firmware needs, Refused says what to put into .env."""
    envoy.upgrade(firmware)
    with pytest.raises(Refused, match=re.escape(words)):
        client_at(envoy.host, ENVOY_PASSWORD="").text(INVERTERS)


@pytest.mark.parametrize("challenge", ["\xfe\xac?\xff", 'Digest qop="auth"', 'Digest realm="r", nonce="n", qop="new"'])
def test_garbage_challenge(envoy: SimulatedEnvoy, challenge: str) -> None:
    """A 401 without a usable challenge means bad credentials (R3.9.36)."""
    envoy.answers[INVERTERS] = Answer(401, headers={"WWW-Authenticate": challenge})
    with pytest.raises(Refused, match=r"refuses user installer \(401\)"):
        client_at(envoy.host).text(INVERTERS)


def test_reset_after_401(envoy: SimulatedEnvoy) -> None:
    """R/D3.18 resets a kept connection after its 401 (HA 126162), so the question is repeated on a new one."""
    envoy.reset_after_401 = True
    polling = client_at(envoy.host)
    for _ in range(2):
        assert json.loads(polling.text(INVERTERS)) == envoy.inverters


def test_stale_nonce(envoy: SimulatedEnvoy) -> None:
    """A nonce that goes stale is replaced by the one of the next challenge."""
    envoy.digest.nonce_uses = 2
    polling = client_at(envoy.host)
    for _ in range(7):
        assert json.loads(polling.text(INVERTERS)) == envoy.inverters
    assert [status for path, status in asked(envoy) if path == INVERTERS] == [401, 200, 200] * 3 + [401, 200]


# --- From firmware 7 on: a token


def test_one_session(envoy: SimulatedEnvoy) -> None:
    """One session, its cookie and one connection serve all polls; a gateway with too many sessions answers 503."""
    envoy.upgrade("D7.6.175")
    envoy.tokens.max_sessions = 1
    token = token_for(envoy)
    first = client_at(f"https://{envoy.host}", ENVOY_TOKEN=token)
    first.text(INVERTERS)
    envoy.tokens.refused.add(token)  # from now on its session alone lets it in
    for _ in range(5):
        assert json.loads(first.text(INVERTERS)) == envoy.inverters
        first.text(REPORTS)
    assert [path for path, _ in asked(envoy)].count(CHECK) == 1
    assert envoy.connections == 2  # one for /info
    with pytest.raises(Lost, match="/auth/check_jwt answers 503"):
        client_at(envoy.host, ENVOY_TOKEN=token_for(envoy)).text(INVERTERS)


@pytest.mark.parametrize(
    ("path", "status", "kind", "words"),
    [
        (STREAM, 503, Lost, "/stream/meter answers 503"),
        (STREAM, 404, NotFound, "/stream/meter answers 404"),
        (STREAM, 401, NotFound, "firmware D8.3.6086 refuses /stream/meter to this token (401)"),
        (METERS, 403, NotFound, "(403): does ENPHASE_EMAIL, or whoever got ENVOY_TOKEN, own this gateway?"),
    ],
)
def test_a_failure_costs_no_login(
    envoy: SimulatedEnvoy, path: str, status: int, kind: type[Exception], words: str
) -> None:
    """If a page fails, others can be read in the same session, because too many sessions are answered 503."""
    envoy.upgrade("D8.3.6086")
    envoy.answers[path] = Answer(status)
    one = client_at(envoy.host, ENVOY_TOKEN=token_for(envoy))
    for _ in range(3):
        with pytest.raises(kind, match=re.escape(words) + "$"):
            (follow if path == STREAM else page)(one, 1)
    assert json.loads(one.text(REPORTS)) == envoy.reports
    assert asked(envoy).count((CHECK, 200)) == 1
    assert asked(envoy).count(("/info", 200)) == (4 if kind is Lost else 1)  # after Lost it may be another gateway


def test_restarted_gateway(envoy: SimulatedEnvoy) -> None:
    """A gateway that restarts cuts the kept connection, yet the next poll succeeds."""
    envoy.upgrade("D7.6.175")
    polling = client_at(envoy.host, ENVOY_TOKEN=token_for(envoy))
    polling.text(INVERTERS)
    envoy.upgrade("D7.6.175")
    assert json.loads(polling.text(INVERTERS)) == envoy.inverters


def test_cookies_do_not_pile_up(envoy: SimulatedEnvoy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that sets another cookie with each answer gets only a few of them back."""
    envoy.upgrade("D8.3.6086")
    one = client_at(envoy.host, ENVOY_TOKEN=token_for(envoy))
    for number in range(30):
        envoy.answers[INVERTERS] = Answer(200, "[]", headers={"Set-Cookie": f"cookie{number}=x; Path=/"})
        one.text(INVERTERS)
    envoy.answers.clear()
    user = Mock(wraps=envoy.tokens.user)
    monkeypatch.setattr(envoy.tokens, "user", user)
    one.text(INVERTERS)
    _, cookies, _ = user.call_args.args
    assert "cookie29=x" in cookies
    assert len(cookies.split(";")) <= 8


def test_token_goes_to_no_other_host(envoy: SimulatedEnvoy, certificate: Certificate) -> None:
    """A redirect to another host is not followed, with the token or without."""
    envoy.upgrade("D8.3.6086")
    with SimulatedEnvoy("D8.3.6086", tls=certificate.context) as elsewhere:
        for path in ("/info", CHECK, METERS, STREAM):
            envoy.answers = {path: Answer(302, headers={"Location": f"https://{elsewhere.host}{path}"})}
            one = client_at(envoy.host, ENVOY_TOKEN=token_for(envoy))
            with pytest.raises(Lost, match=f"{path} answers 302"):
                (follow if path == STREAM else page)(one, 1)
        assert elsewhere.connections == 0


def test_no_token_over_plain_http(envoy: SimulatedEnvoy) -> None:
    """A gateway that wants a token over plain http does not get it, even if https fails."""
    info = INFO.replace("</envoy_info>", "<web-tokens>true</web-tokens></envoy_info>")
    envoy.answers = {"/info": Answer(200, info, "text/xml")}
    with pytest.raises(Lost, match="needs a token, which is sent over https only: leave http:// out"):
        client_at(envoy.host, ENVOY_TOKEN=token_for(envoy)).text(REPORTS)
    assert asked(envoy) == [("/info", 200)]


def with_account(envoy: SimulatedEnvoy, enlighten: Enlighten, wall: Time) -> Gateway:
    """Return a client with an account at Enphase and this wall clock."""
    known = settings_of(ENVOY_HOST=envoy.host, **enlighten.settings())
    return Gateway(known, Tokens(known, None, wall))


def test_a_refused_token_is_replaced(
    envoy: SimulatedEnvoy, enlighten: Enlighten, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetched token that the gateway refuses is replaced, at most once in ten minutes."""
    monkeypatch.setattr(client, "NO_NEW_LOGIN_S", 0.0)
    envoy.upgrade("D8.3.6086")
    wall = Time(time.time())
    polling = with_account(envoy, enlighten, wall)
    polling.text(INVERTERS)
    for _ in range(3):
        envoy.tokens.refused |= set(enlighten.tokens)
        envoy.tokens.end_sessions()
        with pytest.raises(
            Refused, match=r"Enphase gave: does ENPHASE_EMAIL own this gateway\? \(Enphase was asked 0 s ago\)"
        ):
            polling.text(INVERTERS)
        wall.now += LOGIN_EVERY_S
        polling.text(INVERTERS)
    assert enlighten.logins == [200] * 4


def test_renewed_while_polling(envoy: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """A token that is due is renewed between two polls; until Enphase may be asked again, the old one stays in use."""
    envoy.upgrade("D8.3.6086")
    wall = Time(time.time())
    enlighten.lifetime = 29 * 86_400.0
    polling = with_account(envoy, enlighten, wall)
    for _ in range(3):
        polling.text(INVERTERS)
    assert (len(enlighten.tokens), asked(envoy).count((CHECK, 200))) == (1, 1)
    enlighten.lifetime = 365 * 86_400.0
    wall.now += LOGIN_EVERY_S
    for _ in range(3):
        polling.text(INVERTERS)
    assert (len(enlighten.tokens), asked(envoy).count((CHECK, 200))) == (2, 2)


# --- Certificates


def test_certificate(
    envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A self-signed certificate is accepted; its SHA-256 is logged once, and again when the certificate changes."""
    caplog.set_level("INFO")
    envoy.upgrade("D8.3.6086")
    polling = client_at(envoy.host, ENVOY_TOKEN=token_for(envoy))
    for _ in range(2):
        polling.text(INVERTERS)
        polling.identify()
    other = other_certificate(envoy, tmp_path)
    polling.identify()
    logged = [record.getMessage() for record in caplog.records if "SHA-256" in record.getMessage()]
    assert logged == [f"gateway: its certificate has SHA-256 {digest}" for digest in (certificate.sha256, other)]


def test_pin(envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path) -> None:
    """With ENVOY_CERT_SHA256 only that certificate is accepted; another is Refused, naming old, new and the cure."""
    envoy.upgrade("D8.3.6086")
    spelled = ":".join(re.findall("..", certificate.sha256.upper()))
    polling = client_at(envoy.host, ENVOY_CERT_SHA256=spelled, ENVOY_TOKEN=token_for(envoy))
    polling.text(INVERTERS)
    new = other_certificate(envoy, tmp_path)
    before = asked(envoy)
    with pytest.raises(Refused) as raised:
        polling.text(INVERTERS)
    assert str(raised.value) == (
        f"https://{envoy.host}: its certificate is not the pinned one: ENVOY_CERT_SHA256 is {certificate.sha256}, "
        f"it is {new}. If the gateway was replaced or updated, set ENVOY_CERT_SHA256={new}"
    )
    assert asked(envoy) == before  # the token was not sent
    client_at(envoy.host, ENVOY_CERT_SHA256=new, ENVOY_TOKEN=token_for(envoy)).text(INVERTERS)


# --- The stream


@pytest.mark.parametrize("firmware", ["D5.0.62", "D8.3.6086"])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_stream_is_prompt(envoy: SimulatedEnvoy, firmware: str, *, chunked: bool) -> None:
    """What the gateway sends can be read at once, chunked or not, by http or https; the stream's end is Lost."""
    envoy.upgrade(firmware)
    envoy.chunked = chunked
    with client_at(envoy.host, ENVOY_TOKEN=token_for(envoy, "installer")).stream(10) as stream:
        envoy.wait_for_stream()
        for data in (b"d", f"ata: {THREE_PHASE_EVENT}\n\n".encode(), b"x" * 16384):
            envoy.emit_raw(data)
            got = b""
            while len(got) < len(data):
                got += next(stream)
            assert got == data
        envoy.end_streams()
        with pytest.raises(Lost, match=r"^the stream has ended$"):
            next(stream)


def test_the_stream_is_closed(envoy: SimulatedEnvoy) -> None:
    """The stream is closed as soon as it is no longer read, because several at once upset the gateway."""
    with client_at(envoy.host).stream(10):
        envoy.wait_for_stream()
    envoy.wait_for(lambda: envoy.open_streams == 0)


# --- Whatever else may answer

OK = b"HTTP/1.1 200 OK\r\n"
NOT_HTTP, CLOSED = "answers with something that is not HTTP", "closed the connection"
CHALLENGE = b'HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm="r", nonce="n"\r\n\r\n'
ANSWERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", CLOSED),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", NOT_HTTP),
    "long head": (OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n", NOT_HTTP),
    "charset": (OK + b"Content-Type: multipart/x; boundary*=a\0b''c\r\n\r\n", NOT_HTTP),
    "two lengths": (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", NOT_HTTP),
    "length of 20 digits": (OK + b"Content-Length: " + b"9" * 20 + b"\r\n\r\nx", CLOSED),
    "cut": (OK + b"Content-Length: 9\r\n\r\nx", CLOSED),
    "cut in a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nx", CLOSED),
    "chunk of 20 digits": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\nx", CLOSED),
    "chunk of minus 5": (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nx", f"{CLOSED}|{NOT_HTTP}"),
    "redirect": (
        b"HTTP/1.1 302 X\r\nLocation: http://[::1\x1b\r\n\r\n" + b"x" * 2_000_000,
        r"answers 302, a redirect to http://\[::1\?$",
    ),
    "endless 401": (CHALLENGE + b"x" * 2_000_000, "answers without end"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_failure_is_told_in_words(name: str) -> None:
    """Closed, cut, garbage, numbers of 20 digits: each is Lost, with the URL and plain words for the owner."""
    answer, words = ANSWERS[name]
    with Scripted(answer) as scripted:
        for ask in (page, follow):
            with pytest.raises(Lost, match=f"^{scripted.url}.* ({words})"):
                ask(client_at(scripted.url), 5)


@pytest.mark.parametrize("begin", [b"", OK + b"Content-Length: 2\r\n\r\nx"])
def test_silence(begin: bytes) -> None:
    """A gateway that stops in mid-answer is Lost after the time that the caller allows."""

    def stall(connection: socket.socket) -> None:
        connection.sendall(begin)
        select.select([connection], [], [], 5)

    with Scripted(stall) as scripted:
        start = time.monotonic()
        for ask in (page, follow):
            with pytest.raises(Lost, match="does not answer"):
                ask(client_at(scripted.url), 0.3)
        assert time.monotonic() - start < 3


def test_who_does_not_speak_tls() -> None:
    """A server that answers a TLS greeting in plain HTTP is Lost, in plain words."""
    words = "does not speak TLS as it should"
    with Scripted(b"HTTP/1.1 400 Bad\r\n\r\n") as scripted, pytest.raises(Lost, match=words):
        client_at(scripted.url.replace("http", "https")).identify()


def test_an_answer_is_bounded() -> None:
    """A body of more than 1 MiB is not read to its end."""

    def flood(connection: socket.socket) -> None:
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with Scripted(flood) as scripted, pytest.raises(Lost, match=f"^{scripted.url}{METERS} answers without end$"):
        client_at(scripted.url).text(METERS)


HEADS = st.lists(
    st.sampled_from(
        [b"Content-Length: ", b"Transfer-Encoding: chunked", b"Content-Type: text/html; charset", b"Location: "]
    )
    | st.sampled_from([b"WWW-Authenticate: Digest ", b"Set-Cookie: sessionId=", b"Connection: ", b"Content-Encoding: "])
    | st.sampled_from([b'realm="r"', b'nonce="n"', b", ", b"; ", b"\r\n", b"5", b"gzip", b"://", b"[", b"max-age=9"])
    | st.binary(max_size=8),
    max_size=12,
)
STATUS = st.sampled_from([b"200", b"401", b"302", b"404", b"503", b"100", b"204"])


@settings(max_examples=100)
@given(STATUS, HEADS, st.binary(max_size=40), st.sampled_from([page, follow]))
def test_nothing_else_is_ever_raised(status: bytes, head: list[bytes], body: bytes, ask: Ask) -> None:
    """Whatever a server sends, the result is an answer, or else Lost, Refused or NotFound in one printable line."""
    with Scripted(b"HTTP/1.1 " + status + b" X\r\n" + b"".join(head) + b"\r\n\r\n" + body) as scripted:
        said = "an answer"
        try:
            ask(client_at(scripted.url), 0.2)
        except (Lost, Refused, NotFound) as trouble:
            said = str(trouble)
    assert said.isprintable()
    assert not re.search(r"Error|Errno|object at|requests|urllib3", said)
