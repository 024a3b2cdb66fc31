"""What `check` prints: one line per answer, which its reader can post in a forum.

No line holds a secret, a password in a URL, an e-mail address, or more of a serial number than its last four digits.
"""

import os
import re
import sys
from dataclasses import dataclass

from envoy2emon.words import clean

LOCAL_NAMES = "names in .local need, if they are not yet there: sudo apt install avahi-daemon libnss-mdns"
_HIDDEN = (
    (re.compile(r"(?<=//)\S*@"), "***@"),  # user and password in a URL
    (re.compile(r"(?i)(?<=apikey=)[\w-]+"), "***"),
    # A value that is not valid, as repr() shows it.
    (re.compile(r"""(?<=ENPHASE_EMAIL is )(['"]).*?\1(?=: expected)"""), "'***'"),
    (re.compile(r"""(?<=ENVOY_SERIAL is )(['"]).*?\1(?=: expected)"""), "'***'"),
    (re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+"), "***"),
    # Serial numbers of gateways and inverters have twelve digits; the last four distinguish those of one site.
    (re.compile(r"(?<![^\W_])\d{4,}(\d{4})(?![^\W_])"), r"...\1"),
)
_ENV_FILE = re.compile(r"(?<![\w/.*])\.env(?![\w.])")


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer. word: ok, warn or FAIL. subject: what was asked about."""

    word: str
    subject: str
    text: str


@dataclass(slots=True)
class Found:
    """What answers contribute to later questions; None means not known.

    gateway_ahead, emoncms_ahead: the seconds by which these clocks are ahead of this computer's. meters: whether the
    gateway has any. newest_report: the date of its newest inverter report, epoch s by its clock, 0 if it lists none.
    """

    gateway_ahead: float | None = None
    emoncms_ahead: float | None = None
    meters: bool | None = None
    newest_report: int | None = None


def ok(subject: str, text: str) -> Verdict:
    """Say that all is well."""
    return Verdict("ok", subject, text)


def warn(subject: str, text: str) -> Verdict:
    """Say what works but may not be intended."""
    return Verdict("warn", subject, text)


def fail(subject: str, text: str) -> Verdict:
    """Say what does not work; the text holds the cure."""
    return Verdict("FAIL", subject, text)


def sentences(*parts: str) -> str:
    """Join the parts that are not empty, each as a sentence, the last one without its full stop."""
    return " ".join(part if part.endswith("?") else f"{part}." for part in parts if part).removesuffix(".")


class Report:
    """Prints verdicts as they come. failed: whether one was FAIL. env_file: the path printed in place of ".env"."""

    def __init__(self) -> None:
        self.failed = False
        self.env_file = ".env"

    def say(self, verdict: Verdict) -> None:
        """Print one line."""
        self.failed |= verdict.word == "FAIL"
        text = clean(_ENV_FILE.sub(lambda _: self.env_file, verdict.text))
        for pattern, instead in _HIDDEN:
            text = pattern.sub(instead, text)
        try:
            print(f"{verdict.word:<5} {verdict.subject:<10} {text}", flush=True)
        except BrokenPipeError:  # `check | head` has seen enough; the exit status still counts
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
