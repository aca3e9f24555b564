"""Local servers that have a model: S3 and a hub, each in its own process."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from devcluster import storage
from devcluster.ports import free_ports

ADDRESS, BUCKET, NAME = "127.0.0.1", "models", "base"
PATIENCE_SECONDS = 60.0
SOURCES = ("s3", "hub")
PORTS = [
    *(f"{server}.port{kind}" for server in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")),
    *("s3.port.iceberg", "s3.port.lance"),
]
"""All ports of SeaweedFS. By default they are those of the local cluster, or 10,000 above another one of them."""


@contextmanager
def model_on(source: str, model: Path, scratch: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Provides the URI of a copy of the folder `model`, and the parts of a bundle with which it is read.

    `source`: one of SOURCES. `scratch`: an empty folder."""
    if source == "s3":
        with _s3(model, scratch) as endpoint:
            yield f"s3://{BUCKET}/{NAME}", {"storages": [{"buckets": [BUCKET], "endpoint": endpoint}]}
    else:
        with _hub(model, scratch) as endpoint:
            yield f"hf://acme/{NAME}", {"hub": {"endpoint": endpoint}}


@contextmanager
def _hub(model: Path, scratch: Path) -> Iterator[str]:
    (scratch / "acme").mkdir()
    (scratch / "acme" / NAME).symlink_to(model)
    command = [sys.executable, "-m", "tests.integration.hub_server", str(scratch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.kill()


@contextmanager
def _s3(model: Path, scratch: Path) -> Iterator[str]:
    """SeaweedFS, as in the local cluster. The keys are in the environment variables of the child processes."""
    config = scratch / "s3.json"
    storage.write_config(config)
    keys, ports = storage.read_keys(config, "admin"), dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    endpoint = f"http://{ADDRESS}:{ports['s3.port']}"
    command = storage.command(scratch / "s3", config, ADDRESS) + [f"-{name}={port}" for name, port in ports.items()]
    with (scratch / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            client = boto3.client(
                "s3",
                endpoint_url=endpoint,
                region_name="us-east-1",
                aws_access_key_id=keys.access_key,
                aws_secret_access_key=keys.secret_key,
            )
            _make_bucket(client)
            for file in model.iterdir():
                client.upload_file(str(file), BUCKET, f"{NAME}/{file.name}")
            (scratch / "keys").write_text(f"{keys.access_key} {keys.secret_key}")
            yield endpoint
        finally:
            server.kill()


def environment(scratch: Path) -> dict[str, str]:
    """Returns the variables with which a child process may read from S3."""
    path = scratch / "keys"
    if not path.exists():
        return {}
    key, secret = path.read_text().split()
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}


def _make_bucket(client: Any) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            return
        except client.exceptions.BucketAlreadyOwnedByYou:
            return  # by a try whose answer was lost
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
