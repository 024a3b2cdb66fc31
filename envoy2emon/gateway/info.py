"""Which gateway is there: what /info says to anyone, and whether it says so by https or http.

The law of this file: nothing secret is sent, no token will go out by plain http, and no redirect is followed: D7 to
D8.2 redirect http to https, some of them to https://localhost (pyenphase).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from envoy2emon.gateway.answer import ANSWER_TIMEOUT_S, StreamLost
from envoy2emon.gateway.connection import Connection

_LONGEST = 40  # a serial number has twelve digits, D7.6.175 eight letters


@dataclass(frozen=True, slots=True)
class Gateway:
    """Serial number, firmware such as D7.6.175, and whether it wants a token; url has no path."""

    url: str
    serial: str
    firmware: str
    needs_token: bool


def detect(connection: Connection, doors: Sequence[str], serial: str | None) -> Gateway:
    """Ask one door after the other for /info; `serial` counts more than what it says. Raises StreamLost, Refused."""
    reasons = []
    for url in doors:
        try:
            with connection.get(url, "/info", ANSWER_TIMEOUT_S) as answer:
                if answer.status == HTTPStatus.OK:
                    return _read(url, answer.text(), serial)
                reasons.append(f"{url}/info answers {answer.status}")
        except StreamLost as lost:
            reasons.append(str(lost))
            if lost.nobody_there or (lost.shut and urlsplit(url).port):
                break  # the other scheme has the same way, or the same door
    raise StreamLost("; ".join(dict.fromkeys(reasons)))


def doors(host: str) -> list[str]:
    """Return the urls at which the gateway of ENVOY_HOST may be, the likelier one first."""
    if "://" in host:
        return [host]
    # With a port of the owner's both questions go to one door, and a plain server there may wait for more of a TLS
    # greeting until the time is up, while a TLS server refuses a plain question at once.
    schemes = ("https", "http") if urlsplit(f"//{host}").port in (None, 443) else ("http", "https")
    return [f"{scheme}://{host}" for scheme in schemes]


def _read(url: str, text: str, serial: str | None) -> Gateway:
    try:
        info = ET.fromstring(text.strip())  # noqa: S314 - at most 1 MiB, from the owner's own gateway
    except ET.ParseError:
        raise StreamLost(f"{url}/info is not that of an Envoy: is ENVOY_HOST right?") from None
    serial = serial or (info.findtext("device/sn") or "").strip()
    if not serial:
        raise StreamLost(f"{url}/info tells no serial number: is ENVOY_HOST right? ENVOY_SERIAL can give it")
    firmware = " ".join((info.findtext("device/software") or "?").split())[:_LONGEST]
    # <web-tokens> is true from firmware 7 on and absent below, in 38 of pyenphase's 38 recordings.
    needs_token = (info.findtext("web-tokens") or "").strip() == "true"
    if needs_token and not url.startswith("https"):
        raise StreamLost(f"{url}, firmware {firmware}, wants a token, which goes out by https only")
    return Gateway(url, serial[:_LONGEST], firmware, needs_token)
