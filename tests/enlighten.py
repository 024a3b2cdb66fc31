"""A stand-in for Enphase's two servers: Enlighten, which takes logins, and Entrez, which issues tokens."""

import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Self
from urllib.parse import parse_qs

from envoy2emon.demo.gateway import make_token

LOGIN_PATH, TOKEN_PATH = "/login/login.json", "/tokens"


class Enlighten:
    """Both servers, at `login_url` and `token_url` within the `with` block. The attributes may be set at any time.

    answers: by path, status and text that replace the usual answer. hangs: no answer comes until `release` is set.
    asked is set by the first request. user: whose tokens are issued; lifetime: theirs, in s. logins: the status of each
    login; tokens: those issued.
    """

    def __init__(self, email: str = "owner@example.org", password: str = "enlighten-password") -> None:
        self.email, self.password = email, password
        self.hangs = False
        self.answers: dict[str, tuple[int, str]] = {}
        self.user, self.lifetime = "owner", 365 * 86_400.0
        self.logins: list[int] = []
        self.tokens: list[str] = []
        self._sessions: set[str] = set()
        self.asked, self.release = threading.Event(), threading.Event()

    def settings(self) -> dict[str, str]:
        """Return the settings for the account and these servers."""
        return {
            "ENPHASE_EMAIL": self.email,
            "ENPHASE_PASSWORD": self.password,
            "ENPHASE_LOGIN_URL": self.login_url,
            "ENPHASE_TOKEN_URL": self.token_url,
        }

    def __enter__(self) -> Self:
        """Serve."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.enlighten = self
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="Enlighten", daemon=True).start()
        base = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.login_url, self.token_url = base + LOGIN_PATH, base + TOKEN_PATH
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and release requests that hang."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> tuple[int, str]:
        """Return status and text for a POST."""
        self.asked.set()
        if self.hangs:
            self.release.wait()
        known = {LOGIN_PATH: self._login, TOKEN_PATH: self._token}.get(path)
        status, text = self.answers.get(path) or ((404, "") if known is None else known(body.decode()))
        if path == LOGIN_PATH:
            self.logins.append(status)
        return status, text

    def _login(self, body: str) -> tuple[int, str]:
        form = parse_qs(body)
        if form.get("user[email]") != [self.email] or form.get("user[password]") != [self.password]:
            return 401, '{"success":false,"message":"Invalid email or password"}'
        session = secrets.token_hex(16)
        self._sessions.add(session)
        return 200, json.dumps({"message": "success", "session_id": session, "is_consumer": self.user == "owner"})

    def _token(self, body: str) -> tuple[int, str]:
        try:
            wanted = json.loads(body)
        except ValueError:
            wanted = {}
        if wanted.get("session_id") not in self._sessions or wanted.get("username") != self.email:
            return 401, "Unauthorized"
        self.tokens.append(make_token(wanted["serial_num"], time.time() + self.lifetime, self.user))
        return 200, self.tokens[-1]


class _Server(ThreadingTCPServer):
    daemon_threads = True
    enlighten: Enlighten


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, text = self.server.enlighten.answer(self.path.partition("?")[0], body)
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if text.startswith("{") else "text/html")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
