"""Access to the S3 service, to upload the model and the rows and to download the results."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import S3UploadFailedError
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError

from devcluster import ClusterError
from examples.demo.target import Target

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Store:
    """The target's S3 service. Every method accepts complete URIs. Errors are ClusterErrors with URI and cause."""

    def __init__(self, target: Target) -> None:
        self._client: S3Client = boto3.session.Session().client(
            "s3",
            endpoint_url=target.endpoint,
            region_name=target.region,
            aws_access_key_id=target.keys.access_key,
            aws_secret_access_key=target.keys.secret_key,
            config=Config(
                connect_timeout=5,
                s3={"addressing_style": "path"},
                # Many S3-compatible services do not support checksums in trailers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def make_bucket(self, uri: str) -> None:
        """Creates the bucket of `uri` if it does not exist."""
        bucket, _ = _split(uri)
        with _explained(uri):
            try:
                self._client.head_bucket(Bucket=bucket)
            except ClientError:
                # The client repeats a request that was carried out and not answered.
                with suppress(self._client.exceptions.BucketAlreadyOwnedByYou):
                    self._client.create_bucket(Bucket=bucket)

    def write(self, uri: str, data: bytes) -> None:
        """Writes one object."""
        bucket, key = _split(uri)
        with _explained(uri):
            self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def read(self, uri: str) -> bytes:
        """Returns the content of one object."""
        bucket, key = _split(uri)
        with _explained(uri):
            return self._client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yields URI and size in bytes of every object whose URI begins with `prefix`."""
        bucket, key = _split(prefix)
        with _explained(prefix):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", []):
                    yield f"s3://{bucket}/{item['Key']}", item["Size"]

    def upload_folder(self, folder: Path, uri: str) -> None:
        """Uploads every file of `folder`, except files that already exist at `uri` with the same size."""
        there = dict(self.list(f"{uri}/"))
        for file in sorted(folder.iterdir()):
            bucket, key = _split(f"{uri}/{file.name}")
            if there.get(f"{uri}/{file.name}") != file.stat().st_size:
                with _explained(f"{uri}/{file.name}"):
                    self._client.upload_file(str(file), bucket, key)

    def free_prefix(self, uri: str) -> str:
        """Returns `uri` if no object exists below it, or else the first free one of `uri`-2, `uri`-3 and so on."""
        number, free = 1, uri
        while any(self.list(f"{free}/")):
            number += 1
            free = f"{uri}-{number}"
        return free


def sha256(data: bytes) -> str:
    """Returns the sha256 in hexadecimal, as in manifest.json."""
    return hashlib.sha256(data).hexdigest()


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        raise ClusterError(f"The S3 request for {uri} failed: {error}") from error
