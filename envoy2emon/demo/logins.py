"""Whom a simulated Envoy lets in: digest passwords below firmware 7, tokens and sessions from 7 on.

The law of this file: nobody passes whom a real gateway would refuse. The header of the challenge and the session's
cookie are as recorded (pyenphase's fixtures for firmware < 7, vincentwolsink's integration for >= 7).
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.request import parse_http_list, parse_keqv_list

STREAM, INVERTERS = "/stream/meter", "/api/v1/production/inverters"
REALM = "enphaseenergy.com"
TOKEN_LIFETIME_S = {"owner": 365 * 86_400, "installer": 12 * 3_600}
SESSION_IDLE_S = 600


class DigestGate:
    """Digest authentication by RFC 2617 with MD5, users `installer` and `envoy`.

    nonce_uses is how often a nonce serves, None without end; some firmware keeps the inverters from `envoy`.
    """

    def __init__(self) -> None:
        self.nonce_uses: int | None = None
        self.envoy_reads_inverters = True
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def challenge(self) -> str:
        """Return a WWW-Authenticate header with a new nonce."""
        nonce = secrets.token_hex(16)
        with self._lock:
            self._counts[nonce] = 0
        return f'Digest qop="auth", realm="{REALM}", nonce="{nonce}"'

    def knows(self, fields: dict[str, str], uri: str, passwords: dict[str, str]) -> bool:
        """Tell whether the response was made for a GET of this, by one of the users, with the right password."""
        password = passwords.get(fields.get("username", ""))
        if password is None or fields.get("qop") != "auth" or not fields.get("cnonce") or fields.get("uri") != uri:
            return False
        if fields.get("realm") != REALM or fields.get("algorithm", "MD5") != "MD5":
            return False
        secret = _md5(f"{fields['username']}:{REALM}:{password}")
        nonce, count, cnonce = fields.get("nonce"), fields.get("nc"), fields["cnonce"]
        return fields.get("response") == _md5(f"{secret}:{nonce}:{count}:{cnonce}:auth:{_md5(f'GET:{uri}')}")

    def spend(self, fields: dict[str, str]) -> bool:
        """Tell whether the nonce is ours and not stale; its count must grow from use to use."""
        try:
            count = int(fields.get("nc", ""), 16)
        except ValueError:
            return False
        nonce = fields.get("nonce", "")
        with self._lock:
            fresh = count > self._counts.get(nonce, count) and (self.nonce_uses is None or count <= self.nonce_uses)
            if fresh:
                self._counts[nonce] = count
            return fresh

    def lets(self, user: str, path: str, _version: tuple[int, ...]) -> bool:
        """Tell whether the user may read this."""
        return user == "installer" or (path != STREAM and (path != INVERTERS or self.envoy_reads_inverters))


class TokenGate:
    """Tokens and sessions of firmware >= 7, users `installer` and `owner`.

    `refused` holds tokens that it rejects though they look right; owner_reads_stream None goes by the firmware.
    """

    def __init__(self) -> None:
        self.owner_reads_stream: bool | None = None
        self.refused: set[str] = set()
        self.max_sessions = 8
        self._sessions: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def user(self, authorization: str, cookie: str, serial: str) -> str | None:
        """Return whose token or session this is, None if neither is good."""
        with self._lock:
            session = self._session(cookie)
            if session:
                user, _ = self._sessions[session]
                self._sessions[session] = (user, time.monotonic())
                return user
        scheme, _, token = authorization.partition(" ")
        claims = _claims(token)
        if scheme != "Bearer" or token in self.refused or claims.get("aud") != serial:
            return None
        role = claims.get("enphaseUser")
        return str(role) if role in TOKEN_LIFETIME_S and claims.get("exp", 0) > time.time() else None

    def lets(self, user: str, path: str, version: tuple[int, ...]) -> bool:
        """Tell whether the user may read this."""
        # One site each: D7.0.88 lets owners read the stream, D7.6.175 does not, D8.3.6086 does again.
        by_firmware = not (7, 6) <= version < (8, 3)
        owners = by_firmware if self.owner_reads_stream is None else self.owner_reads_stream
        return user == "installer" or path != STREAM or owners

    def open_session(self, user: str, cookie: str) -> str | None:
        """Return the session of this cookie or a new one, None when there are too many."""
        with self._lock:
            if session := self._session(cookie):
                return session
            if len(self._sessions) >= self.max_sessions:
                return None
            session = secrets.token_hex(16)
            self._sessions[session] = (user, time.monotonic())
            return session

    def end_sessions(self) -> None:
        """Forget every session, as a restart of the gateway does."""
        with self._lock:
            self._sessions.clear()

    def _session(self, cookie: str) -> str | None:
        idle = time.monotonic() - SESSION_IDLE_S
        self._sessions = {name: entry for name, entry in self._sessions.items() if entry[1] > idle}
        try:
            morsel = SimpleCookie(cookie).get("sessionId")
        except CookieError:
            return None
        return morsel.value if morsel and morsel.value in self._sessions else None


def digest_fields(authorization: str) -> dict[str, str]:
    """Take an Authorization header apart; empty unless it is a Digest."""
    scheme, _, fields = authorization.partition(" ")
    try:
        return parse_keqv_list(parse_http_list(fields)) if scheme == "Digest" else {}
    except (ValueError, IndexError):
        return {}


def make_token(serial: str, expires_at: float, user: str = "owner") -> str:
    """Make a JWT in the shape of Enphase's, with a signature that is none; expires_at in epoch seconds."""
    claims = {
        "aud": serial,
        "iss": "Entrez",
        "enphaseUser": user,
        "exp": int(expires_at),
        "iat": int(expires_at) - TOKEN_LIFETIME_S[user],
        "jti": secrets.token_hex(16),
        "username": f"{user}@example.org",
    }
    header = {"kid": "simulated", "typ": "JWT", "alg": "ES256"}
    return ".".join((_base64(json.dumps(header)), _base64(json.dumps(claims)), _base64("no signature")))


def _claims(token: str) -> dict[str, Any]:
    try:
        _, payload, signature = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) and signature == _base64("no signature") else {}


def _base64(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
