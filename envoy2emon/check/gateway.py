"""The questions to the Envoy: name, ports, firmware, login, one reading, the inverters.

The law of this file: the gateway is asked gently. One stream, closed at its first event; one login for all questions.
"""

import re
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from envoy2emon.gateway.answer import ANSWER_TIMEOUT_S, StreamLost
from envoy2emon.check.readings import first_event, inverters, transformers, watts
from envoy2emon.check.verdict import Verdict, fail, ok, warn
from envoy2emon.gateway.connection import CONNECT_TIMEOUT_S, Refused
from envoy2emon.gateway.client import Envoy, Missing, NotAllowed
from envoy2emon.gateway.info import Gateway
from envoy2emon.outage import duration
from envoy2emon.gateway.readings import BadReading, parse_reports
from envoy2emon.settings import Config
from envoy2emon.gateway.tokens import RENEW_OWNER_S, SHORT_LIVED_S, Tokens


def ask(config: Config, tokens: Tokens, clocks: dict[str, float], patience: float) -> Iterator[Verdict]:
    """Ask all of it; `clocks` gets the seconds by which the Envoy's clock is ahead of this computer's."""
    doors = list(_doors(config.envoy_host))
    yield from doors
    if doors[-1].word == "FAIL":
        return
    envoy = Envoy(config, tokens)
    try:
        gateway = envoy.detect()
        metered, clock = _info(envoy, gateway)
    except (StreamLost, Refused) as trouble:
        cure = "Is ENVOY_HOST the Envoy? It restarts now and then: wait five minutes, then switch it off and on"
        if "://" in config.envoy_host:
            cure = f"Leave http:// and https:// out of ENVOY_HOST, and both are tried. {cure}"
        yield fail("firmware", f"{trouble}" if isinstance(trouble, Refused) else f"{trouble}. {cure}")
        return
    if clock is not None:
        clocks["Envoy"] = clock
    yield _firmware(gateway)
    try:
        yield from _meters(envoy, tokens, config, patience)
    except (NotAllowed, StreamLost, BadReading) as trouble:
        yield _no_reading(trouble, metered=metered)
    except Refused as trouble:
        yield fail("login", str(trouble))
        if gateway.needs_token:
            return
    # The inverters' user is another one below firmware 7; later on one login is enough.
    yield inverters(envoy if gateway.needs_token else Envoy(config, tokens, inverters=True), clock or 0.0)


def _doors(host: str) -> Iterator[Verdict]:
    """Look the name up and knock at the ports; FAIL comes last."""
    parts = urlsplit(host if "://" in host else f"//{host}")
    name = parts.hostname or ""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        avahi = "; names in .local take sudo apt install avahi-daemon libnss-mdns" if name.endswith(".local") else ""
        cure = "put the Envoy's address, which your router shows, into ENVOY_HOST"
        yield fail("name", f"{name} cannot be resolved: {cure}{avahi}")
        return
    addresses = ", ".join(sorted({str(address[0]) for *_, address in found}))
    yield ok("name", f"{name} is {addresses}" if addresses != name else f"{name} is an address")
    ports = [parts.port] if parts.port else {"https": [443], "http": [80]}.get(parts.scheme, [443, 80])
    states = {port: _knock(name, port) for port in ports}
    told = ", ".join(f"{port} {state}" for port, state in states.items())
    if "is open" in states.values():
        yield ok("ports", told)
        return
    cure = "is the Envoy on and in this network, and does ENVOY_HOST name it and nothing else?"
    if parts.port or parts.scheme:
        cure += " Without http:// and port in ENVOY_HOST 443 and 80 are tried: firmware 8.3 has closed 80"
    yield fail("ports", f"{told}: {cure}")


def _knock(name: str, port: int) -> str:
    try:
        with socket.create_connection((name, port), CONNECT_TIMEOUT_S):
            return "is open"
    except ConnectionRefusedError:
        return "is closed"
    except TimeoutError:
        return "does not answer"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"


def _info(envoy: Envoy, gateway: Gateway) -> tuple[bool, float | None]:
    """Return whether there may be meters, and how far ahead the gateway's clock is, in seconds."""
    with envoy.connection.get(gateway.url, "/info", ANSWER_TIMEOUT_S) as answer:
        text = answer.text()
        date = answer.headers.get("Date", "")
    imeter = re.search(r"<imeter>\s*(\w+)", text)
    told = re.search(r"<time>\s*(\d+)", text)  # the time of the recording in pyenphase's fixtures
    try:
        at = float(told[1]) if told else parsedate_to_datetime(date).timestamp()
    except ValueError:
        return imeter is None or imeter[1] == "true", None
    return imeter is None or imeter[1] == "true", at - time.time()


def _firmware(gateway: Gateway) -> Verdict:
    needs = "ENVOY_PASSWORD for the meters; the inverters' user has a default"
    if gateway.needs_token:
        needs = "a token: ENPHASE_EMAIL and ENPHASE_PASSWORD, or ENVOY_TOKEN"
    return ok("firmware", f"{gateway.firmware} at {gateway.url}, serial number {gateway.serial}; it wants {needs}")


def _meters(envoy: Envoy, tokens: Tokens, config: Config, patience: float) -> Iterator[Verdict]:
    """Log in and take one reading, as the daemon would. Raises StreamLost, Refused, BadReading."""
    source = "reports"
    if config.stream_source != "reports":
        try:
            with envoy.stream(patience) as read:
                yield _login(tokens, config)
                source, reading = "stream", first_event(read, patience)
        except (NotAllowed, Missing) as trouble:
            yield _login(tokens, config)
            if config.stream_source == "stream":
                yield fail("stream", f"{trouble}: set STREAM_SOURCE=auto, and the meter reports are read in its place")
                return
            yield ok("stream", f"{trouble}; the meter reports, once a second, are read in its place")
    if source == "reports":
        _, reading = parse_reports(envoy.reports(), time.monotonic())
        if config.stream_source == "reports":
            yield _login(tokens, config)
    yield ok("reading", f"from the {source}: {watts(reading)}")
    yield transformers(reading, config.stream_sections)


def _login(tokens: Tokens, config: Config) -> Verdict:
    """Tell who is accepted, and until when."""
    token = tokens.current
    if token is None:
        return ok("login", f"user {config.envoy_user} is accepted for the meters")
    left = token.expires_at - time.time()
    text = f"the token is accepted, good until {token.expiry}: {duration(left)} left"
    if config.enphase_email:
        return ok("login", f"{text}, and renewed in time")
    if left < RENEW_OWNER_S:
        short = token.expires_at - token.issued_at <= SHORT_LIVED_S
        cure = f"set ENPHASE_EMAIL and ENPHASE_PASSWORD{'' if short else ', or get a new ENVOY_TOKEN before then'}"
        return warn("login", f"{text}, and nothing renews it: {cure}")
    return ok("login", text)


def _no_reading(trouble: Exception, *, metered: bool) -> Verdict:
    if not metered:
        cure = "the inverters need none; without this daemon it is quiet: sudo systemctl disable --now envoy2emon"
        return warn("meters", f"this Envoy has none (/info says imeter false; {trouble}): {cure}")
    cure = "Wait five minutes and check again, then switch the Envoy off and on"
    if str(trouble).endswith("/stream/meter answers 404"):
        cure = "Perhaps this firmware has no such page: set STREAM_SOURCE=reports and check again"
    if isinstance(trouble, NotAllowed):
        cure = "Is the account ENPHASE_EMAIL, or whoever got ENVOY_TOKEN, the owner of this very Envoy?"
    return fail("reading", f"{trouble}. {cure}")
