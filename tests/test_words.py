"""clean() makes any text fit to be shown to anyone: one line, without secrets and control characters."""

import json
import re
import unicodedata
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envoy2emon.words import clean, keep_secret

KEY = "0123456789abcdef0123456789abcdef"
TRICKY = 'it\'s "#1" pa\\\\ss/&wörd😀'
# Possible passwords: without the stars that replace them, and too long to be ordinary words.
SECRETS = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="*"), min_size=16, max_size=40)


@given(st.text(), st.integers(0, 50) | st.none())
@example("\x1b[2J\x9b31m\r\n\t\u202eevil\u2066\ud800\x7f\u2028\u0085end", None)
def test_one_line_without_control_characters(text: str, most: int | None) -> None:
    """Any text gives one line of at most `most` characters that can be encoded and has no control characters."""
    said = clean(text, most)
    assert not {unicodedata.category(letter) for letter in said} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    said.encode()
    assert most is None or len(said) <= most
    assert clean(said) == said.strip() or most is not None


def test_what_stands_for_what() -> None:
    """White space of any kind and length becomes one space, and other controls question marks; letters stay."""
    assert clean("  a\n\tb\u2028c\x00\x1b[1m d\u202eé\ud83d😀 ") == "a b c??[1m d?é?😀"


ECHOES = {
    "plain": str,
    "percent": lambda text: quote(text, safe=""),
    "percent of a form": quote_plus,
    "percent in lower case": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
    "percent for all": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON as PHP writes it": lambda text: json.dumps(text)[1:-1].replace("/", r"\/"),
    "repr": lambda text: repr(text)[1:-1],
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@given(SECRETS | st.sampled_from([KEY, TRICKY, "\\" * 20]), st.text(max_size=20), st.text(max_size=20))
def test_no_echo_of_a_secret_gets_out(echo, secret: str, before: str, behind: str) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - of ECHOES
    """A secret is replaced by three stars, in whatever form a peer sends it back and whatever is around it."""
    keep_secret(secret)
    said = clean(f"{before} {echo(secret)} {behind}")
    assert "***" in said
    assert secret not in said
    assert echo(secret) not in said


@given(SECRETS, st.integers(0, 40))
def test_secrets_are_replaced_before_the_cut(secret: str, most: int) -> None:
    """Cutting a text leaves no piece of a secret behind, because secrets are replaced first."""
    keep_secret(secret)
    assert clean("**********" + secret, most) == "*************"[:most]


def test_controls_do_not_hide_a_secret() -> None:
    """White space and control characters cannot hide a secret, because they are replaced before secrets are."""
    keep_secret("my secret? words")
    assert clean("my\r\n secret\x1b\twords") == "***"


def test_one_secret_within_another() -> None:
    """If one secret is part of another, the longer one is replaced as a whole."""
    for secret in ("hunter22", "hunter22hunter22", ""):
        keep_secret(secret)
    assert clean("hunter22hunter22, hunter22hunter, x") == "***, ***hunter, x"


@pytest.mark.parametrize(
    ("secret", "text", "said"),
    [
        ("envoy", "the envoys of envoy2emon: http://envoy.local, my-envoy, my_envoy_inv", None),
        ("W", "6540 Watts, D7.W", None),
        ("345678", "gateway 122012345678", None),
        (
            "envoy",
            "user:envoy@host p=%20envoy&x, 'envoy\\n' is it. envoy.",
            "user:***@host p=%20***&x, '***\\n' is it. ***.",
        ),
        ("a1b2c3d4", "xa1b2c3d4x", "x***x"),
    ],
)
def test_ordinary_words(secret: str, text: str, said: str | None) -> None:
    """A secret that may be an ordinary word or number is replaced only where it stands alone, any other everywhere."""
    keep_secret(secret)
    assert clean(text) == (said or text)
