"""SeaweedFS as the cluster's S3, with signatures enforced."""

import json
import secrets
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

PORT = 8333
REGION = "us-east-1"
_EVERYTHING = ["Admin", "Read", "Write", "List", "Tagging"]
IDENTITIES = {"admin": _EVERYTHING, "successor": _EVERYTHING, "reader": ["Read", "List"]}
"""admin and its successor have all permissions: keys are rotated in tests. reader cannot write, to test a job that may
not."""


@dataclass(frozen=True)
class S3Keys:
    """The keys of one identity."""

    access_key: str
    secret_key: str


def write_config(path: Path) -> None:
    """Writes new keys for each identity to `path`, unless the file exists. SeaweedFS also reads this file."""
    if path.exists():
        return
    identities = [
        {
            "name": name,
            "actions": actions,
            "credentials": [{"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_hex(20)}],
        }
        for name, actions in IDENTITIES.items()
    ]
    path.write_text(json.dumps({"identities": identities}, indent=1))
    path.chmod(0o600)


def read_keys(path: Path, identity: str) -> S3Keys:
    """Returns the keys of `identity`, one of IDENTITIES."""
    entries = json.loads(path.read_text())["identities"]
    pair = next(entry["credentials"][0] for entry in entries if entry["name"] == identity)
    return S3Keys(pair["accessKey"], pair["secretKey"])


def secret_manifest(keys: S3Keys, name: str, namespace: str) -> str:
    """Returns the manifest of the Secret that a FineTuneProfile's storage names."""
    pair = asdict(keys)
    data = {"AWS_ACCESS_KEY_ID": pair["access_key"], "AWS_SECRET_ACCESS_KEY": pair["secret_key"]}
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data,
    }
    return json.dumps(body)


def command(folder: Path, config: Path, address: str, port: int = PORT) -> list[str]:
    """Returns the command that runs SeaweedFS's master, volume server, filer and S3 gateway in one process."""
    folder.mkdir(parents=True, exist_ok=True)
    weed = str(Path(sys.prefix) / "bin" / "weed")
    return [
        weed,
        "server",
        f"-dir={folder}",
        f"-ip={address}",
        "-ip.bind=0.0.0.0",
        "-master.volumeSizeLimitMB=512",
        "-volume.max=1000",  # Each bucket that is not empty needs seven volumes.
        "-filer",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={config}",
    ]
