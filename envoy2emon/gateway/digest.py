"""Digest authentication, for firmware below 7: who we are, in answer to the gateway's challenge.

The law of this file: the password goes nowhere but into the hash. Source: RFC 2617; the gateway's challenge has
qop="auth", a realm and a nonce, no algorithm and so MD5 (pyenphase's recordings).
"""

from urllib.error import URLError
from urllib.request import (
    AbstractDigestAuthHandler,
    HTTPPasswordMgrWithDefaultRealm,
    Request,
    parse_http_list,
    parse_keqv_list,
)


class Digest:
    """One user at one gateway; the last challenge's nonce serves for as long as the gateway lets it."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url
        passwords = HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, url, user, password)
        self._handler = AbstractDigestAuthHandler(passwords)
        self._challenge: dict[str, str] = {}

    def take(self, challenge: str) -> None:
        """Take the WWW-Authenticate header of a 401; R3.9.36 answers bad credentials with one that is none."""
        scheme, _, fields = challenge.partition(" ")
        try:
            self._challenge = parse_keqv_list(parse_http_list(fields)) if scheme.lower() == "digest" else {}
        except (ValueError, IndexError):
            self._challenge = {}

    def headers(self, path: str) -> dict[str, str]:
        """Return the header that answers the challenge for a GET of `path`; none if that is not possible."""
        try:
            answer = self._handler.get_authorization(Request(self._url + path), self._challenge)  # noqa: S310 - http
        except (URLError, ValueError):  # a kind of challenge that no gateway is known to send, a password beyond ASCII
            return {}
        return {"Authorization": f"Digest {answer}"} if answer else {}
