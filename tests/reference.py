"""The forum scripts' loop, with which the benchmark compares our cost: `python -m tests.reference`.

It does what they did and nothing more. Settings come from the environment: ENVOY_HOST, ENVOY_PASSWORD, EMONCMS_URL,
EMONCMS_APIKEY.
"""

import json
import os

import requests
from requests.auth import HTTPDigestAuth

SECTIONS = {"prod": "production", "cons": "total-consumption", "net": "net-consumption"}
KEYS = {"wNow": "p", "rmsVoltage": "v", "rmsCurrent": "i", "pwrFactor": "pf"}


def main() -> None:
    """Follow the stream, and post each event to EmonCMS over a new connection."""
    envoy, password, emoncms, key = (
        os.environ[name] for name in ("ENVOY_HOST", "ENVOY_PASSWORD", "EMONCMS_URL", "EMONCMS_APIKEY")
    )
    login = HTTPDigestAuth("installer", password)
    stream = requests.get(f"http://{envoy}/stream/meter", auth=login, stream=True, timeout=60)
    for line in stream.iter_lines():
        if line.startswith(b"data: "):
            data = json.loads(line[6:])
            inputs = {
                f"{name}_{phase}_{key}": data[section][phase][short]
                for name, section in SECTIONS.items()
                for phase in data[section]
                for key, short in KEYS.items()
            }
            query = f"node=Envoy-S&fulljson={json.dumps(inputs)}&apikey={key}"
            requests.get(f"{emoncms}/input/post?{query}", timeout=60)


if __name__ == "__main__":
    main()
