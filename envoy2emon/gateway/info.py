"""What /info says without a login: which gateway it is, its firmware, and how to log in.

Nothing in it is trusted, because anything may answer at ENVOY_HOST.
"""

import re
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

from envoy2emon.words import clean


@dataclass(frozen=True, slots=True)
class Info:
    """What /info says; two that are equal have the same login.

    url: without a path. firmware: such as D7.6.175. metered: whether it says that the gateway has meters. ahead: the
    seconds by which the gateway's clock is ahead of this computer's; None if /info gives no time.
    """

    url: str
    serial: str
    firmware: str
    needs_token: bool
    metered: bool
    ahead: float | None = field(compare=False)


def urls(host: str) -> list[str]:
    """Return the URLs at which the gateway of ENVOY_HOST may be, the likelier first."""
    if "://" in host:
        return [host]
    # A port that the owner sets gets both requests. http goes first, because a TLS server refuses a plain request at
    # once, but a plain server may wait for the rest of a TLS greeting until the timeout.
    schemes = ("https", "http") if urlsplit(f"//{host}").port in (None, 443) else ("http", "https")
    return [f"{scheme}://{host}" for scheme in schemes]


def read_info(url: str, text: str) -> Info:
    """Parse the XML of /info. Raises ValueError with a text for the owner."""
    try:
        # 30 000 entities crash expat. Defining one takes a DOCTYPE, and no gateway sends that.
        info = None if "<!DOCTYPE" in text else ET.fromstring(text.strip())  # noqa: S314 - bounded, without entities
    except (ET.ParseError, ValueError):
        info = None
    if info is None:
        raise ValueError(f"{url}/info is not a gateway's: is ENVOY_HOST right?")

    def find(name: str) -> str:
        return (info.findtext(name) or "").strip()

    serial, epoch = find("device/sn"), find("time")
    if not re.fullmatch(r"\w{1,20}", serial, re.ASCII):
        raise ValueError(f"{url}/info gives no serial number: is ENVOY_HOST right?")
    firmware = clean(find("device/software"), 40) or "?"
    # <web-tokens> is true from firmware 7 on and absent below, in all 38 of pyenphase's recordings.
    needs_token = find("web-tokens") == "true"
    if needs_token and not url.startswith("https"):
        raise ValueError(
            f"{url}, firmware {firmware}, needs a token, which is sent over https only: leave http:// out of ENVOY_HOST"
        )
    ahead = int(epoch) - time.time() if re.fullmatch(r"\d{1,11}", epoch, re.ASCII) else None
    return Info(url, serial, firmware, needs_token, find("device/imeter") == "true", ahead)
