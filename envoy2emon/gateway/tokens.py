"""The JWT that firmware 7 and later wants: its expiry, where it comes from, when it is renewed.

The law of this file: Enphase is asked for a login at most once in ten minutes, by both daemons together, and whoever
reads a NoToken knows what to put into `.env`.
"""

import base64
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from envoy2emon.gateway.enphase import NoToken, fetch
from envoy2emon.outage import duration
from envoy2emon.settings import Config
from envoy2emon.gateway.token_file import TokenFile

LOGIN_EVERY_S = 600.0
# Owner tokens live 365 days, installer tokens 12 hours.
RENEW_OWNER_S = 30 * 86400.0
RENEW_INSTALLER_S = 3600.0
SHORT_LIVED_S = 86400.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A JWT: for the gateway `serial`, until `expires_at` (epoch seconds)."""

    text: str = field(repr=False)
    serial: str
    issued_at: float
    expires_at: float

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Read the payload; the gateway checks the signature. Raises ValueError."""
        if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", text, re.ASCII):
            raise ValueError("it is no token")
        try:
            payload = text.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            expires = float(claims["exp"])
            return cls(text, str(claims.get("aud", "")), float(claims.get("iat", expires - 365 * 86400)), expires)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError("it is no token") from error

    @property
    def renew_at(self) -> float:
        """Epoch seconds from which on a new one is fetched."""
        short = self.expires_at - self.issued_at <= SHORT_LIVED_S
        return self.expires_at - (RENEW_INSTALLER_S if short else RENEW_OWNER_S)

    @property
    def expiry(self) -> str:
        """The day, and for a short-lived token the time, of its end, in UTC."""
        short = self.expires_at - self.issued_at <= SHORT_LIVED_S
        return time.strftime("%Y-%m-%d %H:%M UTC" if short else "%Y-%m-%d", time.gmtime(self.expires_at))


class Tokens:
    """Where tokens come from: ENVOY_TOKEN, or Enphase by ENPHASE_EMAIL and ENPHASE_PASSWORD, kept in `state`."""

    def __init__(self, config: Config, state: Path | None, wall: Callable[[], float] = time.time) -> None:
        self.current: Token | None = None
        self._config = config
        self._file = TokenFile(state)
        self._wall = wall
        self._refused: set[str] = set()
        self._looked_at = float("-inf")

    def token(self, serial: str) -> Token:
        """Return a token for this gateway that it has not refused yet. Raises NoToken."""
        try:
            self.current = self._next(serial)
        except NoToken:
            self._refused.clear()  # a gateway that was just starting may take them the next time
            raise
        return self.current

    def due(self, token: Token) -> bool:
        """Tell whether it is time to look for another token; every LOGIN_EVERY_S at most."""
        now = self._wall()
        if now < token.renew_at or abs(now - self._looked_at) < LOGIN_EVERY_S:
            return False
        self._looked_at = now
        return True

    def refused(self, token: Token) -> None:
        """Note that the gateway does not accept this token."""
        self._refused.add(token.text)

    def _next(self, serial: str) -> Token:
        pasted = self._pasted(serial) if self._config.envoy_token else "this firmware wants a token"
        if isinstance(pasted, Token):
            return pasted
        if self._config.enphase_email:
            return self._kept_or_fetched(serial)
        raise NoToken(
            f"{pasted}: put ENPHASE_EMAIL and ENPHASE_PASSWORD into .env, or an ENVOY_TOKEN from "
            "https://entrez.enphaseenergy.com"
        )

    def _pasted(self, serial: str) -> Token | str:
        """Return ENVOY_TOKEN, or in words why it does not do."""
        secret = self._config.envoy_token
        try:
            token = Token.parse(secret.value if secret else "")
        except ValueError:
            return "ENVOY_TOKEN is no token"
        if token.serial and token.serial != serial:
            return f"ENVOY_TOKEN is for the gateway {token.serial}, this one is {serial}"
        if token.expires_at <= self._wall():
            return f"ENVOY_TOKEN expired on {token.expiry}"
        return "the gateway refuses ENVOY_TOKEN" if token.text in self._refused else token

    def _kept_or_fetched(self, serial: str) -> Token:
        with self._file.held() as kept:
            token = self._usable(kept.token, serial)
            now = self._wall()
            if token and now < token.renew_at:
                return token
            since = abs(now - kept.login_at)  # whichever way the clock jumped meanwhile
            if since < LOGIN_EVERY_S:
                if token:
                    return token
                trouble = kept.trouble or "the gateway refuses the token that Enphase gave"
                raise NoToken(f"{trouble} (Enphase was asked {duration(since)} ago)")
            # The token stays: the gateway may have refused it for a moment, or the clock may be ahead.
            asked = replace(kept, login_at=now, trouble="")
            self._file.keep(asked)  # before: a daemon that is killed meanwhile does not ask again when it is back
            try:
                fresh = self._fresh(serial)
            except NoToken as trouble:
                self._file.keep(replace(asked, trouble=str(trouble)))
                if token is None:
                    raise
                level = logging.DEBUG if str(trouble) == kept.trouble else logging.WARNING
                _log.log(level, "the token, good until %s, cannot be renewed: %s", token.expiry, trouble)
                return token
            self._file.keep(replace(asked, token=fresh.text))
            _log.info("a token was fetched from Enphase, good until %s", fresh.expiry)
            return fresh

    def _usable(self, text: str, serial: str) -> Token | None:
        try:
            token = Token.parse(text)
        except ValueError:
            return None
        good = token.serial in ("", serial) and token.expires_at > self._wall() and token.text not in self._refused
        return token if good else None

    def _fresh(self, serial: str) -> Token:
        try:
            return Token.parse(fetch(self._config, serial))
        except ValueError:
            raise NoToken(
                "Enphase's token service answers something that is no token: it is tried again later"
            ) from None
