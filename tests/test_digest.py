"""Digest answers, judged by the simulated gateway's own reckoning."""

import pytest

from envoy2emon.gateway.digest import Digest
from envoy2emon.demo.logins import STREAM, DigestGate, digest_fields

URL = "http://127.0.0.1:8080"


def test_the_answer_is_what_a_gateway_reckons() -> None:
    """A challenge is answered for user, password and path; its nonce serves again, with a count that grows."""
    gate, digest = DigestGate(), Digest(URL, "installer", 'secret "quoted"')
    assert digest.headers(STREAM) == {}
    digest.take(gate.challenge())
    counts = []
    for _ in range(3):
        header = digest.headers(STREAM)["Authorization"]
        fields = digest_fields(header)
        assert "secret" not in header
        assert gate.knows(fields, STREAM, {"installer": 'secret "quoted"'})
        assert not gate.knows(fields, STREAM, {"installer": "another"})
        assert gate.spend(fields)
        counts.append(fields["nc"])
    assert counts == ["00000001", "00000002", "00000003"]
    digest.take(gate.challenge())
    assert digest_fields(digest.headers("/info")["Authorization"])["nc"] == "00000001"


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Digest",
        "Digest realm=",
        "Digest nonsense",
        'Basic realm="enphaseenergy.com"',
        'Digest realm="enphaseenergy.com"',
        'Digest realm="r", nonce="n", algorithm="SHA-512-256"',
        'Digest realm="r", nonce="n", qop="auth-int"',
    ],
)
def test_a_challenge_that_cannot_be_answered_is_not(challenge: str) -> None:
    """Garbage, as R3.9.36 sends to bad credentials, and kinds that no gateway is known to send, get no answer."""
    digest = Digest(URL, "installer", "secret")
    digest.take(DigestGate().challenge())
    digest.take(challenge)
    assert digest.headers(STREAM) == {}


def test_a_password_beyond_ascii_is_no_crash() -> None:
    """Installers' passwords are ASCII: another one gets no answer, and so the gateway's refusal."""
    digest = Digest(URL, "installer", "g\N{LATIN SMALL LETTER U WITH DIAERESIS}n")
    digest.take(DigestGate().challenge())
    assert digest.headers(STREAM) == {}
