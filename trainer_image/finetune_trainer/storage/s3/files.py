"""Amazon S3 and compatible services. `files.Files` documents the methods."""

import io
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import boto3
import botocore.session
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.client import Config
from botocore.credentials import CredentialResolver
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from finetune_api.bundle import JobIdentity
from finetune_api.reasons import FailureReason
from finetune_api.spec import profile
from finetune_trainer.pod.at_once import AT_ONCE
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.pod.liveness.heartbeat import quiet_work
from finetune_trainer.pod.positioned import Ranges
from finetune_trainer.pod.termination import stop_requested
from finetune_trainer.storage.files import DATASET, PATIENCE_SECONDS, Place, everywhere
from finetune_trainer.storage.s3.authority import trusted
from finetune_trainer.storage.s3.cloud_identity import CloudIdentityProvider
from finetune_trainer.storage.s3.failures import MISSING_KEY, NO_ANSWER, code_of, failure_of, split, where
from finetune_trainer.storage.s3.mounted_keys import (
    KEY_ID,
    SECRET,
    MountedKeys,
    MountedKeysProvider,
    read_keys,
)
from finetune_trainer.storage.s3.service_clock import ServiceClock
from finetune_trainer.storage.s3.temporary import REFUSALS, TemporaryTag

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef, HeadObjectOutputTypeDef

READ_BYTES = 8 * 1024 * 1024
READ_ATTEMPTS = 5
ONE_THREAD = TransferConfig(use_threads=False)
SEVERAL_THREADS = TransferConfig(max_concurrency=8, multipart_chunksize=16 * 1024 * 1024)
COPIES = TransferConfig(max_concurrency=8, multipart_threshold=256 * 1024 * 1024, multipart_chunksize=256 * 1024 * 1024)
LARGE_BYTES = 1024 * 1024 * 1024
"""Size from which a stream is sent over several connections. An adapter's checkpoint is smaller: it is sent beside the
training, from which every thread takes time. The state of a whole model would take many minutes over one connection."""
EXISTS = {"412", "PreconditionFailed"}


class S3Files:
    """One S3 service of the profile."""

    def __init__(self, storage: profile.Storage, secrets_dir: Path, job: JobIdentity | None, tag: TemporaryTag) -> None:
        """`tag`: marks the job's temporary objects."""
        self._storage, self._job, self._tag = storage, job, tag
        self._client = self._connect(secrets_dir)

    def size(self, uri: str) -> int | None:
        bucket, key = split(uri)
        try:
            return _head(self._client, bucket, key)["ContentLength"]
        except ClientError as error:
            if code_of(error) not in MISSING_KEY:
                raise
            return None

    def identity(self, uri: str, exact: bool = False) -> str:
        bucket, key = split(uri)
        head = _head(self._client, bucket, key)
        # The HEAD of an encrypted object needs no permission to use its key, so one byte is read as well.
        _Reader(self._client, uri).range(0, min(1, head["ContentLength"]))
        version = head.get("VersionId", "")
        known = "" if version == "null" else version  # that of an object from before its bucket had versions
        return f"{head['ETag']} {head['ContentLength']} {known}".rstrip()

    def read(self, uri: str, start: int, length: int | None) -> bytes:
        reader = _Reader(self._client, uri)
        return reader.range(start, reader.size if length is None else min(start + length, reader.size))

    def open(self, uri: str) -> BinaryIO:
        return io.BufferedReader(_Reader(self._client, uri), READ_BYTES)

    def list(
        self,
        prefix: str,
        enters: Callable[[str], Hashable] = everywhere,
        takes: Callable[[str], object] | None = None,
    ) -> Iterator[tuple[str, int]]:
        bucket, key = split(prefix)
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
            for item in page.get("Contents", []):
                yield f"s3://{bucket}/{item['Key']}", item["Size"]

    def download(self, uri: str, to: Path, advance: Callable[[int], None]) -> None:
        bucket, key = split(uri)
        try:
            self._client.download_file(bucket, key, str(to), Callback=advance)
        except ClientError as error:
            if code_of(error) != "403":
                raise
            # The download begins with a HEAD request. Its refusal contains no reason.
            _head(self._client, bucket, key)
            self._client.download_file(bucket, key, str(to), Callback=advance)

    def write(self, uri: str, data: bytes, if_absent: bool) -> bool:
        bucket, key = split(uri)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}

        def put(tag: Mapping[str, Any]) -> None:
            self._client.put_object(Bucket=bucket, Key=key, Body=data, **condition, **tag)

        try:
            self._tag.write(uri, put)
        except ClientError as error:
            if if_absent and code_of(error) in EXISTS:
                # The service refuses the repetition of a request that it has served, if only its answer was lost.
                return _repetitions(error) > 0 and self.read(uri, 0, None) == data
            raise
        return True

    def upload(self, path: Path, uri: str, advance: Callable[[int], None]) -> None:
        self._put(lambda: path.open("rb"), uri, advance)

    def send(self, open: Callable[[], BinaryIO], uri: str, advance: Callable[[int], None]) -> None:
        with open() as stream:
            size = stream.seek(0, io.SEEK_END)
        self._put(open, uri, advance, SEVERAL_THREADS if size >= LARGE_BYTES else ONE_THREAD)

    def _put(
        self,
        open: Callable[[], BinaryIO],
        uri: str,
        advance: Callable[[int], None],
        config: TransferConfig | None = None,
    ) -> None:
        bucket, key = split(uri)

        def put(tag: Mapping[str, Any]) -> None:
            with open() as stream:  # opened for each try, because the library closes it
                self._client.upload_fileobj(stream, bucket, key, dict(tag), advance, config)

        self._tag.write(uri, put)

    def copy(self, uri: str, to: str, advance: Callable[[int], None]) -> None:
        (source_bucket, source_key), (bucket, key) = split(uri), split(to)
        copied: CopySourceTypeDef = {"Bucket": source_bucket, "Key": source_key}
        try:
            # The service copies: the weights of a whole model would take minutes through the pod.
            self._client.copy(copied, bucket, key, self._tag.of_copy(uri, to), advance, None, COPIES)
        except ClientError as error:
            if code_of(error) not in REFUSALS:
                raise
            self._put(lambda: self.open(uri), to, advance, SEVERAL_THREADS)

    def delete(self, uris: Iterable[str]) -> None:
        for uri in uris:
            bucket, key = split(uri)
            self._client.delete_object(Bucket=bucket, Key=key)

    def delete_leftovers(self, uri: str, is_unfinished: Callable[[bytes], bool]) -> None:
        """Does nothing: a file is whole or not there."""

    def prune(self, folder: str) -> None:
        """Folders are only parts of names."""

    def failure(self, error: Exception, uri: str, place: Place) -> TrainerFailure | None:
        """Returns the failure for an error, or None if the error does not come from the S3 service."""
        return failure_of(error, uri, place, self._storage)

    def _connect(self, secrets_dir: Path) -> "S3Client":
        config = Config(
            connect_timeout=5,
            max_pool_connections=AT_ONCE * TransferConfig().max_request_concurrency,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 5},
            # Many compatible services support neither buckets as host names nor checksums in trailers.
            s3={"addressing_style": "path" if self._storage.endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session, keys = botocore.session.Session(), self._keys(secrets_dir)
        clients = boto3.session.Session(botocore_session=session)
        verify = trusted(self._storage, secrets_dir, self._job)

        def connected(config: Config) -> "S3Client":
            return clients.client(
                "s3",
                endpoint_url=self._storage.endpoint,
                region_name=self._storage.region,
                config=config,
                verify=verify,
            )

        unsigned = config.merge(Config(signature_version=UNSIGNED))
        clock = ServiceClock(where(self._storage), lambda: headers_of_answer(connected(unsigned)))
        provider = MountedKeysProvider(keys) if keys else CloudIdentityProvider(session, self._storage.region, clock)
        session.register_component("credential_provider", CredentialResolver([provider]))
        try:
            client = connected(config)
        except CredentialRetrievalError as error:
            uri = f"s3://{self._storage.buckets[0]}"
            raise failure_of(error, uri, DATASET, self._storage) or error from error
        events = client.meta.events
        events.register("before-sign.s3", clock.before_sign)
        events.register("needs-retry.s3", clock.retry)  # type: ignore[arg-type] # the answer does count
        if keys:
            events.register("needs-retry.s3", keys.retry)  # type: ignore[arg-type]
        return client

    def _keys(self, secrets_dir: Path) -> MountedKeys | None:
        """Returns the Secret's keys. Returns None if the storage names no Secret, or if no Secret is mounted outside
        Kubernetes: boto3 then uses its usual sources. Raises TrainerFailure StorageAccessDenied if it is incomplete."""
        name = self._storage.credentials_secret_name
        if name is None or (self._job is None and not (secrets_dir / name).exists()):
            return None
        if keys := read_keys(secrets_dir / name):
            return MountedKeys(secrets_dir / name, keys, stop_requested)
        namespace = f" in namespace {self._job.namespace}" if self._job else ""
        raise TrainerFailure(
            FailureReason.STORAGE_ACCESS_DENIED,
            f"Secret {name}{namespace} with the keys {KEY_ID} and {SECRET} is missing or incomplete.",
            f"Create it for the buckets {', '.join(self._storage.buckets)}.",
        )


class _Reader(Ranges):
    """A stream that reads a file by ranges. The ETag ensures that all ranges are of the same version."""

    def __init__(self, client: "S3Client", uri: str) -> None:
        self._client = client
        self._bucket, self._key = split(uri)
        with quiet_work(PATIENCE_SECONDS):
            head = _head(client, self._bucket, self._key)
        super().__init__(head["ContentLength"])
        self._etag = head["ETag"]

    def range(self, start: int, end: int) -> bytes:
        """Returns the bytes from `start` to `end`, without the byte at `end`."""
        if start >= end:
            return b""
        with quiet_work(PATIENCE_SECONDS):
            return self._range(start, end)

    def _range(self, start: int, end: int) -> bytes:
        for attempt in range(1, READ_ATTEMPTS + 1):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._key, Range=f"bytes={start}-{end - 1}", IfMatch=self._etag
            )
            try:
                return answer["Body"].read()
            except NO_ANSWER:
                # botocore retries a request, but not the reading of its response.
                if attempt == READ_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")


def headers_of_answer(client: "S3Client") -> Mapping[str, str]:
    """Returns the headers with which the service answers a request, also one that it refuses; none without an
    answer."""
    try:
        return client.list_buckets()["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPHeaders"]
    except BotoCoreError:
        return {}


def _repetitions(error: ClientError) -> int:
    """Returns how often botocore has repeated the request, because it had no answer or one like 500."""
    return error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)


def _head(client: "S3Client", bucket: str, key: str) -> "HeadObjectOutputTypeDef":
    """Returns the size and the ETag of an object. A refused HEAD request has no body, so a GET request finds the reason
    of its 403 or 404 (an unknown key, a missing bucket). If the GET succeeds, it had newer keys than the HEAD."""
    try:
        return client.head_object(Bucket=bucket, Key=key)
    except ClientError:
        client.get_object(Bucket=bucket, Key=key)["Body"].close()
        return client.head_object(Bucket=bucket, Key=key)
