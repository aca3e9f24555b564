"""Run `python -m tests.integration.hub_server FOLDER`: every FOLDER/ORG/NAME is a public model."""

import sys
from pathlib import Path

from tests.integration.hub_server.server import HubServer, on_loopback

if __name__ == "__main__":
    hub = HubServer(on_loopback)
    for config in Path(sys.argv[1]).glob("*/*/config.json"):
        hub.commit("/".join(config.parts[-3:-1]), config.parent)
    print(hub.endpoint, flush=True)
    sys.stdin.read()
