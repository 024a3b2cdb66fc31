"""HTTP to Enphase: log in and get a token, for firmware 7 and later.

Every kind of failure has its own message, which quotes what the service says. The time is limited to a minute in all,
an answer to 1 MiB. Sources: pyenphase; HA issue 155793 (accounts with two-factor login).
"""

import json
import queue
import threading
from http import HTTPStatus
from typing import Any

from envoy2emon import web
from envoy2emon.settings import Settings
from envoy2emon.words import clean

LONGEST_S = 60.0
_CONNECT_S, _ANSWER_S = 10.0, 30.0
_LATER = "envoy2emon will try again later"


class NoToken(Exception):
    """There is no usable token; the text says why, and what to do."""


def fetch(settings: Settings, serial: str) -> str:
    """Log in as ENPHASE_EMAIL and return a token for the gateway `serial`, as sent. Raises NoToken."""
    answers: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_token(settings, serial, _session_id(settings)))
        except Exception as trouble:  # noqa: BLE001 - raised below, where the answer is awaited
            answers.put(trouble)

    # The timeout of requests starts again with every byte, so it does not limit the whole. A thread can be abandoned.
    threading.Thread(target=ask, name="Enphase", daemon=True).start()
    try:
        answer = answers.get(timeout=LONGEST_S)
    except queue.Empty:
        raise NoToken(f"Enphase does not answer within {LONGEST_S:.0f} s: {_LATER}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _session_id(settings: Settings) -> str:
    """Log in and return the session id. Raises NoToken."""
    assert settings.enphase_email and settings.enphase_password  # noqa: S101, PT018 - ensured by the caller
    form = {"user[email]": settings.enphase_email, "user[password]": settings.enphase_password.value}
    status, text = _ask(settings.enphase_login_url, "login", data=form)
    answer = _object(text)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        cure = "log in with a browser to test them"
        raise NoToken(f"Enphase does not accept ENPHASE_EMAIL and ENPHASE_PASSWORD{_quoted(text)}: {cure}")
    if status != HTTPStatus.OK:
        raise _unexpected_status("login", status, text)
    if answer is None:
        raise NoToken(f"Enphase's login answers with something that is not a login: {_LATER}")
    if answer.get("isBlocked"):
        raise NoToken("Enphase has blocked the account ENPHASE_EMAIL: log in with a browser and see why")
    if session_id := answer.get("session_id"):
        return str(session_id)
    if answer.get("message"):
        raise NoToken(f"Enphase's login gives no session{_quoted(text)}: log in with a browser to test the account")
    raise NoToken("the account ENPHASE_EMAIL has two-factor login (MFA): switch it off, or paste ENVOY_TOKEN")


def _token(settings: Settings, serial: str, session_id: str) -> str:
    """Request a token and return it. Raises NoToken."""
    order = {"session_id": session_id, "serial_num": serial, "username": settings.enphase_email}
    status, text = _ask(settings.enphase_token_url, "token service", json=order)
    if status == HTTPStatus.OK:
        return text.strip()
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_ACCEPTABLE):
        cure = f"gateway {serial} is not registered to the account ENPHASE_EMAIL, or its user may not have tokens"
        raise NoToken(f"Enphase's token service gives no token ({status}){_quoted(text)}: {cure}")
    raise _unexpected_status("token service", status, text)


def _ask(url: str, service: str, **body: Any) -> tuple[int, str]:  # noqa: ANN401
    """Post to a service; return the status and text of its answer. Raises NoToken."""
    cure = "does this computer have Internet access?"
    try:
        with web.session(url) as session, web.raising_failed(_ANSWER_S):
            timeout = (_CONNECT_S, _ANSWER_S)
            response = session.post(url, timeout=timeout, stream=True, **body)
            cure = _LATER
            return response.status_code, web.body(response)
    except web.Failed as failed:
        raise NoToken(f"Enphase's {service} {failed}: {cure}") from None


def _unexpected_status(service: str, status: int, text: str) -> NoToken:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return NoToken(f"Enphase's {service} was asked too often (429){_quoted(text)}: {_LATER}")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return NoToken(f"Enphase's {service} is overloaded or under maintenance ({status}): {_LATER}")
    return NoToken(f"Enphase's {service} answers {status}{_quoted(text)}: {_LATER}")


def _quoted(text: str) -> str:
    """Quote what a service says: the message of a JSON object, or plain text; nothing of HTML."""
    answer = _object(text)
    words = answer.get("message") if answer is not None else "" if text.lstrip().startswith("<") else text
    said = clean(str(words or ""), 200).strip()
    return f', and says "{said}"' if said else ""


def _object(text: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
