"""The gateway: firmware, authentication, the stream, the reports, the inverters.

The law of this file: credentials go to this one host. What /info says decides how to log in, and it is asked again
whenever that fails: Enphase changes firmware without notice (D5 to D7.6 in 18 minutes).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import requests
from requests.auth import HTTPDigestAuth

from envoy2emon.connection import ANSWER_TIMEOUT_S, Connection, Refused, StreamLost
from envoy2emon.enphase import NoToken
from envoy2emon.settings import Config
from envoy2emon.tokens import Token, Tokens

_OK, _UNAUTHORIZED = 200, 401
_log = logging.getLogger(__name__)


class NotAllowed(Refused):
    """The token is good, but not for this: the role is too low, or the firmware keeps it from owners."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What /info says: serial number, firmware such as D7.6.175, and whether it wants a token; url has no path."""

    url: str
    serial: str
    firmware: str
    needs_token: bool


class Envoy:
    """One gateway; on firmware < 7 as the user of the inverters, or else as the installer."""

    def __init__(self, config: Config, tokens: Tokens, *, inverters: bool = False) -> None:
        self.gateway: Gateway | None = None
        self.connection = Connection(config.envoy_cert_sha256)
        self._host = config.envoy_host
        self._serial = config.envoy_serial
        self._inverters = inverters
        self._user = config.envoy_inverters_user if inverters else config.envoy_user
        self._password = config.envoy_inverters_password if inverters else config.envoy_password
        self._tokens = tokens
        self._digest: HTTPDigestAuth | None = None
        self._token: Token | None = None

    def inverters(self) -> str:
        """Return the answer of /api/v1/production/inverters. Raises StreamLost, Refused."""
        return self._text("/api/v1/production/inverters")

    def reports(self) -> str:
        """Return the answer of /ivp/meters/reports/, which owners may read. Raises StreamLost, Refused."""
        return self._text("/ivp/meters/reports/")

    @contextmanager
    def stream(self, silence: float) -> Iterator[Callable[[], bytes]]:
        """Open /stream/meter and give a function that returns its next bytes as they come, b"" at its end.

        Raises StreamLost, also after `silence` seconds without a byte, and Refused.
        """
        with self._open("/stream/meter", silence) as response:
            yield lambda: self.connection.chunk(response)

    def detect(self) -> Gateway:
        """Ask /info, which decides between http and https. Raises StreamLost, Refused."""
        reasons = []
        for url in self._urls():
            try:
                with self.connection.get(url, "/info", ANSWER_TIMEOUT_S) as response:
                    self.connection.note_certificate(response)
                    if response.status_code == _OK:
                        return self._known(url, self.connection.read(response))
                    reasons.append(f"{url}/info answers {response.status_code}")
            except StreamLost as lost:
                reasons.append(str(lost))
                if lost.nobody_there and urlsplit(url).port:
                    break  # the other scheme would knock at the same door
        raise StreamLost("; ".join(dict.fromkeys(reasons)))

    def _urls(self) -> list[str]:
        if "://" in self._host:
            return [self._host]
        # With a port of the owner's both questions go to one door, and a plain server there may wait for more of a TLS
        # greeting until the time is up, while a TLS server refuses a plain question at once.
        schemes = ("https", "http") if urlsplit(f"//{self._host}").port in (None, 443) else ("http", "https")
        return [f"{scheme}://{self._host}" for scheme in schemes]

    def _known(self, url: str, text: str) -> Gateway:
        try:
            info = ET.fromstring(text.strip())  # noqa: S314 - at most 1 MiB, from the owner's own gateway
        except ET.ParseError:
            raise StreamLost(f"{url}/info is not that of an Envoy: is ENVOY_HOST right?") from None
        serial = self._serial or (info.findtext("device/sn") or "").strip()
        firmware = (info.findtext("device/software") or "?").strip()
        if not serial:
            raise StreamLost(f"{url}/info tells no serial number: is ENVOY_HOST right? ENVOY_SERIAL can give it")
        gateway = Gateway(url, serial, firmware, (info.findtext("web-tokens") or "").strip() == "true")
        if gateway != self.gateway:
            _log.info("Envoy: %s, firmware %s, serial number ending in %s", url, firmware, serial[-4:])
            self._digest = self._token = None
        self.gateway = gateway
        return gateway

    def _text(self, path: str) -> str:
        with self._open(path, ANSWER_TIMEOUT_S) as response:
            return self.connection.read(response)

    def _open(self, path: str, silence: float) -> requests.Response:
        """Return a good answer, its body unread; log in again, once, if the gateway wants it."""
        try:
            gateway = self.gateway or self.detect()
            response = self._ask(gateway, path, silence)
            if response.status_code == _UNAUTHORIZED:
                response.close()
                gateway = self._mend(gateway)
                response = self._ask(gateway, path, silence)
        except (StreamLost, Refused):
            self.gateway = None  # it may be another one by the next attempt
            raise
        status = response.status_code
        if status == _OK:
            return response
        response.close()
        if gateway.needs_token and status in (401, 403, 404):
            raise NotAllowed(f"firmware {gateway.firmware} does not open {path} to this token ({status})")
        self.gateway = None
        if status == _UNAUTHORIZED:
            raise self._refused(gateway)
        location = response.headers.get("Location")
        raise StreamLost(f"{gateway.url}{path} answers {status}" + (f", a redirect to {location}" if location else ""))

    def _mend(self, before: Gateway) -> Gateway:
        """After a 401: find out what the gateway wants now. Raises Refused if that is what it was given."""
        now = self.detect()
        if now.needs_token:
            self._login(now)
        elif now == before:
            raise self._refused(now)
        return now

    def _refused(self, gateway: Gateway) -> Refused:
        prefix = "ENVOY_INVERTERS_" if self._inverters else "ENVOY_"
        cure = f"are {prefix}USER and {prefix}PASSWORD right?"
        if self._inverters:
            cure += " The default is envoy and the last six digits of the serial number; some firmware wants installer"
        return Refused(f"{gateway.url}, firmware {gateway.firmware}, refuses user {self._user} (401): {cure}")

    def _ask(self, gateway: Gateway, path: str, silence: float) -> requests.Response:
        if gateway.needs_token:
            if self._token is None or self._tokens.due(self._token):
                self._login(gateway)
            return self.connection.get(gateway.url, path, silence, headers=self._bearer())
        digest = self._digest = self._digest or self._new_digest(gateway)
        try:
            try:
                return self.connection.get(gateway.url, path, silence, auth=digest)
            except StreamLost as lost:
                if not lost.cut:
                    raise
                # R/D3.18 resets a kept connection after its 401 (HA 126162): the nonce is known by now.
                return self.connection.get(gateway.url, path, silence, auth=digest)
        except (LookupError, ValueError):
            # R3.9.36 answers bad credentials with a challenge that is none.
            raise self._refused(gateway) from None

    def _new_digest(self, gateway: Gateway) -> HTTPDigestAuth:
        password = self._password.value if self._password else gateway.serial[-6:] if self._inverters else None
        if password is None:
            raise Refused(f"firmware {gateway.firmware} wants the installer's password: put ENVOY_PASSWORD into .env")
        return HTTPDigestAuth(self._user, password)

    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token.text}"} if self._token else {}

    def _login(self, gateway: Gateway) -> None:
        """Get a token that the gateway accepts, and its session cookie."""
        for _ in range(2):
            try:
                self._token = self._tokens.token(gateway.serial)
            except NoToken as trouble:
                self._token = None
                raise Refused(f"firmware {gateway.firmware}: {trouble}") from None
            self.connection.forget_cookies()  # too many sessions answer 503 (VINC PR 27): hold one
            with self.connection.get(
                gateway.url, "/auth/check_jwt", ANSWER_TIMEOUT_S, headers=self._bearer()
            ) as response:
                if response.status_code == _OK:
                    return
                if response.status_code != _UNAUTHORIZED:
                    raise StreamLost(f"{gateway.url}/auth/check_jwt answers {response.status_code}")
            self._tokens.refused(self._token)
            self._token = None
        raise Refused(f"firmware {gateway.firmware}: the gateway refuses a token fresh from Enphase")
