"""The gateway over HTTP: which gateway it is, the login, its pages and its stream.

/info decides how to log in. It is requested again after every Lost or Refused, because Enphase changes firmware unasked
(D5 to D7.6 in 18 minutes). The request for /info carries no secret. Tokens and cookies are never sent over plain http.
Redirects are not followed, because D7 to D8.2 redirect http to https, some to https://localhost (pyenphase).
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import HTTPDigestAuth

from envoy2emon import web
from envoy2emon.gateway.enphase import NoToken
from envoy2emon.gateway.info import Info, read_info, urls
from envoy2emon.gateway.tokens import Token, Tokens
from envoy2emon.settings import Settings
from envoy2emon.words import clean

INVERTERS = "/api/v1/production/inverters"
METERS = "/ivp/meters"
REPORTS = "/ivp/meters/reports/"
_STREAM, _CHECK = "/stream/meter", "/auth/check_jwt"

CONNECT_S = 5.0
ANSWER_S = 20.0
# Slow gateways take 20 s and more for the list of their inverters (HA 30425, evcc 21862).
LONGEST_ANSWER_S = 60.0
MOST_INFO = 64 * 1024  # a recorded one is 2 kB
# A denial within this time of a login causes no new login, because each login opens a session, and the gateway answers
# 503 to too many of them (VINC PR 27).
NO_NEW_LOGIN_S = 300.0
_MOST_COOKIES = 8
_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_log = logging.getLogger(__name__)


class Lost(Exception):
    """The gateway is away or slow, broke off or gave an unusable answer: try again soon."""


class Refused(Exception):
    """The gateway denies the login, or is the wrong one; the text says what the owner has to do."""


class NotFound(Exception):
    """This firmware does not have the page, or denies it to this token."""


class _NoName(Lost):
    """The name in ENVOY_HOST cannot be resolved, so another scheme or port does not help."""


class Gateway:
    """The gateway at ENVOY_HOST.

    inverters: log in as the user of the inverters, not of the meters (below firmware 7). info: what identify() returned
    last, None before that.
    """

    def __init__(self, settings: Settings, tokens: Tokens, *, inverters: bool = False) -> None:
        self.info: Info | None = None
        self._settings = settings
        self._tokens = tokens
        self._inverters = inverters
        self._user = settings.envoy_inverters_user if inverters else settings.envoy_user
        self._password = settings.envoy_inverters_password if inverters else settings.envoy_password
        self._urls = urls(settings.envoy_host)
        self._fingerprint = ""
        self._info_is_current = False  # requested since the last failure
        self._session: requests.Session | None = None  # logged in
        self._logged_in_to: Info | None = None
        self._token: Token | None = None
        self._accepted_at = float("-inf")  # when the gateway accepted the token, in monotonic seconds

    def identify(self) -> Info:
        """Request /info from each possible URL, the one that answered last first. Raises Lost, Refused."""
        self._info_is_current = False
        reasons = []
        for url in sorted(self._urls, key=lambda url: self.info is None or url != self.info.url):
            try:
                self.info = self._checked(self._info(url))
            except _NoName:
                raise
            except Lost as lost:
                reasons.append(str(lost))
            else:
                self._info_is_current = True
                return self.info
        raise Lost("; ".join(reasons))

    def text(self, path: str, patience: float = LONGEST_ANSWER_S) -> str:
        """Return the body of the answer to a GET, at most 1 MiB.

        patience: the longest wait for the next part of the answer, in seconds. Raises Lost, Refused, NotFound.
        """
        with self._forget_info_on_failure():
            response = self._open(path, patience)
            with _lost(response.url, patience):
                return web.body(response)

    @contextmanager
    def stream(self, silence: float) -> Iterator[Iterator[bytes]]:
        """Open /stream/meter and yield an iterator over its bytes as they arrive.

        Raises Refused, NotFound and Lost; Lost also when the stream ends or sends no byte for `silence` seconds.
        """
        with self._forget_info_on_failure(), self._open(_STREAM, silence) as response:
            yield _pieces(response, silence)

    @contextmanager
    def _forget_info_on_failure(self) -> Iterator[None]:
        """Have /info requested again after a failure, because the gateway may be another one by then."""
        try:
            yield
        except Lost:
            self._info_is_current = False
            raise
        except Refused:
            self._info_is_current, self._session = False, None
            raise

    def _open(self, path: str, patience: float) -> requests.Response:
        """Return an answer with status 200, its body unread. Raises Lost, Refused, NotFound."""
        session, login, new = self._logged_in()
        response = self._get(session, login.url, path, patience)
        if response.status_code in _DENIED and not new and not self._token_just_accepted():
            response.close()
            self._info_is_current, self._session = False, None
            session, login, _ = self._logged_in()
            response = self._get(session, login.url, path, patience)
        status = response.status_code
        if status == HTTPStatus.OK:
            return response
        response.close()
        words = f"{login.url}{path} answers {status}"
        if status in _DENIED:
            if not login.needs_token:
                raise self._wrong_password(login, status)
            # D7.6.175 denies owners the stream and nothing else, so there is no cure to suggest for the stream.
            cure = "" if path == _STREAM else ": does ENPHASE_EMAIL, or whoever got ENVOY_TOKEN, own this gateway?"
            raise NotFound(f"firmware {login.firmware} refuses {path} to this token ({status}){cure}")
        if status == HTTPStatus.NOT_FOUND:
            raise NotFound(words)
        target = clean(response.headers.get("Location", ""), 200)
        raise Lost(f"{words}, a redirect to {target}" if target else words)

    def _token_just_accepted(self) -> bool:
        """Return whether the token was accepted so recently that a denial is not its fault."""
        return self._token is not None and time.monotonic() - self._accepted_at < NO_NEW_LOGIN_S

    def _logged_in(self) -> tuple[requests.Session, Info, bool]:
        """Log in if necessary; return the session, the gateway it is logged in to, and whether the session is new."""
        info = self.info if self._info_is_current and self.info else self.identify()
        if self._session and self._logged_in_to == info and not self._renewed(info):
            return self._session, info, False
        if self._session:
            self._session.close()
        self._session = self._token = None
        session = web.session(info.url, self._settings.envoy_cert_sha256, trust=True)
        if info.needs_token:
            self._token = self._present_token(session, info)
            self._accepted_at = time.monotonic()
        else:
            session.auth = _Digest(self._user, self._password_for(info))
        self._session, self._logged_in_to = session, info
        return session, info, True

    def _renewed(self, info: Info) -> bool:
        """Return whether there is a newer token than the one in use; look for one only when that is due."""
        if self._token and self._tokens.due(self._token):
            with suppress(NoToken):  # the old one is good while the gateway accepts it, whatever our clock says
                return self._tokens.token(info.serial) != self._token
        return False

    def _present_token(self, session: requests.Session, info: Info) -> Token:
        """Find a token that the gateway accepts, and open a session with it. Raises Lost, Refused."""
        while True:  # ENVOY_TOKEN, the one that is kept, a fresh one; then there is none left
            try:
                token = self._tokens.token(info.serial)
            except NoToken as trouble:
                raise Refused(f"firmware {info.firmware}: {trouble}") from None
            session.headers["Authorization"] = f"Bearer {token.text}"
            response = self._get(session, info.url, _CHECK, ANSWER_S)
            with _lost(response.url, ANSWER_S):
                web.body(response)
            if response.status_code == HTTPStatus.OK:
                return token
            if response.status_code not in _DENIED:
                raise Lost(f"{info.url}{_CHECK} answers {response.status_code}")
            self._tokens.refused(token)
            session.cookies.clear()

    def _password_for(self, info: Info) -> str:
        if self._password:
            return self._password.value
        if self._inverters:
            return info.serial[-6:]
        raise Refused(f"firmware {info.firmware} needs the installer's password: set ENVOY_PASSWORD in .env")

    def _wrong_password(self, info: Info, status: int) -> Refused:
        prefix = "ENVOY_INVERTERS_" if self._inverters else "ENVOY_"
        cure = f"are {prefix}USER and {prefix}PASSWORD right?"
        if self._inverters:
            cure += " The default is envoy and the last six digits of the serial number; some firmware needs installer"
        return Refused(f"{info.url}, firmware {info.firmware}, refuses user {clean(self._user)} ({status}): {cure}")

    def _get(self, session: requests.Session, url: str, path: str, patience: float) -> requests.Response:
        """Return an answer, its body unread. Raises Lost, Refused."""
        try:
            with web.raising_failed(patience):
                response = session.get(url + path, timeout=(CONNECT_S, patience), stream=True)
        except web.NoName as failed:
            raise _NoName(f"{urlsplit(url).netloc} cannot be resolved: is ENVOY_HOST right?") from failed
        except web.Failed as failed:
            if isinstance(failed, web.Untrusted):
                self._check_pin(url)
            raise Lost(f"{url} {failed}") from failed
        if len(session.cookies) > _MOST_COOKIES:
            session.cookies.clear()
        return response

    def _check_pin(self, url: str) -> None:
        """Raise Refused if the gateway's certificate is not the pinned one."""
        pin = self._settings.envoy_cert_sha256
        if pin:
            with suppress(web.Failed):
                found = web.fingerprint(url)
                if found != pin:
                    raise Refused(
                        f"{url}: its certificate is not the pinned one: ENVOY_CERT_SHA256 is {pin}, it is {found}. If "
                        f"the gateway was replaced or updated, set ENVOY_CERT_SHA256={found}"
                    )

    def _info(self, url: str) -> Info:
        with web.session(url, self._settings.envoy_cert_sha256, trust=True) as session:
            response = self._get(session, url, "/info", ANSWER_S)
            fingerprint = web.shown_fingerprint(response)
            if fingerprint not in ("", self._fingerprint):
                _log.info("gateway: its certificate has SHA-256 %s", fingerprint)
                self._fingerprint = fingerprint
            if response.status_code != HTTPStatus.OK:
                raise Lost(f"{url}/info answers {response.status_code}")
            with _lost(response.url, ANSWER_S):
                text = web.body(response, MOST_INFO)
        try:
            return read_info(url, text)
        except ValueError as trouble:
            raise Lost(str(trouble)) from None

    def _checked(self, info: Info) -> Info:
        """Return info, and log it if it is new. Raises Refused if it is not of the gateway that ENVOY_SERIAL names."""
        wanted = self._settings.envoy_serial
        if wanted and info.serial != wanted:
            cure = "is ENVOY_HOST right, or was the gateway replaced?"
            raise Refused(f"{info.url} is the gateway {info.serial}, but ENVOY_SERIAL is {wanted}: {cure}")
        kept = self._tokens.swap_serial(info.serial)
        before = self.info.serial if self.info else kept
        if before not in ("", info.serial):
            cure = "If that is wrong, set ENVOY_SERIAL to the one you want"
            _log.warning(
                "gateway: %s is now a different gateway, %s instead of %s. %s", info.url, info.serial, before, cure
            )
        if info != self.info:
            _log.info("gateway: %s, firmware %s, serial number ending in %s", info.url, info.firmware, info.serial[-4:])
        return info


class _Digest(HTTPDigestAuth):
    """Digest authentication that returns a 401 it cannot answer (R3.9.36 answers bad credentials with garbage)."""

    def handle_401(self, r: requests.Response, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - as inherited
        if r.status_code == HTTPStatus.UNAUTHORIZED:
            web.body(r)
            r.connection.close()  # R/D3.18 resets a connection that is kept open after its 401 (HA 126162)
        try:
            answered: requests.Response = super().handle_401(r, **kwargs)  # type: ignore[no-untyped-call]
        except LookupError:
            return r
        return answered

    def build_digest_header(self, method: str, url: str) -> str:
        """Answer the challenge. Raises LookupError if it lacks a necessary field or is of an unsupported kind."""
        header: str | None = super().build_digest_header(method, url)  # type: ignore[no-untyped-call]
        if header is None:
            raise LookupError("a challenge of an unknown kind")
        return header


@contextmanager
def _lost(where: str, patience: float) -> Iterator[None]:
    """Raise Lost for whatever goes wrong while an answer is read."""
    try:
        with web.raising_failed(patience):
            yield
    except web.Failed as failed:
        raise Lost(f"{where} {failed}") from failed


def _pieces(response: requests.Response, silence: float) -> Iterator[bytes]:
    """Yield bytes as soon as they arrive, chunked or not (read1, urllib3 2.2 or later). Raises Lost, at the end too."""
    with _lost(response.url, silence):
        while data := response.raw.read1(65536):
            yield data
    raise Lost("the stream has ended")
