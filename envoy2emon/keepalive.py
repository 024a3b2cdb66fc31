"""Whether a connection that was kept can be used again: for both sides alike.

The law of this file: nothing is sent, and nothing is waited for.
"""

import select
import socket
import ssl


def usable(sock: socket.socket, timeout: float) -> bool:
    """Tell whether the other side has neither closed it nor said anything unasked; the socket's timeout is set anew.

    A TLS 1.3 server sends session tickets behind its handshake, which are nothing said.
    """
    if not select.select([sock], [], [], 0)[0]:
        return True
    sock.settimeout(0)
    try:
        sock.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    finally:
        sock.settimeout(timeout)
    return False
