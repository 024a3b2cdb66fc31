"""The gateway's client on sockets: which gateway is there, each way of logging in, and whatever else may answer."""

import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
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
from tests.enlighten import LOGIN_PATH, Enlighten
from tests.gateways import INFO, Scripted, asked, client_of, settings_of

CHECK = "/auth/check_jwt"
OURS = (Lost, Refused, NotFound)


@pytest.fixture
def envoy(certificate: Certificate) -> Iterator[SimulatedEnvoy]:
    """Serve a gateway of firmware 5 that can be upgraded."""
    with SimulatedEnvoy(tls=certificate.context) as envoy:
        yield envoy


@pytest.fixture
def enlighten() -> Iterator[Enlighten]:
    """Serve a simulated Enphase."""
    with Enlighten() as enlighten:
        yield enlighten


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts to half a second."""
    for name in ("CONNECT_S", "ANSWER_S"):
        monkeypatch.setattr(client, name, 0.5)


def token_for(envoy: SimulatedEnvoy, user: str = "owner") -> str:
    """Make a good token."""
    return make_token(envoy.serial, time.time() + 86_400, user)


def opens(gateway: Gateway) -> None:
    """Open the stream and close it. Raises as the client does."""
    with gateway.stream(1.0):
        pass


def follow(gateway: Gateway, silence: float) -> None:
    """Follow the stream to its end. Raises as the client does."""
    with gateway.stream(silence) as stream:
        list(stream)


# --- Which gateway is there


@pytest.mark.parametrize("content_type", ["text/xml", "application/json", None])
@pytest.mark.parametrize("firmware", fixtures.FIRMWARES)
def test_info(envoy: SimulatedEnvoy, firmware: str, content_type: str | None) -> None:
    """/info is read whatever its Content-Type, and says how to log in and whether there are meters."""
    fixtures.load(envoy, firmware)
    envoy.answers["/info"] = Answer(200, envoy.info, content_type)
    found = client_of(envoy).identify()
    secure = int(firmware[1]) >= 7
    expected = (f"http{'s' * secure}://{envoy.host}", envoy.serial, firmware, secure, envoy.metered)
    assert (found.url, found.serial, found.firmware, found.needs_token, found.metered) == expected


@pytest.mark.parametrize(
    ("name", "metered"), [("legacy", False), ("no_inverters", False), ("empty_reports", True), ("one_line", True)]
)
def test_whether_there_are_meters(envoy: SimulatedEnvoy, name: str, *, metered: bool) -> None:
    """<imeter> may be true, false, or missing on firmware 3."""
    fixtures.load_site(envoy, name)
    assert client_of(envoy).identify().metered is metered


@pytest.mark.parametrize(
    ("info", "ahead"),
    [("<time>{now}</time>", 0), ("<time>{later}</time>", 7200), ("", None), ("<time>1e17</time>", None)],
)
def test_its_clock(info: str, ahead: float | None) -> None:
    """The gateway's clock, which dates the inverters' reports, is taken from /info."""
    now = int(time.time())
    text = f"<envoy_info>{info.format(now=now, later=now + 7200)}<device><sn>122112345678</sn></device></envoy_info>"
    assert read_info("http://envoy", text).ahead == (None if ahead is None else pytest.approx(ahead, abs=3))


NOT_A_GATEWAY = "/info is not a gateway's: is ENVOY_HOST right?"
BOMB = (
    "<!DOCTYPE a [" + "".join(f'<!ENTITY e{n} "&e{n - 1};">' for n in range(1000)) + "]><envoy_info>&e999;</envoy_info>"
)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ("<html><p>busy</html>", NOT_A_GATEWAY),
        ("<!DOCTYPE html><html/>", NOT_A_GATEWAY),
        (BOMB, NOT_A_GATEWAY),
        ("<a>" * 20_000, NOT_A_GATEWAY),
        ("<a>" * 9000 + "</a>" * 9000, "/info gives no serial number"),
        ("", NOT_A_GATEWAY),
        ("<envoy_info/>", "/info gives no serial number: is ENVOY_HOST right?"),
        ("<envoy_info><device><sn>12\x1b[31m</sn></device></envoy_info>", NOT_A_GATEWAY),
        ("<envoy_info><device><sn>" + "1" * 99 + "</sn></device></envoy_info>", "/info gives no serial number"),
        (" " * 70_000, "/info answers without end"),
    ],
    ids=lambda text: text[:25],
)
def test_bad_info(envoy: SimulatedEnvoy, info: str, words: str) -> None:
    """An /info that is not a gateway's is reported as such, and not parsed if it has a DOCTYPE or exceeds 64 KiB."""
    envoy.answers["/info"] = Answer(200, info)
    with pytest.raises(Lost, match=re.escape(words)):
        client_of(envoy).identify()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("envoy.local", ["https://envoy.local", "http://envoy.local"]),
        ("envoy.local:443", ["https://envoy.local:443", "http://envoy.local:443"]),
        ("envoy.local:8080", ["http://envoy.local:8080", "https://envoy.local:8080"]),
        ("[fe80::1]", ["https://[fe80::1]", "http://[fe80::1]"]),
        ("[fe80::1]:8080", ["http://[fe80::1]:8080", "https://[fe80::1]:8080"]),
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
    known = settings_of(ENVOY_HOST=host)
    with pytest.raises(Lost) as raised:
        Gateway(known, Tokens(known, None)).text("/x")
    assert str(raised.value) == words


def test_a_name_that_is_lost(envoy: SimulatedEnvoy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that can no longer be resolved when the next page is asked for is reported like an unknown one."""
    one = client_of(envoy)
    one.text(INVERTERS)
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=socket.gaierror(socket.EAI_AGAIN, "no")))
    with pytest.raises(Lost, match=f"^{envoy.host} cannot be resolved: is ENVOY_HOST right"):
        one.text(INVERTERS)


def test_redirected_to_https(envoy: SimulatedEnvoy) -> None:
    """D7 to D8.2 redirect http to https://localhost: the client does not follow, but asks the same host by https."""
    envoy.upgrade("D7.0.88")
    envoy.redirects = True
    assert client_of(envoy).identify().url == f"https://{envoy.host}"
    assert asked(envoy) == [("/info", 301), ("/info", 200)]


def test_another_gateway(envoy: SimulatedEnvoy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each change of the serial number, since the last run or during this one, is one WARNING."""
    for serial in ("122100000001", "122100000002", "122100000002"):
        envoy.serial = serial
        one = client_of(envoy, tmp_path)
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
        client_of(envoy, ENVOY_SERIAL="122100000000").text(INVERTERS)
    assert asked(envoy) == [("/info", 200)]
    assert client_of(envoy, ENVOY_SERIAL=envoy.serial).text(INVERTERS)


# --- Below firmware 7: a password


def test_digest(envoy: SimulatedEnvoy) -> None:
    """The installer reads the stream; user envoy, with the serial number's last six digits, reads the inverters."""
    assert json.loads(client_of(envoy).text(INVERTERS)) == envoy.inverters
    assert json.loads(client_of(envoy, inverters=True).text(INVERTERS)) == envoy.inverters
    opens(client_of(envoy))
    assert {request.user for request in envoy.requests} == {None, "installer", "envoy"}


def test_wrong_password(envoy: SimulatedEnvoy) -> None:
    """A wrong password is Refused with the cure, after at most two questions; each attempt asks /info again."""
    one = client_of(envoy, ENVOY_PASSWORD="wrong")
    cure = r"firmware D5.0.62, refuses user installer \(401\): are ENVOY_USER and ENVOY_PASSWORD right\?$"
    for attempt in (1, 2):
        with pytest.raises(Refused, match=cure):
            one.text(INVERTERS)
        assert asked(envoy) == [("/info", 200), (INVERTERS, 401), (INVERTERS, 401)] * attempt
    with pytest.raises(Refused, match="are ENVOY_INVERTERS_USER and ENVOY_INVERTERS_PASSWORD right"):
        client_of(envoy, inverters=True, ENVOY_INVERTERS_PASSWORD="wrong").text(INVERTERS)


def test_no_password(envoy: SimulatedEnvoy) -> None:
    """Firmware below 7 without ENVOY_PASSWORD is Refused in words that say what to put where."""
    with pytest.raises(
        Refused, match=r"firmware D5\.0\.62 needs the installer's password: set ENVOY_PASSWORD in \.env"
    ):
        client_of(envoy, ENVOY_PASSWORD="").text(INVERTERS)


@pytest.mark.parametrize(
    "challenge",
    [
        "\xfe\xac?\xff",
        'Digest qop="auth"',
        "Digest",
        "",
        'Digest realm="r", nonce="n", qop="auth-int"',
        'Digest realm="r", nonce="n", algorithm=NEW',
        "Basic realm=x",
    ],
)
def test_garbage_challenge(envoy: SimulatedEnvoy, challenge: str) -> None:
    """A 401 without a usable challenge means bad credentials (R3.9.36)."""
    envoy.answers[INVERTERS] = Answer(401, headers={"WWW-Authenticate": challenge} if challenge else {})
    with pytest.raises(Refused, match=r"refuses user installer \(401\)"):
        client_of(envoy).text(INVERTERS)


def test_reset_after_401(envoy: SimulatedEnvoy) -> None:
    """R/D3.18 resets a kept connection after its 401 (HA 126162), so the question is repeated on a new one."""
    envoy.reset_after_401 = True
    polling = client_of(envoy)
    for _ in range(2):
        assert json.loads(polling.text(INVERTERS)) == envoy.inverters


def test_stale_nonce(envoy: SimulatedEnvoy) -> None:
    """A nonce that goes stale is replaced by the one of the next challenge."""
    envoy.digest.nonce_uses = 2
    polling = client_of(envoy)
    for _ in range(7):
        assert json.loads(polling.text(INVERTERS)) == envoy.inverters
    assert [status for path, status in asked(envoy) if path == INVERTERS] == [401, 200, 200] * 3 + [401, 200]


# --- From firmware 7 on: a token


def test_upgrade_between_two_questions(envoy: SimulatedEnvoy) -> None:
    """After a gateway goes from D5 to D8, the second attempt at the latest reads it again."""
    one = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
    one.text(INVERTERS)
    envoy.upgrade("D8.3.6086")
    with suppress(Lost):
        one.text(INVERTERS)
    assert json.loads(one.text(INVERTERS)) == envoy.inverters


def test_one_session(envoy: SimulatedEnvoy) -> None:
    """One session, its cookie and one connection serve all polls; a gateway with too many sessions answers 503."""
    envoy.upgrade("D7.6.175")
    envoy.tokens.max_sessions = 1
    token = token_for(envoy)
    first = client_of(envoy, ENVOY_HOST=f"https://{envoy.host}", ENVOY_TOKEN=token)
    first.text(INVERTERS)
    envoy.tokens.refused.add(token)  # from now on its session alone lets it in
    for _ in range(5):
        assert json.loads(first.text(INVERTERS)) == envoy.inverters
        first.text(REPORTS)
    assert [path for path, _ in asked(envoy)].count(CHECK) == 1
    assert envoy.connections == 2  # one for /info
    with pytest.raises(Lost, match="/auth/check_jwt answers 503"):
        client_of(envoy, ENVOY_TOKEN=token_for(envoy)).text(INVERTERS)


def test_a_failure_costs_no_login(envoy: SimulatedEnvoy) -> None:
    """After each Lost /info is asked again, but the session is kept, because too many sessions are answered 503."""
    envoy.upgrade("D8.3.6086")
    one = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
    for status in (503, 404, 401):
        envoy.answers[STREAM] = Answer(status)
        for _ in range(5):
            with pytest.raises(Lost if status == 503 else NotFound):
                opens(one)
    assert asked(envoy).count((CHECK, 200)) == 1
    assert asked(envoy).count(("/info", 200)) == 6


def test_restarted_gateway(envoy: SimulatedEnvoy) -> None:
    """A gateway that restarts forgets its sessions and cuts the kept connection, yet the next poll succeeds."""
    envoy.upgrade("D7.6.175")
    polling = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
    polling.text(INVERTERS)
    envoy.upgrade("D7.6.175")
    assert json.loads(polling.text(INVERTERS)) == envoy.inverters


def test_cookies_do_not_pile_up(envoy: SimulatedEnvoy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that sets another cookie with each answer gets only a few of them back."""
    envoy.upgrade("D8.3.6086")
    one = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
    for number in range(30):
        envoy.answers[INVERTERS] = Answer(200, "[]", headers={"Set-Cookie": f"cookie{number}=x; Path=/"})
        one.text(INVERTERS)
    envoy.answers.clear()
    sent: list[str] = []
    check = envoy.tokens.user

    def user(authorization: str, cookie: str, serial: str) -> str | None:
        sent.append(cookie)
        return check(authorization, cookie, serial)

    monkeypatch.setattr(envoy.tokens, "user", user)
    one.text(INVERTERS)
    assert "cookie29=x" in sent[0]
    assert len(sent[0].split(";")) <= 8


def test_token_goes_to_no_other_host(envoy: SimulatedEnvoy, certificate: Certificate) -> None:
    """A redirect to another host is not followed, with the token or without."""
    envoy.upgrade("D8.3.6086")
    with SimulatedEnvoy("D8.3.6086", tls=certificate.context) as elsewhere:
        for path in ("/info", CHECK, REPORTS, STREAM):
            envoy.answers = {path: Answer(302, headers={"Location": f"https://{elsewhere.host}{path}"})}
            one = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
            with pytest.raises(Lost, match=f"{path} answers 302"):
                opens(one) if path == STREAM else one.text(REPORTS)
        assert elsewhere.connections == 0


def test_no_token_over_plain_http(envoy: SimulatedEnvoy) -> None:
    """A gateway that wants a token over plain http does not get it, even if https fails."""
    envoy.info = site = INFO.decode().replace("</envoy_info>", "<web-tokens>true</web-tokens></envoy_info>")
    assert envoy.firmware in site
    with pytest.raises(Lost, match="needs a token, which is sent over https only: leave http:// out"):
        client_of(envoy, ENVOY_TOKEN=token_for(envoy)).text(REPORTS)
    assert {request.path for request in envoy.requests} == {"/info"}


def test_no_token(envoy: SimulatedEnvoy) -> None:
    """Where no token can be had, Refused says what to put into .env."""
    envoy.upgrade("D8.3.6086")
    with pytest.raises(
        Refused, match=r"firmware D8\.3\.6086: this firmware needs a token: set ENPHASE_EMAIL and ENPHASE_PA"
    ):
        client_of(envoy).text(INVERTERS)


def test_pasted_token_is_tried_again(envoy: SimulatedEnvoy) -> None:
    """A gateway that refused a good token while it was starting gets it again at the next attempt."""
    envoy.upgrade("D7.6.175")
    token = token_for(envoy)
    one = client_of(envoy, ENVOY_TOKEN=token)
    envoy.tokens.refused.add(token)
    for _ in range(2):
        with pytest.raises(Refused, match="the gateway refuses ENVOY_TOKEN: set ENPHASE_EMAIL"):
            one.text(REPORTS)
    envoy.tokens.refused.clear()
    assert "lines" in one.text(REPORTS)


def test_a_clock_that_is_ahead_costs_no_token(envoy: SimulatedEnvoy, enlighten: Enlighten, tmp_path: Path) -> None:
    """With a clock two years ahead a token is still tried, even by a new process that cannot get another."""
    envoy.upgrade("D8.3.6086")
    known = settings_of(ENVOY_HOST=envoy.host, **enlighten.settings())
    Gateway(known, Tokens(known, tmp_path)).text(INVERTERS)
    enlighten.answers[LOGIN_PATH] = (503, "")
    late = Gateway(known, Tokens(known, tmp_path, lambda: time.time() + 2 * 365 * 86_400))
    assert json.loads(late.text(INVERTERS)) == envoy.inverters
    pasted = settings_of(ENVOY_HOST=envoy.host, ENVOY_TOKEN=token_for(envoy))
    late = Gateway(pasted, Tokens(pasted, None, lambda: time.time() + 2 * 365 * 86_400))
    assert json.loads(late.text(INVERTERS)) == envoy.inverters


def test_a_refused_token_is_replaced(
    envoy: SimulatedEnvoy, enlighten: Enlighten, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetched token that the gateway refuses is replaced, at most once in ten minutes."""
    monkeypatch.setattr(client, "NO_NEW_LOGIN_S", 0.0)
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    known = settings_of(ENVOY_HOST=envoy.host, **enlighten.settings())
    polling = Gateway(known, Tokens(known, None, lambda: now[0]))
    polling.text(INVERTERS)
    for _ in range(3):
        envoy.tokens.refused |= set(enlighten.tokens)
        envoy.tokens.end_sessions()
        with pytest.raises(Refused, match=r"refuses the token that Enphase gave \(Enphase was asked 0 s ago\)"):
            polling.text(INVERTERS)
        now[0] += LOGIN_EVERY_S
        polling.text(INVERTERS)
    assert enlighten.logins == [200] * 4


def test_renewed_while_polling(envoy: SimulatedEnvoy, enlighten: Enlighten) -> None:
    """A token that is due is renewed between two polls; until Enphase may be asked again, the old one stays in use."""
    envoy.upgrade("D8.3.6086")
    now = [time.time()]
    enlighten.lifetime = 29 * 86_400.0
    known = settings_of(ENVOY_HOST=envoy.host, **enlighten.settings())
    polling = Gateway(known, Tokens(known, None, lambda: now[0]))
    for _ in range(3):
        polling.text(INVERTERS)
    assert (len(enlighten.tokens), asked(envoy).count((CHECK, 200))) == (1, 1)
    enlighten.lifetime = 365 * 86_400.0
    now[0] += LOGIN_EVERY_S
    for _ in range(3):
        polling.text(INVERTERS)
    assert (len(enlighten.tokens), asked(envoy).count((CHECK, 200))) == (2, 2)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_not_found(envoy: SimulatedEnvoy, status: int) -> None:
    """A page that a good token does not open is NotFound, and other pages can still be read."""
    envoy.upgrade("D8.3.6086")
    envoy.answers[STREAM] = Answer(status)
    one = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
    with pytest.raises(NotFound, match=rf"answers 404|refuses /stream/meter to this token .{status}."):
        opens(one)
    assert asked(envoy) == [("/info", 200), (CHECK, 200), (STREAM, status)]
    assert json.loads(one.text(REPORTS)) == envoy.reports


# --- Certificates


def test_certificate(
    envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A self-signed certificate is accepted; its SHA-256 is logged once, and again when the certificate changes."""
    caplog.set_level("INFO")
    envoy.upgrade("D8.3.6086")
    polling = client_of(envoy, ENVOY_TOKEN=token_for(envoy))
    for _ in range(2):
        polling.text(INVERTERS)
        polling.identify()
    envoy.tls, other = (made := self_signed(envoy.serial, tmp_path)).context, made.sha256
    envoy.upgrade("D8.3.6086")
    polling.identify()
    logged = [record.getMessage() for record in caplog.records if "SHA-256" in record.getMessage()]
    assert logged == [f"gateway: its certificate has SHA-256 {digest}" for digest in (certificate.sha256, other)]


def test_pin(envoy: SimulatedEnvoy, certificate: Certificate, tmp_path: Path) -> None:
    """With ENVOY_CERT_SHA256 only that certificate is accepted; another is Refused, naming old, new and the cure."""
    envoy.upgrade("D8.3.6086")
    spelled = ":".join(re.findall("..", certificate.sha256.upper()))
    polling = client_of(envoy, ENVOY_CERT_SHA256=spelled, ENVOY_TOKEN=token_for(envoy))
    polling.text(INVERTERS)
    envoy.tls, new = (made := self_signed(envoy.serial, tmp_path)).context, made.sha256
    envoy.upgrade("D8.3.6086")
    before = asked(envoy)
    with pytest.raises(Refused) as raised:
        polling.text(INVERTERS)
    assert str(raised.value) == (
        f"https://{envoy.host}: its certificate is not the pinned one: ENVOY_CERT_SHA256 is {certificate.sha256}, "
        f"it is {new}. If the gateway was replaced or updated, set ENVOY_CERT_SHA256={new}"
    )
    assert asked(envoy) == before  # the token was not sent
    client_of(envoy, ENVOY_CERT_SHA256=new, ENVOY_TOKEN=token_for(envoy)).text(INVERTERS)


# --- The stream


@pytest.mark.parametrize("firmware", ["D5.0.62", "D8.3.6086"])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_stream_is_prompt(envoy: SimulatedEnvoy, firmware: str, *, chunked: bool) -> None:
    """What the gateway sends can be read at once, chunked or not, by http or https; the stream's end is Lost."""
    envoy.upgrade(firmware)
    envoy.chunked = chunked
    with client_of(envoy, ENVOY_TOKEN=token_for(envoy, "installer")).stream(10) as stream:
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
    with client_of(envoy).stream(10):
        envoy.wait_for_stream()
    envoy.wait_for(lambda: envoy.open_streams == 0)


# --- Whatever else may answer

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "closed the connection"),
    "garbage": (b"\x00\xff\xfe\r\n\r\n", "answers with something that is not HTTP"),
    "ssh": (b"SSH-2.0-OpenSSH_9.2\r\n", "answers with something that is not HTTP"),
    "200 heads": (OK + b"X: y\r\n" * 200 + b"\r\n", "answers with something that is not HTTP"),
    "long head": (OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n", "answers with something that is not HTTP"),
    "charset": (
        OK + b"Content-Type: multipart/x; boundary*=a\0b''c\r\n\r\n",
        "answers with something that is not HTTP",
    ),
    "length of 20 digits": (OK + b"Content-Length: " + b"9" * 20 + b"\r\n\r\nx", "closed the connection"),
    "two lengths": (
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "answers with something that is not HTTP",
    ),
    "cut": (OK + b"Content-Length: 9\r\n\r\nx", "closed the connection"),
    "cut in a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\nx", "closed the connection"),
    "chunk of 20 digits": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\nx", "closed the connection"),
    "chunk of minus 5": (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nx", "closed the conn|not HTTP"),
    "chunk of letters": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx", "closed the connection"),
    "redirect": (
        b"HTTP/1.1 302 X\r\nLocation: http://[::1\x1b\r\n\r\n" + b"x" * 2_000_000,
        r"a redirect to http://\[::1\?",
    ),
    "status of 9 digits": (b"HTTP/1.1 999999999 OK\r\n\r\n", "answers with something that is not HTTP"),
    "101": (b"HTTP/1.1 101 Switch\r\n\r\n", "answers 101"),
    "503": (b"HTTP/1.1 503 Busy\r\n\r\n", "answers 503"),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 500, "closed the connection"),
    "endless 401": (
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Digest realm="r", nonce="n"\r\n\r\n' + b"x" * 2_000_000,
        "answers without end",
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_failure_is_told_in_words(name: str) -> None:
    """Closed, cut, garbage, numbers of 20 digits: each is Lost, with the URL and plain words for the owner."""
    answer, words = ANSWERS[name]
    with Scripted(answer) as scripted:
        for ask in (lambda one: one.text("/x"), lambda one: follow(one, 5)):
            one = Gateway(known := settings_of(ENVOY_HOST=scripted.url), Tokens(known, None))
            with pytest.raises(Lost, match=f"^{scripted.url}.* ({words})"):
                ask(one)


@pytest.mark.parametrize("begin", [b"", OK, OK + b"Content-Length: 2\r\n\r\nx", OK + b"\r\nx"])
def test_silence(begin: bytes) -> None:
    """A gateway that stops in mid-answer is Lost after the time that the caller allows."""

    def stall(client: socket.socket) -> None:
        client.sendall(begin)
        select.select([client], [], [], 5)

    with Scripted(stall) as scripted:
        one = Gateway(known := settings_of(ENVOY_HOST=scripted.url), Tokens(known, None))
        start = time.monotonic()
        with pytest.raises(Lost, match="does not answer"):
            one.text("/x", 0.3)
        with pytest.raises(Lost, match="does not answer"):
            follow(one, 0.3)
        assert time.monotonic() - start < 3


@pytest.mark.usefixtures("impatient")
def test_who_does_not_speak_tls() -> None:
    """A server that waits for more of a TLS greeting, or answers it in plain HTTP, is Lost, in plain words."""
    with Scripted(b"HTTP/1.1 400 Bad\r\n\r\n") as scripted, socket.create_server(("127.0.0.1", 0)) as silent:
        for url in (scripted.url, f"http://127.0.0.1:{silent.getsockname()[1]}"):
            known = settings_of(ENVOY_HOST=url.replace("http", "https"))
            with pytest.raises(Lost, match=r"does not speak TLS as it should|does not answer"):
                Gateway(known, Tokens(known, None)).identify()


def test_an_answer_is_bounded() -> None:
    """A body of more than 1 MiB is not read to its end."""
    ended = threading.Event()

    def flood(client: socket.socket) -> None:
        client.sendall(OK + b"\r\n")
        with suppress(OSError):
            while True:
                client.sendall(b"x" * 65536)
        ended.set()

    with Scripted(flood) as scripted:
        one = Gateway(known := settings_of(ENVOY_HOST=scripted.url), Tokens(known, None))
        with pytest.raises(Lost, match=f"^{scripted.url}/x answers without end$"):
            one.text("/x")
        assert ended.wait(10)


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


@settings(deadline=None, max_examples=100)
@given(STATUS, HEADS, st.binary(max_size=40), st.sampled_from(["text", "stream"]))
def test_nothing_else_is_ever_raised(status: bytes, head: list[bytes], body: bytes, how: str) -> None:
    """Whatever a server sends, the result is an answer, or else Lost, Refused or NotFound in one printable line."""
    with Scripted(b"HTTP/1.1 " + status + b" X\r\n" + b"".join(head) + b"\r\n\r\n" + body) as scripted:
        one = Gateway(known := settings_of(ENVOY_HOST=scripted.url), Tokens(known, None))
        said = "an answer"
        try:
            follow(one, 0.2) if how == "stream" else one.text(METERS, 0.2)
        except OURS as trouble:
            said = str(trouble)
    assert said.isprintable()
    assert not re.search(r"Error|Errno|object at|requests|urllib3", said)


@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["<envoy_info>", "<device>", "</device>", "</envoy_info>", "<sn>1</sn>", "<!", "DOCTYPE", "&#0;", "<a "]
        )
        | st.text(max_size=5)
    ).map("".join)
)
def test_any_info_is_read_or_lost(text: str) -> None:
    """read_info() returns an Info or raises ValueError, whatever the text."""
    with suppress(ValueError):
        assert isinstance(read_info("http://envoy", text), Info)
