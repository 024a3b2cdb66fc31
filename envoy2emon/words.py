"""Words on their way out of this program: in one line, without secrets and control characters, and not without end.

The log, STATUS= and `check` show nothing that has not passed clean(), because neighbours choose many of the words.
"""

import re
from functools import cache

secrets: set[str] = set()  # what clean() replaces

# A secret like these may be an ordinary word or number. It counts only where it stands alone, because stars within a
# longer word, or within a name such as envoy.local, would tell it.
_ORDINARY = re.compile(r".{1,3}|[^\W\d_]{1,15}|\d{1,15}")
_BEFORE = r"(?:(?<![^\W_])(?<![^\W_][._-])|(?<=\\[nrt])|(?<=%[\da-fA-F]{2}))"  # an escaped character is no letter
_BEHIND = r"(?![._-]?[^\W_])"


def keep_secret(secret: str) -> None:
    """Have clean() replace this from now on, and what URLs and JSON make of it."""
    if plain := _plain(secret):
        secrets.add(plain)


def clean(text: str, most: int | None = None) -> str:
    """Return text in one line that may be shown to anyone, cut to `most` characters."""
    text = _plain(text)
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = _pattern(secret).sub("***", text)
    return text if most is None else text[:most]


def _plain(text: str) -> str:
    """Make white space one space, and ? of ESC and other controls, of those of direction, and of lone surrogates."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))


@cache
def _pattern(secret: str) -> re.Pattern[str]:
    """Match it as it is, percent-encoded in whole or in part, or escaped as in JSON."""
    found = "".join(map(_character, re.findall(r"\\+|.", secret)))
    return re.compile(_BEFORE + found + _BEHIND if _ORDINARY.fullmatch(secret) else found)


def _character(character: str) -> str:
    if character.startswith("\\"):  # several are one here: apart, the ways to match them would multiply
        return rf"(?:\\u005[cC]|\\|%5[cC]){{{len(character)},{2 * len(character)}}}"
    utf_8 = "".join(f"%{byte:02x}" for byte in character.encode())
    utf_16 = re.sub("(....)", r"\\\\u\1", character.encode("utf-16-be").hex())
    sign = "" if character.isalnum() else r"\\?"
    return f"(?:{sign}{re.escape(character)}|(?i:{utf_8}|{utf_16}){r'|[+]' if character == ' ' else ''})"
