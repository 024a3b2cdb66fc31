"""The JWT that firmware 7 and later wants: where it comes from, whether it will do, when it is renewed.

Enphase is asked for a login at most once in ten minutes, by both daemons together, and what they know of tokens is in
one file of the state directory. No link to it is followed, because root may read it in the service's directory.
"""

import base64
import fcntl
import json
import logging
import math
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from envoy2emon.gateway.enphase import LONGEST_S, NoToken, fetch
from envoy2emon.outage import duration
from envoy2emon.settings import Settings
from envoy2emon.words import clean, keep_secret

LOGIN_EVERY_S = 600.0
# Owner tokens live 365 days, installer tokens 12 hours.
RENEW_OWNER_S = 30 * 86400.0
RENEW_INSTALLER_S = 3600.0
SHORT_LIVED_S = 86400.0
_MOST_TOKEN = 8192  # one is 0.5 to 1 kB
_MOST_FILE = 65536
_LAST_DATE = 2.0**33  # the year 2242
_ASKING = "Enphase was asked and has not answered"
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
        if len(text) > _MOST_TOKEN or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", text, re.ASCII):
            raise ValueError("it is not a token")
        try:
            payload = text.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            expires = float(claims["exp"])
            issued = float(claims.get("iat", expires - 365 * 86400))
            serial = claims.get("aud", "")
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError("it is not a token") from error
        if not (0 <= expires < _LAST_DATE and math.isfinite(issued) and isinstance(serial, str)):
            raise ValueError("it is not a token")
        return cls(text, serial, issued, expires)

    @property
    def renew_at(self) -> float:
        """Epoch seconds from which on a new one is fetched."""
        return self.expires_at - (RENEW_INSTALLER_S if self._short else RENEW_OWNER_S)

    @property
    def expiry(self) -> str:
        """The day, and for a short-lived token the time, of its end, in UTC."""
        return time.strftime("%Y-%m-%d %H:%M UTC" if self._short else "%Y-%m-%d", time.gmtime(self.expires_at))

    @property
    def _short(self) -> bool:
        return self.expires_at - self.issued_at <= SHORT_LIVED_S


class Tokens:
    """Where tokens come from: ENVOY_TOKEN, or Enphase by ENPHASE_EMAIL and ENPHASE_PASSWORD, kept in `state`.

    current: the token that was given out last. readonly: nothing is written, so a token that is fetched is forgotten.
    """

    def __init__(
        self, settings: Settings, state: Path | None, wall: Callable[[], float] = time.time, *, readonly: bool = False
    ) -> None:
        self.current: Token | None = None
        self._settings = settings
        self._file = _File(state, readonly=readonly)
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

    def met(self, serial: str) -> str:
        """Note the serial number of the gateway, and return that of the last one, "" if there was none."""
        with self._file.held() as kept:
            if kept.serial != serial:
                self._file.keep(replace(kept, serial=serial))
            return kept.serial

    def status(self) -> str:
        """Say in words for STATUS= until when the token is good; nothing if none is in use."""
        return f"; token until {self.current.expiry}" if self.current else ""

    def _next(self, serial: str) -> Token:
        pasted = self._pasted(serial) if self._settings.envoy_token else "this firmware needs a token"
        if isinstance(pasted, Token):
            return pasted
        if self._settings.enphase_email:
            return self._kept_or_fetched(serial)
        raise NoToken(
            f"{pasted}: set ENPHASE_EMAIL and ENPHASE_PASSWORD in .env, or an ENVOY_TOKEN from "
            "https://entrez.enphaseenergy.com"
        )

    def _pasted(self, serial: str) -> Token | str:
        """Return ENVOY_TOKEN, or in words why it does not do. Only the gateway's refusal shows that it has expired."""
        secret = self._settings.envoy_token
        try:
            token = Token.parse(secret.value if secret else "")
        except ValueError:
            return "ENVOY_TOKEN is not a token"
        if token.serial not in ("", serial):
            return f"ENVOY_TOKEN is for the gateway {clean(token.serial, 40)}, this one is {serial}"
        if token.text not in self._refused:
            return token
        expired = token.expires_at <= self._wall()
        return f"ENVOY_TOKEN expired on {token.expiry}" if expired else "the gateway refuses ENVOY_TOKEN"

    def _kept_or_fetched(self, serial: str) -> Token:
        token, trouble = self._kept_or_turn(serial)
        if trouble is None:
            assert token  # noqa: S101 - by _kept_or_turn
            return token
        try:
            fresh = self._fresh(serial)
        except NoToken as error:
            with self._file.held() as kept:
                self._file.keep(replace(kept, trouble=str(error)))
            if token is None:
                raise
            level = logging.DEBUG if str(error) == trouble else logging.WARNING
            _log.log(level, "the token, good until %s, cannot be renewed: %s", token.expiry, error)
            return token
        with self._file.held() as kept:
            self._file.keep(replace(kept, token=fresh.text, trouble=""))
        _log.info("a token was fetched from Enphase, good until %s", fresh.expiry)
        return fresh

    def _kept_or_turn(self, serial: str) -> tuple[Token | None, str | None]:
        """Return the token that is kept and None, or if it is our turn to ask Enphase the last trouble with that.

        The file is not locked while Enphase is asked: who comes meanwhile uses the old token or looks again.
        """
        while True:
            with self._file.held() as kept:
                token, now = self._usable(kept.token, serial), self._wall()
                since = abs(now - kept.login_at)  # whichever way the clock jumped meanwhile
                if token and (now < token.renew_at or since < LOGIN_EVERY_S):
                    return token, None
                if since >= LOGIN_EVERY_S:
                    # Before: a daemon that is killed meanwhile does not ask again when it is back. The token stays,
                    # because the gateway may have refused it for a moment, or the clock may be ahead.
                    self._file.keep(replace(kept, login_at=now, trouble=_ASKING))
                    return token, kept.trouble
            if kept.trouble != _ASKING or since > LONGEST_S + 5:
                trouble = kept.trouble or "the gateway refuses the token that Enphase gave"
                raise NoToken(f"{trouble} (Enphase was asked {duration(since)} ago)")
            threading.Event().wait(0.2)  # the other daemon is asking

    def _usable(self, text: str, serial: str) -> Token | None:
        try:
            token = Token.parse(text)
        except ValueError:
            return None
        keep_secret(token.text)
        return token if token.serial in ("", serial) and token.text not in self._refused else None

    def _fresh(self, serial: str) -> Token:
        try:
            token = Token.parse(fetch(self._settings, serial))
        except ValueError:
            raise NoToken(
                "Enphase's token service answers with something that is not a token: it is tried again later"
            ) from None
        keep_secret(token.text)
        return token


@dataclass(frozen=True, slots=True)
class _Kept:
    """The latest token from Enphase, when Enphase was last asked (epoch seconds), why it gave none, and the gateway."""

    token: str = field(default="", repr=False)
    login_at: float = 0.0
    trouble: str = ""
    serial: str = ""


class _File:
    """Holds a _Kept in a file that one daemon at a time has; in memory where there is no file that can be had."""

    def __init__(self, state: Path | None, *, readonly: bool) -> None:
        self._state = state
        self._readonly = readonly
        self._kept = _Kept()
        self._number: int | None = None
        self._unwritten = False  # the file is older than what is in memory

    @contextmanager
    def held(self) -> Iterator[_Kept]:
        """Keep the other daemon waiting, and give what is kept."""
        with ExitStack() as stack:
            try:
                number = self._open()
                stack.callback(os.close, number)  # and with it the lock goes
                if not self._readonly:
                    fcntl.flock(number, fcntl.LOCK_EX)
                if not self._unwritten:
                    self._kept = _parse(os.pread(number, _MOST_FILE, 0)) or self._kept
                self._number = number
            except OSError as error:
                _log.debug("the token is kept in memory only: %s", error)
            try:
                yield self._kept
            finally:
                self._number = None

    def keep(self, kept: _Kept) -> None:
        """Replace what is kept, while it is held."""
        self._kept = kept
        self._unwritten = True
        if self._number is not None and not self._readonly:
            try:
                os.ftruncate(self._number, 0)
                os.pwrite(self._number, json.dumps(asdict(kept)).encode(), 0)
                self._unwritten = False
            except OSError as error:
                _log.debug("the token is kept in memory only: %s", error)

    def _open(self) -> int:
        if self._state is None:
            raise FileNotFoundError("no state directory")
        flags = os.O_RDONLY if self._readonly else os.O_RDWR | os.O_CREAT
        if not self._readonly:
            self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.geteuid() == 0 and self._state.stat().st_uid != 0:
                raise PermissionError("root writes nothing into another user's directory")
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        number = os.open(self._state / "token.json", flags, 0o600)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise FileExistsError("token.json is not a plain file")
        return number


def _parse(content: bytes) -> _Kept | None:
    """Return what a file holds; None if it is empty, as a new one is, or was cut off by a power cut."""
    try:
        fields = json.loads(content)
        kept = _Kept(fields["token"], fields["login_at"], fields["trouble"], fields.get("serial", ""))
        texts = all(isinstance(text, str) for text in (kept.token, kept.trouble, kept.serial))
        return kept if texts and math.isfinite(kept.login_at) else None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None
