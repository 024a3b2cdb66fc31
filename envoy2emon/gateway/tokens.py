"""The JWT that firmware 7 and later requires: where it comes from, whether it is usable, when it is renewed.

Both daemons together ask Enphase for a login at most once in ten minutes. They share what they know of tokens in one
file in the state directory. That file is not opened if it is a symbolic link, because root may read it in the service's
directory.
"""

import base64
import fcntl
import json
import logging
import math
import os
import re
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
# Owner tokens are valid for 365 days, installer tokens for 12 hours.
RENEW_OWNER_S = 30 * 86400.0
RENEW_INSTALLER_S = 3600.0
SHORT_LIVED_S = 86400.0
_MOST_TOKEN = 8192  # a token is 0.5 to 1 kB
_MOST_FILE = 65536
_LAST_DATE = 2.0**33  # the year 2242
_ASKING = "Enphase has not answered"
_REFUSED = "the gateway refuses the token that Enphase gave: does ENPHASE_EMAIL own this gateway?"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A JWT for the gateway `serial` ("" if it names none); issued_at and expires_at are epoch seconds."""

    text: str = field(repr=False)
    serial: str
    issued_at: float
    expires_at: float

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Parse a token without checking its signature, which the gateway does. Raises ValueError."""
        if len(text) > _MOST_TOKEN or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", text, re.ASCII):
            raise ValueError("it is not a token")
        try:
            payload = text.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            expires = float(claims["exp"])
            issued = float(claims.get("iat", expires - 365 * 86400))
            serial = claims.get("aud", "")
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError("it is not a token") from error
        if not (0 <= expires < _LAST_DATE and math.isfinite(issued) and isinstance(serial, str)):
            raise ValueError("it is not a token")
        return cls(text, serial, issued, expires)

    @property
    def renew_at(self) -> float:
        """Return from when on a new token is fetched, in epoch seconds."""
        return self.expires_at - (RENEW_INSTALLER_S if self._short else RENEW_OWNER_S)

    @property
    def expiry(self) -> str:
        """Return the day on which it expires, and for a short-lived token the time, in UTC."""
        return time.strftime("%Y-%m-%d %H:%M UTC" if self._short else "%Y-%m-%d", time.gmtime(self.expires_at))

    @property
    def _short(self) -> bool:
        return self.expires_at - self.issued_at <= SHORT_LIVED_S


class Tokens:
    """The source of tokens: ENVOY_TOKEN, or Enphase, which is asked with ENPHASE_EMAIL and ENPHASE_PASSWORD.

    state: the directory where tokens from Enphase are kept. current: the token that token() returned last. readonly:
    nothing is written, so a fetched token is kept in memory only.
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
            self._refused.clear()  # a gateway that was just starting may accept them next time
            raise
        return self.current

    def due(self, token: Token) -> bool:
        """Return whether it is time to look for another token: True at most once every LOGIN_EVERY_S."""
        now = self._wall()
        if now < token.renew_at or abs(now - self._looked_at) < LOGIN_EVERY_S:
            return False
        self._looked_at = now
        return True

    def refused(self, token: Token) -> None:
        """Note that the gateway does not accept this token."""
        self._refused.add(token.text)

    def swap_serial(self, serial: str) -> str:
        """Keep the serial number of the gateway, and return the one that was kept before, "" if there was none."""
        with self._file.locked() as kept:
            if kept.serial != serial:
                self._file.store(replace(kept, serial=serial))
            return kept.serial

    def status(self) -> str:
        """Return in words for STATUS= until when the token is valid; "" if none is in use."""
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
        """Return ENVOY_TOKEN, or in words why it is unusable; it counts as expired only if the gateway refuses it."""
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
        token, trouble = self._kept_or_claim(serial)
        if trouble is None:
            assert token  # noqa: S101 - ensured by _kept_or_claim
            return token
        try:
            fresh = self._fresh(serial)
        except NoToken as error:
            with self._file.locked() as kept:
                self._file.store(replace(kept, trouble=str(error)))
            if token is None:
                raise
            level = logging.DEBUG if str(error) == trouble else logging.WARNING
            _log.log(level, "the token, good until %s, cannot be renewed: %s", token.expiry, error)
            return token
        with self._file.locked() as kept:
            self._file.store(replace(kept, token=fresh.text, trouble=""))
        _log.info("a token was fetched from Enphase, good until %s", fresh.expiry)
        return fresh

    def _kept_or_claim(self, serial: str) -> tuple[Token | None, str | None]:
        """Return the kept token and None; if we are to ask Enphase now, the old token, if any, and the last trouble.

        The file is not locked while Enphase is asked. Meanwhile the other daemon uses the old token or, without one,
        waits. Raises NoToken if there is no usable token and Enphase was asked less than LOGIN_EVERY_S ago.
        """
        while True:
            with self._file.locked() as kept:
                token, now = self._usable(kept.token, serial), self._wall()
                since = abs(now - kept.login_at)  # the clock may have been set back meanwhile
                if token and (now < token.renew_at or since < LOGIN_EVERY_S):
                    return token, None
                if since >= LOGIN_EVERY_S:
                    # Written first, so that a daemon that is killed while asking does not ask again after its restart.
                    # The token stays: the gateway may have refused it only for a moment, or the clock may be ahead.
                    self._file.store(replace(kept, login_at=now, trouble=_ASKING))
                    return token, kept.trouble
            if kept.trouble != _ASKING or since > LONGEST_S + 5:
                raise NoToken(f"{kept.trouble or _REFUSED} (Enphase was asked {duration(since)} ago)")
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
                "Enphase's token service answers with something that is not a token: envoy2emon will try again later"
            ) from None
        keep_secret(token.text)
        return token


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the daemons know of tokens.

    token: the latest from Enphase. login_at: when Enphase was last asked, in epoch seconds. trouble: why it gave no
    token then, "" if it did. serial: the gateway's.
    """

    token: str = field(default="", repr=False)
    login_at: float = 0.0
    trouble: str = ""
    serial: str = ""


class _File:
    """Keeps a _Kept in a file that one daemon at a time locks, or in memory if the file cannot be used."""

    def __init__(self, state: Path | None, *, readonly: bool) -> None:
        self._state = state
        self._readonly = readonly
        self._kept = _Kept()
        self._descriptor: int | None = None
        self._unwritten = False  # the file is older than what is in memory

    @contextmanager
    def locked(self) -> Iterator[_Kept]:
        """Lock the file, unless readonly, so that the other daemon waits, and yield what is kept."""
        with ExitStack() as stack:
            try:
                descriptor = self._open()
                stack.callback(os.close, descriptor)  # this releases the lock too
                if not self._readonly:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._unwritten:
                    self._kept = _parse(os.pread(descriptor, _MOST_FILE, 0)) or self._kept
                self._descriptor = descriptor
            except OSError as error:
                _log.debug("the token is kept in memory only: %s", error)
            try:
                yield self._kept
            finally:
                self._descriptor = None

    def store(self, kept: _Kept) -> None:
        """Replace what is kept; to be called within locked()."""
        self._kept = kept
        self._unwritten = True
        if self._descriptor is not None and not self._readonly:
            try:
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, json.dumps(asdict(kept)).encode(), 0)
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
        return os.open(self._state / "token.json", flags, 0o600)


def _parse(content: bytes) -> _Kept | None:
    """Parse what a file holds; return None if it is empty, as a new one is, or damaged, as after a power cut."""
    try:
        fields = json.loads(content)
        kept = _Kept(fields["token"], fields["login_at"], fields["trouble"], fields.get("serial", ""))
        texts = all(isinstance(text, str) for text in (kept.token, kept.trouble, kept.serial))
        return kept if texts and math.isfinite(kept.login_at) else None
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None
