"""Text that leaves this program is cleaned: one line, no secrets, no control characters, and a limited length.

All text in the log, in STATUS= and from `check` passes clean(), because much of it comes from the gateway and EmonCMS.
"""

import re
from functools import cache

secrets: set[str] = set()  # what clean() replaces

# A secret of this form may be an ordinary word or number. It is replaced only where it stands alone, because stars
# within a longer word, or within a name such as envoy.local, would reveal it.
_ORDINARY = re.compile(r".{1,3}|[^\W\d_]{1,15}|\d{1,15}")
_BEFORE = r"(?:(?<![^\W_])(?<![^\W_][._-])|(?<=\\[nrt])|(?<=%[\da-fA-F]{2}))"  # an escape is not part of a word
_BEHIND = r"(?![._-]?[^\W_])"


def keep_secret(secret: str) -> None:
    """Make clean() replace this secret from now on, also as encoded in URLs and JSON."""
    if plain := _plain(secret):
        secrets.add(plain)


def clean(text: str, most: int | None = None) -> str:
    """Return text as one line that is safe to show to anyone, cut to `most` characters."""
    text = _plain(text)
    for secret in sorted(secrets, key=len, reverse=True):  # longest first, because one may be part of another
        text = _pattern(secret).sub("***", text)
    return text if most is None else text[:most]


def _plain(text: str) -> str:
    """Collapse white space, and replace ESC and other controls, direction marks and lone surrogates with "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


@cache
def _pattern(secret: str) -> re.Pattern[str]:
    """Return a pattern for a secret as it is, percent-encoded in whole or in part, or escaped as in JSON."""
    found = "".join(map(_character, re.findall(r"\\+|.", secret)))
    return re.compile(_BEFORE + found + _BEHIND if _ORDINARY.fullmatch(secret) else found)


def _character(character: str) -> str:
    if character.startswith("\\"):  # a run is matched as one, or the ways to match it would multiply
        return rf"(?:\\u005[cC]|\\|%5[cC]){{{len(character)},{2 * len(character)}}}"
    utf_8 = "".join(f"%{byte:02x}" for byte in character.encode())
    utf_16 = re.sub("(....)", r"\\\\u\1", character.encode("utf-16-be").hex())
    sign = "" if character.isalnum() else r"\\?"
    return f"(?:{sign}{re.escape(character)}|(?i:{utf_8}|{utf_16}){r'|[+]' if character == ' ' else ''})"
