"""HTTP for the live page: a request's head in, its answer out.

Only the method and path of a request have any effect, no request changes anything, and each connection has one answer.
Source: RFC 9112; Content Security Policy, levels 1 to 3.
"""

import base64
import hashlib
import re
import socket
from functools import cache
from pathlib import Path

MAX_VIEWERS = 32
TEXT = "text/plain; charset=utf-8"

# Browsers and iOS request these by themselves.
ICONS = (b"/favicon.ico", b"/apple-touch-icon.png", b"/apple-touch-icon-precomposed.png")
_ICON = Path(__file__).with_name("icon.png").read_bytes()
_ONLY_READ = b"This page can only be read.\n"
_NOT_HERE = b"There are / and /events here, nothing else.\n"
_FULL = b"%d viewers are watching, and no more are possible: close one, then try again.\n" % MAX_VIEWERS
_NOTHING = "Content-Security-Policy: default-src 'none'; base-uri 'none'; form-action 'none'"
# For Safari on iOS 7 to 9 (CSP 1, no hashes). Browsers that know hashes ignore 'unsafe-inline' beside one (CSP 2).
_INLINE = (
    "; img-src 'self'; connect-src 'self'"
    "; style-src 'unsafe-inline' 'sha256-{}'; script-src 'unsafe-inline' 'sha256-{}'"
)
_INLINE_TEXT = re.compile(rb"<(?:style|script)>(.*?)</(?:style|script)>", re.DOTALL)

# The most bytes that wait for one viewer, in the kernel and again in this process. A full history is 18 kB, a reading
# 70 bytes, so a viewer with more waiting is many minutes behind.
MAX_UNSENT = 64 * 1024
# Milliseconds after which the kernel drops a viewer that acknowledges nothing (tcp(7)); its own limit is 15 minutes.
DEAD_MS = 60_000


def answer(request: bytes, page: bytes, viewers: int) -> tuple[bytes, bool]:
    """Return the answer to a request's head, and whether events are to follow it; page is the HTML of `/`."""
    method, path = _method_and_path(request)
    if not path:
        reply = _reply("400 Bad Request", TEXT, _NOT_HERE)
    elif method not in (b"GET", b"HEAD"):
        reply = _reply("405 Method Not Allowed", TEXT, _ONLY_READ, "Allow: GET, HEAD")
    elif path in ICONS:
        reply = _reply("200 OK", "image/png", _ICON)
    elif path not in (b"/", b"/events"):
        reply = _reply("404 Not Found", TEXT, _NOT_HERE)
    elif viewers >= MAX_VIEWERS:
        reply = _reply("503 Service Unavailable", TEXT, _FULL, "Retry-After: 30")
    elif path == b"/":
        reply = _reply("200 OK", "text/html; charset=utf-8", page)
    else:
        reply = _reply("200 OK", "text/event-stream", None, "Access-Control-Allow-Origin: *")
        return reply, method == b"GET"
    return (reply[: reply.index(b"\r\n\r\n") + 4] if method == b"HEAD" else reply), False


def _method_and_path(request: bytes) -> tuple[bytes, bytes]:
    """Return the method and path of the request line, split in one pass; the path is empty if it is malformed."""
    words = request.partition(b"\r\n")[0].split(b" ")
    if len(words) == 3 and words[0] and words[2] in (b"HTTP/1.0", b"HTTP/1.1"):  # noqa: PLR2004 - method, target, version
        return words[0], words[1].partition(b"?")[0]
    return b"GET", b""


def listener(listen: str) -> socket.socket:
    """Listen on HOST:PORT or [ADDRESS]:PORT; `[::]` accepts IPv4 as well. Raises OSError."""
    host, _, port = listen.rpartition(":")
    name = host.strip("[]").encode()  # because an overlong name as str raises UnicodeError
    family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    sock = socket.create_server(address, family=family, dualstack_ipv6=address[0] == "::")
    # On Linux the accepted connections inherit both options.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_UNSENT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_MS)
    return sock


def _reply(status: str, content_type: str, body: bytes | None, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Cache-Control: no-store", "Connection: close"]
    lines += ["Referrer-Policy: no-referrer", "X-Content-Type-Options: nosniff", _policy(body or b""), *headers]
    lines += [] if body is None else [f"Content-Length: {len(body)}"]
    return "\r\n".join((*lines, "", "")).encode() + (body or b"")


@cache
def _policy(body: bytes) -> str:
    if inline := _INLINE_TEXT.findall(body):
        return _NOTHING + _INLINE.format(*(base64.b64encode(hashlib.sha256(text).digest()).decode() for text in inline))
    return _NOTHING
