"""HTTP to Enphase: a login and a token, for firmware 7 and later.

The law of this file: every way in which this can fail has its own words, and none of them holds a password.
Sources: pyenphase; HA issue 155793 (accounts with two-factor login).
"""

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from envoy2emon.settings import Config

if TYPE_CHECKING:
    import requests

_TIMEOUT = (10.0, 30.0)


class NoToken(Exception):
    """There is no token that would do; the text says why, and what to do."""


def fetch(config: Config, serial: str) -> str:
    """Log in as ENPHASE_EMAIL and return a token for the gateway `serial`, as sent. Raises NoToken."""
    assert config.enphase_email and config.enphase_password  # noqa: S101, PT018 - the caller has them
    login = {"user[email]": config.enphase_email, "user[password]": config.enphase_password.value}
    answer = _ask(config.enphase_login_url, "login", data=login)
    try:
        account = answer.json()
    except ValueError:
        account = None
    if not isinstance(account, dict):
        raise NoToken("Enphase's login answers something that is no login: it is tried again later")
    if account.get("isBlocked"):
        raise NoToken("Enphase has blocked the account ENPHASE_EMAIL: log in with a browser and see why")
    if not account.get("session_id"):
        raise NoToken("the account ENPHASE_EMAIL has two-factor login (MFA): switch it off, or paste ENVOY_TOKEN")
    order = {"session_id": account["session_id"], "serial_num": serial, "username": config.enphase_email}
    return _ask(config.enphase_token_url, "token service", json=order).text.strip()


def _ask(url: str, service: str, **body: Any) -> "requests.Response":  # noqa: ANN401
    import requests  # noqa: PLC0415 - 70 ms and 10 MB for what happens once a year

    try:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.post(url, timeout=_TIMEOUT, allow_redirects=False, **body)
    except requests.RequestException as error:
        reason = type(error).__name__
        raise NoToken(f"Enphase's {service} cannot be reached ({reason}): has the Pi Internet?") from None
    status = answer.status_code
    if status == HTTPStatus.OK:
        return answer
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise NoToken("Enphase does not accept ENPHASE_EMAIL and ENPHASE_PASSWORD: log in with a browser to test")
    if status == HTTPStatus.NOT_ACCEPTABLE:
        raise NoToken(f"Enphase's {service} answers 406: is this gateway registered to the account ENPHASE_EMAIL?")
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise NoToken(f"Enphase's {service} is overloaded or under repair (503): it is tried again later")
    raise NoToken(f"Enphase's {service} answers {status}: it is tried again later")
