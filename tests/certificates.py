"""A gateway's certificate: self-signed for envoy-SERIAL, valid for a year, like the one that firmware >= 7 makes."""

import hashlib
import shutil
import ssl
import subprocess
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from tests.daemons import skip_or_fail


class Certificate(NamedTuple):
    """A server's context, ready to serve, and the SHA-256 of its certificate in hexadecimal digits."""

    context: ssl.SSLContext
    sha256: str


def self_signed(serial: str, folder: Path) -> Certificate:
    """Make a new key and certificate in `folder` with openssl, as a Python package for it needs a compiler on armhf."""
    if not shutil.which("openssl"):
        skip_or_fail("openssl is not installed", "REQUIRE_BROWSER")
    made = Path(mkdtemp(dir=folder))
    key, certificate = made / "key.pem", made / "certificate.pem"
    kind = ("-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365")
    files = ("-subj", f"/CN=envoy-{serial}", "-keyout", str(key), "-out", str(certificate))
    subprocess.run(["openssl", "req", *kind, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return Certificate(context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest())
