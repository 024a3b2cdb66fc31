"""Logged in to the gateway: the stream, the reports, the inverters.

The law of this file: credentials go to this one host. What /info says decides how to log in, and it is asked again
whenever that fails: Enphase changes firmware without notice (D5 to D7.6 in 18 minutes). Every door is asked at first,
after a good gateway's first failure, and when waits are long; in between an attempt is one connection: six a minute.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from envoy2emon.gateway import info as gateway
from envoy2emon.gateway.answer import ANSWER_TIMEOUT_S, Answer, StreamLost
from envoy2emon.gateway.connection import Connection, Refused
from envoy2emon.gateway.enphase import NoToken
from envoy2emon.gateway.info import Gateway
from envoy2emon.settings import Config
from envoy2emon.gateway.tokens import Token, Tokens

if TYPE_CHECKING:
    from envoy2emon.gateway.digest import Digest

_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 401, 403, 404
_SPARING = (2, 3, 4, 5)  # after so many failures in a row the waits are shorter than 30 s
_log = logging.getLogger(__name__)


class NotAllowed(Refused):
    """The token is good, but not for this: the role is too low, or the firmware keeps it from owners."""


class Missing(StreamLost):
    """There is no such endpoint, or not yet: while a gateway starts."""


class Envoy:
    """One gateway; on firmware < 7 as the user of the inverters, or else as the installer.

    gateway: what /info said last, None before it has.
    """

    def __init__(self, config: Config, tokens: Tokens, *, inverters: bool = False) -> None:
        self.gateway: Gateway | None = None
        self.connection = Connection(config.envoy_cert_sha256)
        self._doors = gateway.doors(config.envoy_host)
        self._serial = config.envoy_serial
        self._inverters = inverters
        self._user = config.envoy_inverters_user if inverters else config.envoy_user
        self._password = config.envoy_inverters_password if inverters else config.envoy_password
        self._tokens = tokens
        self._failed = 1  # attempts in a row, and 1 at the start: every door is to be asked
        self._heard = False  # whether /info was good when it was asked last
        self._digest: Digest | None = None
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

        Raises StreamLost, also after `silence` seconds without any, and Refused.
        """
        with self._open("/stream/meter", silence) as answer:
            yield answer.chunk

    def detect(self, *doors: str) -> Gateway:
        """Ask for /info at these doors, or else at each, first where it was good last. Raises StreamLost, Refused."""
        self._heard = False
        doors = doors or tuple(sorted(self._doors, key=lambda url: not self.gateway or url != self.gateway.url))
        found = gateway.detect(self.connection, doors, self._serial)
        self._heard = True
        if found != self.gateway:
            _log.info(
                "Envoy: %s, firmware %s, serial number ending in %s", found.url, found.firmware, found.serial[-4:]
            )
            self._digest = self._token = None
            self._failed = 0  # whatever failed was not this gateway
        self.gateway = found
        return found

    def _text(self, path: str) -> str:
        with self._open(path, ANSWER_TIMEOUT_S) as answer:
            return answer.text()

    def _open(self, path: str, silence: float) -> Answer:
        """Return a good answer, its body unread, and note how the attempt went."""
        opened = self.connection.opened
        try:
            return self._attempt(path, silence)
        except (StreamLost, Refused) as trouble:
            trouble.knocks = self.connection.opened - opened
            before = self._failed if isinstance(trouble, StreamLost) else 0
            self._failed = 0 if isinstance(trouble, NotAllowed) else before + 1
            raise

    def _known(self) -> Gateway:
        """Return which gateway it is: ask every door, or one, or none where it was not /info that failed."""
        if self._failed and self._failed not in _SPARING:
            return self.detect()
        if self.gateway and self._heard:
            return self.gateway
        return self.detect(self.gateway.url if self.gateway else self._doors[self._failed % len(self._doors)])

    def _attempt(self, path: str, silence: float) -> Answer:
        """Return a good answer; log in again, once, if the gateway wants it."""
        known = self._known()
        answer = self._ask(known, path, silence)
        # A 404 may want a new login, but not again and again: each one is a session.
        if _denied(known, answer) or (known.needs_token and answer.status == _NOT_FOUND and not self._failed):
            answer.skip()
            known = self._mend(known)
            answer = self._ask(known, path, silence)
        if answer.status == _OK:
            self._failed = 0
            return answer
        answer.skip()
        if _denied(known, answer):
            words = f"firmware {known.firmware} does not open {path} to this token ({answer.status})"
            raise NotAllowed(words) if known.needs_token else self._refused(known)
        location = answer.headers.get("Location", "")[:200]
        words = f"{known.url}{path} answers {answer.status}" + (f", a redirect to {location}" if location else "")
        raise Missing(words) if known.needs_token and answer.status == _NOT_FOUND else StreamLost(words)

    def _mend(self, before: Gateway) -> Gateway:
        """After a refusal: find out what the gateway wants now. Raises Refused if that is what it was given."""
        now = self.detect(before.url)
        if now.needs_token:
            self._login(now)
        elif now == before:
            raise self._refused(now)
        return now

    def _refused(self, known: Gateway) -> Refused:
        prefix = "ENVOY_INVERTERS_" if self._inverters else "ENVOY_"
        cure = f"are {prefix}USER and {prefix}PASSWORD right?"
        if self._inverters:
            cure += " The default is envoy and the last six digits of the serial number; some firmware wants installer"
        return Refused(f"{known.url}, firmware {known.firmware}, refuses user {self._user} (401): {cure}")

    def _ask(self, known: Gateway, path: str, silence: float) -> Answer:
        if known.needs_token:
            token = self._token
            if token and self._tokens.due(token):
                with suppress(NoToken):  # as long as the gateway takes it, whatever our clock says
                    token = token if self._tokens.token(known.serial) == token else None
            return self.connection.get(known.url, path, silence, _bearer(token or self._login(known)))
        digest = self._digest = self._digest or self._new_digest(known)
        answer = self.connection.get(known.url, path, silence, digest.headers(path))
        if answer.status == _UNAUTHORIZED:
            digest.take(answer.headers.get("WWW-Authenticate", ""))
            if headers := digest.headers(path):
                answer.close()
                return self.connection.get(known.url, path, silence, headers)
        return answer

    def _new_digest(self, known: Gateway) -> "Digest":
        password = self._password.value if self._password else known.serial[-6:] if self._inverters else None
        if password is None:
            raise Refused(f"firmware {known.firmware} wants the installer's password: put ENVOY_PASSWORD into .env")
        from envoy2emon.gateway.digest import Digest  # noqa: PLC0415 - 5 ms and 2 MB that firmware 7 does not need

        return Digest(known.url, self._user, password)

    def _login(self, known: Gateway) -> Token:
        """Return a token that the gateway accepts, and have a session: too many get 503 (VINC PR 27)."""
        self._token = None
        for _ in range(3):  # the one that was pasted, the one that is kept, a fresh one
            try:
                token = self._tokens.token(known.serial)
            except NoToken as trouble:
                raise Refused(f"firmware {known.firmware}: {trouble}") from None
            self.connection.forget_session()  # one that is still good would let a bad token pass
            with self.connection.get(known.url, "/auth/check_jwt", ANSWER_TIMEOUT_S, _bearer(token)) as answer:
                answer.text()
                if answer.status == _OK:
                    self._token = token
                    return token
                if answer.status != _UNAUTHORIZED:
                    raise StreamLost(f"{known.url}/auth/check_jwt answers {answer.status}")
            self._tokens.refused(token)
        raise Refused(f"firmware {known.firmware}: the gateway refuses a token fresh from Enphase")


def _bearer(token: Token) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.text}"}


def _denied(known: Gateway, answer: Answer) -> bool:
    # What a role or a firmware keeps from owners is answered 401 on D7.6.175.
    return answer.status == _UNAUTHORIZED or (known.needs_token and answer.status == _FORBIDDEN)
