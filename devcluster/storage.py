"""SeaweedFS as the cluster's S3, with signatures enforced."""

import json
import secrets
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

PORT = 8333
REGION = "us-east-1"
IDENTITIES = {"admin": ["Admin", "Read", "Write", "List", "Tagging"], "reader": ["Read", "List"]}
"""admin may do everything; reader may not write, for trying what a job says then."""


@dataclass(frozen=True)
class S3Keys:
    """One identity's keys."""

    access_key: str
    secret_key: str


def write_config(path: Path) -> None:
    """A fresh pair of keys for each identity; the file is SeaweedFS's and ours to read them back from."""
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
    """The keys of `identity`, one of IDENTITIES."""
    entries = json.loads(path.read_text())["identities"]
    pair = next(entry["credentials"][0] for entry in entries if entry["name"] == identity)
    return S3Keys(pair["accessKey"], pair["secretKey"])


def secret_manifest(keys: S3Keys, name: str, namespace: str) -> str:
    """The Secret a FineTuneProfile's storage names, as a manifest."""
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
    """SeaweedFS's master, volume server, filer and S3 gateway in one process."""
    folder.mkdir(parents=True, exist_ok=True)
    weed = str(Path(sys.prefix) / "bin" / "weed")
    return [
        weed,
        "server",
        f"-dir={folder}",
        f"-ip={address}",
        "-ip.bind=0.0.0.0",
        "-master.volumeSizeLimitMB=512",
        "-volume.max=1000",  # each bucket takes seven as soon as it holds anything
        "-filer",
        "-s3",
        f"-s3.port={port}",
        f"-s3.config={config}",
    ]
