"""Who may read what of a simulated gateway: digest passwords below firmware 7, tokens and sessions from 7 on.

Nobody is let in whom a real gateway would refuse. The challenge has the form that pyenphase's fixtures of firmware < 7
record, the session's cookie the form that vincentwolsink's integration finds on firmware >= 7.
"""

import base64
import hashlib
import json
import secrets
import time
from http.cookies import CookieError, SimpleCookie
from urllib.request import parse_http_list, parse_keqv_list

STREAM, INVERTERS = "/stream/meter", "/api/v1/production/inverters"
REALM = "enphaseenergy.com"
TOKEN_LIFETIME_S = {"owner": 365 * 86_400, "installer": 12 * 3_600}
SESSION_IDLE_S = 600
_NO_SIGNATURE = "bm8gc2lnbmF0dXJl"


class DigestLogin:
    """Digest authentication by RFC 2617 with MD5.

    nonce_uses: how often a nonce may be used, None for no limit.
    """

    def __init__(self) -> None:
        self.nonce_uses: int | None = None
        self._counts: dict[str, int] = {}

    def challenge(self) -> str:
        """Return a WWW-Authenticate header with a new nonce."""
        nonce = secrets.token_hex(16)
        self._counts[nonce] = 0
        return f'Digest qop="auth", realm="{REALM}", nonce="{nonce}"'

    def user(self, authorization: str, uri: str, passwords: dict[str, str]) -> str | None:
        """Return who asks for `uri` with this Authorization header, None if it is wrong, stale or used before."""
        try:
            fields = parse_keqv_list(parse_http_list(authorization.removeprefix("Digest ")))
            user, nonce, count = fields["username"], fields["nonce"], int(fields["nc"], 16)
            secret, question = _md5(f"{user}:{REALM}:{passwords[user]}"), _md5(f"GET:{uri}")
            right = _md5(f"{secret}:{nonce}:{fields['nc']}:{fields['cnonce']}:auth:{question}") == fields["response"]
            fresh = self._counts[nonce] < count <= (self.nonce_uses or count)
        except (ValueError, LookupError):
            return None  # not a Digest header, not one of our users, or not one of our nonces
        if not (right and fresh and fields.get("uri") == uri):
            return None
        self._counts[nonce] = count
        return user

    def may_read(self, user: str, path: str) -> bool:
        """Return whether this user may read this path."""
        return user == "installer" or path != STREAM


class TokenLogin:
    """Tokens and sessions of firmware >= 7, users `owner` and `installer`.

    refused: tokens that are rejected though they look right. max_sessions: how many may exist at the same time.
    """

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.max_sessions = 8
        self._sessions: dict[str, tuple[str, float]] = {}  # whose it is, and when it ends unless it is used

    def user(self, authorization: str, cookie: str, serial: str) -> str | None:
        """Return whose session or token this is, None if neither is valid; a token must name this serial number."""
        if session := self._session(cookie):
            user, _ = self._sessions[session]
            self._sessions[session] = (user, time.monotonic() + SESSION_IDLE_S)
            return user
        scheme, _, token = authorization.partition(" ")
        try:
            _, payload, signature = token.split(".")
            claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
            good = claims["aud"] == serial and claims["exp"] > time.time() and signature == _NO_SIGNATURE
            user = str(claims["enphaseUser"])
        except (ValueError, LookupError, TypeError):
            return None  # not a token
        return user if good and scheme == "Bearer" and token not in self.refused and user in TOKEN_LIFETIME_S else None

    def may_read(self, user: str, path: str, version: tuple[int, ...]) -> bool:
        """Return whether this user may read this path on this version of the firmware."""
        # Reports of one site each: owners can read the stream on D7.0.88, not on D7.6.175, and again on D8.3.6086.
        return user == "installer" or path != STREAM or not (7, 6) <= version < (8, 3)

    def open_session(self, user: str, cookie: str) -> str | None:
        """Return this cookie's session or a new one, None when there are too many."""
        if session := self._session(cookie):
            return session
        if sum(end > time.monotonic() for _, end in self._sessions.values()) >= self.max_sessions:
            return None
        session = secrets.token_hex(16)
        self._sessions[session] = (user, time.monotonic() + SESSION_IDLE_S)
        return session

    def end_sessions(self) -> None:
        """Forget every session, as a restart of the gateway does."""
        self._sessions = {}

    def _session(self, cookie: str) -> str | None:
        try:
            morsel = SimpleCookie(cookie).get("sessionId")
        except CookieError:
            return None
        session = morsel.value if morsel else ""
        return session if session in self._sessions and self._sessions[session][1] > time.monotonic() else None


def make_token(serial: str, expires_at: float, user: str = "owner") -> str:
    """Make a JWT like Enphase's, but with a fake signature; expires_at in epoch seconds."""
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
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims))
    return ".".join((*parts, _NO_SIGNATURE))


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
