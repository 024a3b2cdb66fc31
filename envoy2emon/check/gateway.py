"""The questions to the gateway: name, ports, firmware, login, meters, one reading, the inverters.

The questions put little load on it: one stream, closed at its first event, and one login for all of them. The advice to
switch the gateway off and on comes only after it has identified itself, because ENVOY_HOST may be another device.
"""

import socket
import time
from collections.abc import Generator, Iterator
from urllib.parse import urlsplit

from envoy2emon.check import readings
from envoy2emon.check.verdict import LOCAL_NAMES, Found, Verdict, fail, ok, sentences, warn
from envoy2emon.gateway.client import (
    ANSWER_S,
    CONNECT_S,
    INVERTERS,
    METERS,
    REPORTS,
    Gateway,
    Lost,
    NotFound,
    Refused,
)
from envoy2emon.gateway.info import Info, urls
from envoy2emon.gateway.meters import STREAM_OFF, Meter, parse_meters
from envoy2emon.gateway.readings import (
    BadReading,
    InverterReport,
    MeterReading,
    parse_event,
    parse_inverters,
    parse_reports,
)
from envoy2emon.gateway.sse import Decoder, LineTooLong
from envoy2emon.gateway.tokens import RENEW_OWNER_S, SHORT_LIVED_S, Tokens
from envoy2emon.outage import duration
from envoy2emon.settings import Settings

_NO_METERS = (
    f"this gateway has none, so only envoy2emon_inv has work to do. To switch the other daemon off: {STREAM_OFF}"
)
_NO_LIST = "To switch the daemon for them off: sudo systemctl disable --now envoy2emon_inv"
_AGAIN = "Wait five minutes and check again"
_OFF_AND_ON = f"{_AGAIN}, then switch the gateway off and on"


def ask(settings: Settings, tokens: Tokens, found: Found, patience: float) -> Iterator[Verdict]:
    """Ask the gateway all questions, and set what later ones need in `found`.

    patience: the longest wait for a reading, in seconds.
    """
    ways = list(_ways(settings.envoy_host))
    yield from ways
    if ways[-1].word == "FAIL":
        return
    gateway = Gateway(settings, tokens)
    try:
        info = gateway.identify()
    except Refused as trouble:
        yield fail("firmware", str(trouble))
        return
    except Lost as trouble:
        cure = f"Is ENVOY_HOST the gateway? If it is, it may be restarting. {_AGAIN}"
        if "://" in settings.envoy_host:
            cure = f"Leave http:// and https:// out of ENVOY_HOST, and both are tried. {cure}"
        yield fail("firmware", sentences(str(trouble), cure))
        return
    found.gateway_ahead, found.meters = info.ahead, info.metered
    yield _firmware(info)
    reading = None
    if info.metered:
        try:
            reading = yield from _meters(gateway, tokens, settings, found, patience)
        except Refused as trouble:
            yield fail("login", str(trouble))
            if info.needs_token:
                return
    else:
        yield warn("meters", _NO_METERS)
    # Below firmware 7 another user reads the inverters.
    theirs = gateway if info.needs_token else Gateway(settings, tokens, inverters=True)
    reports = yield from _inverters(theirs, info, found)
    if not info.metered and tokens.current:
        yield _login(tokens, settings)
    if reading:
        yield from readings.panels(reading, reports, time.time() + (info.ahead or 0.0))


def _ways(host: str) -> Iterator[Verdict]:
    """Look the name up and try the ports; a FAIL is always the last verdict."""
    places = [urlsplit(url) for url in urls(host)]
    name = places[0].hostname or ""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        avahi = f"; {LOCAL_NAMES}" if name.endswith(".local") else ""
        cure = "set ENVOY_HOST to the gateway's address, which your router shows"
        yield fail("name", f"{name} cannot be resolved: {cure}{avahi}")
        return
    addresses = ", ".join(sorted({str(address[0]) for *_, address in found}))
    yield ok("name", f"{name} is {addresses}" if addresses != name else f"{name} is an address")
    ports = {place.port or {"https": 443, "http": 80}[place.scheme]: place for place in places}
    states = {port: _state(name, port) for port in ports}
    text = ", ".join(f"{port} {state}" for port, state in states.items())
    if "is open" in states.values():
        yield ok("ports", text)
        return
    cure = "is the gateway on and in this network, and is ENVOY_HOST its address?"
    if len(ports) == 1:
        cure += " Without http:// and port in ENVOY_HOST 443 and 80 are tried: firmware 8.3 has closed 80"
    yield fail("ports", f"{text}: {cure}")


def _state(name: str, port: int) -> str:
    try:
        with socket.create_connection((name, port), CONNECT_S):
            return "is open"
    except ConnectionRefusedError:
        return "is closed"
    except TimeoutError:
        return "does not answer"
    except OSError:
        return "cannot be reached"


def _firmware(info: Info) -> Verdict:
    needs = "needs no password for the inverters"
    if info.needs_token:
        needs = "needs a token: ENPHASE_EMAIL and ENPHASE_PASSWORD, or ENVOY_TOKEN"
    elif info.metered:
        needs = "needs ENVOY_PASSWORD for the meters; the inverters' user has a default"
    return ok("firmware", f"{info.firmware} at {info.url}, serial number {info.serial}; it {needs}")


def _meters(
    gateway: Gateway, tokens: Tokens, settings: Settings, found: Found, patience: float
) -> Generator[Verdict, None, MeterReading | None]:
    """Log in, ask which meters there are, and take one reading. Raises Refused."""
    meters: list[Meter] | None = None
    try:
        meters = parse_meters(gateway.text(METERS, ANSWER_S))
    except (NotFound, BadReading):
        pass  # firmware 3 and some of 4 do not list them
    except Lost as trouble:
        yield fail("meters", f"{trouble}. {_OFF_AND_ON}")
        return None
    yield _login(tokens, settings)
    for meter in meters or ():
        yield ok("meters", meter.words())
    if meters == []:
        found.meters = False
        yield warn("meters", _NO_METERS)
        return None
    try:
        reading = yield from _reading(gateway, settings, patience)
    except (Lost, NotFound, BadReading) as trouble:
        yield fail("reading", sentences(str(trouble), _OFF_AND_ON))
        return None
    if reading:
        yield from readings.posted(reading, meters or [], settings)
    return reading


def _reading(gateway: Gateway, settings: Settings, patience: float) -> Generator[Verdict, None, MeterReading | None]:
    """Take one reading, as the daemon would. Raises Lost, Refused, NotFound, BadReading."""
    if settings.stream_source != "reports":
        try:
            with gateway.stream(patience) as stream:
                reading = _first_event(stream, patience)
        except NotFound as trouble:
            if settings.stream_source == "stream":
                yield fail("stream", f"{trouble}. Set STREAM_SOURCE=auto, and the meter reports are read instead")
                return None
            yield ok("stream", f"{trouble}; the meter reports, once a second, are read instead")
        else:
            yield ok("reading", f"from the stream: {readings.watts(reading)}")
            return reading
    _, reading = parse_reports(gateway.text(REPORTS, ANSWER_S), time.monotonic())
    yield ok("reading", f"from the meter reports: {readings.watts(reading)}")
    return reading


def _first_event(stream: Iterator[bytes], patience: float) -> MeterReading:
    """Return the stream's first reading, within `patience` s. Raises Lost."""
    decoder, bad = Decoder(), ""
    ends = time.monotonic() + patience
    for data in stream:
        now = time.monotonic()
        try:
            for text in decoder.feed(data):
                try:
                    return parse_event(text, now)
                except BadReading as trouble:
                    bad = f"; what it sends is {trouble}"
        except LineTooLong as trouble:
            raise Lost(f"the stream sends {trouble}") from None
        if now > ends:
            break
    raise Lost(f"the stream is open but sends no reading within {patience:.0f} s{bad}")


def _login(tokens: Tokens, settings: Settings) -> Verdict:
    """Report which login is accepted, and until when."""
    token = tokens.current
    if token is None:
        return ok("login", f"user {settings.envoy_user} is accepted for the meters")
    left = token.expires_at - time.time()
    text = f"the token is accepted, good until {token.expiry}"
    text += f": {duration(left)} left" if left > 0 else ", which is past: is this computer's clock right?"
    if settings.enphase_email:
        return ok("login", f"{text}, and renewed in time")
    if left < RENEW_OWNER_S:
        short = token.expires_at - token.issued_at <= SHORT_LIVED_S
        cure = f"set ENPHASE_EMAIL and ENPHASE_PASSWORD{'' if short else ', or get a new ENVOY_TOKEN before then'}"
        return warn("login", f"{text}. Nothing renews it: {cure}")
    return ok("login", text)


def _inverters(gateway: Gateway, info: Info, found: Found) -> Generator[Verdict, None, list[InverterReport]]:
    try:
        text = gateway.text(INVERTERS)
        if text.strip() == "[]":
            found.newest_report = 0
            yield warn("inverters", "the gateway lists none, as it sometimes does at night: check again by day")
            return []
        reports, skipped = parse_inverters(text)
    except NotFound as trouble:
        if "answers 404" in str(trouble):
            found.newest_report = 0
            yield warn("inverters", f"this gateway does not list its inverters ({trouble}). {_NO_LIST}")
        else:
            yield fail("inverters", str(trouble))
        return []
    except Refused as trouble:
        yield fail("login" if info.needs_token else "inverters", str(trouble))
        return []
    except BadReading as trouble:
        yield fail("inverters", f"the answer is {trouble}. {_AGAIN}")
        return []
    except Lost as trouble:
        yield fail("inverters", f"{trouble}. {_AGAIN}")
        return []
    found.newest_report = max((report.reported_at for report in reports), default=0)
    yield readings.inverters(reports, len(skipped), info.ahead or 0.0)
    return reports
