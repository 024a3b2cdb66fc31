"""What `check` says: one line an answer.

The law of this file: every line can be posted in a forum. It holds no secret, no e-mail address and no serial number
in full.
"""

import os
import re
import sys
from dataclasses import dataclass

_HIDDEN = (
    (re.compile(r"(?<=//)\S*@"), "***@"),  # user and password in a URL
    (re.compile(r"(?i)(?<=apikey=)[\w-]+"), "***"),
    # A value that did not do, as repr() shows it.
    (re.compile(r"""(?<=ENPHASE_EMAIL is )(['"]).*?\1(?=: expected)"""), "'***'"),
    (re.compile(r"""(?<=ENVOY_SERIAL is )(['"]).*?\1(?=: expected)"""), "'***'"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), "***"),
    # Gateways and inverters have twelve digits; the last four tell them apart at home.
    (re.compile(r"(?<![^\W_])\d{4,}(\d{4})(?![^\W_])"), r"...\1"),
)

# Stars within a longer word, or within a name such as envoy.local, would tell a password that is an ordinary word.
_WORD = re.compile(r"[\w.-]{4,15}")
_BEFORE = r"(?:(?<![^\W_])(?<![^\W_][._-])|(?<=\\[nrt])|(?<=%[\da-fA-F]{2}))"  # an escaped character is no letter
_BEHIND = r"(?![._-]?[^\W_])"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer: `word` is ok, warn or FAIL, `subject` what was asked about."""

    word: str
    subject: str
    text: str


def ok(subject: str, text: str) -> Verdict:
    """Say that all is well."""
    return Verdict("ok", subject, text)


def warn(subject: str, text: str) -> Verdict:
    """Say what works, but may not be meant."""
    return Verdict("warn", subject, text)


def fail(subject: str, text: str) -> Verdict:
    """Say what does not work; the text holds the cure."""
    return Verdict("FAIL", subject, text)


class Report:
    """Prints verdicts as they come; `failed` as soon as one is FAIL. `secrets` are printed as stars."""

    def __init__(self) -> None:
        self.failed = False
        self.secrets: list[str] = []

    def say(self, verdict: Verdict) -> None:
        """Print one line."""
        self.failed |= verdict.word == "FAIL"
        try:
            print(f"{verdict.word:<5} {verdict.subject:<10} {self._safe(verdict.text)}", flush=True)
        except BrokenPipeError:  # `check | head` has seen enough; the exit status still counts
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _safe(self, text: str) -> str:
        # The longest first: one secret may be part of another. A very short one would turn ordinary words into stars.
        for secret in sorted(self.secrets, key=len, reverse=True):
            if _WORD.fullmatch(secret):
                text = re.sub(f"{_BEFORE}{re.escape(secret)}{_BEHIND}", "***", text)
            elif len(secret) > 3:  # noqa: PLR2004
                text = text.replace(secret, "***")
        for pattern, instead in _HIDDEN:
            text = pattern.sub(instead, text)
        return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
