"""Credentials that expire, from real HTTP servers on loopback, used on a real S3 server by a pod with a wrong clock."""

import datetime as clocks
import json
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, open_storage
from finetune_trainer.storage.s3 import service_clock
from tests.unit.finetune_trainer.conftest import S3
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, bundle

HOUR = timedelta(hours=1)
STS = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{AccessKeyId}</AccessKeyId>
<SecretAccessKey>{SecretAccessKey}</SecretAccessKey><SessionToken>{Token}</SessionToken><Expiration>{Expiration}</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


class Issuer(ThreadingHTTPServer):
    """Issues the keys of `owner` for `lifetime`: as the agent of EKS Pod Identity (GET) and as STS (POST)."""

    daemon_threads = True

    def __init__(self) -> None:
        self.lifetime = HOUR
        self.status = 200
        self.issued = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def issue(self) -> dict[str, str]:
        self.issued += 1
        ends = (RIGHT.now(UTC) + self.lifetime).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": "owner", "SecretAccessKey": "owner-key", "Token": "", "Expiration": ends}


class _Handler(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.answer(json.dumps(self.server.issue()))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(STS.format(**self.server.issue()))

    def answer(self, text: str) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keeps the tests' output quiet."""


RIGHT = datetime


def set_clock(patch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    """Lets every library of this process see another time, as the wrong clock of a node does."""

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, RIGHT)

    class Wrong(RIGHT, metaclass=Kind):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return RIGHT.now(tz) + ahead

    patch.setattr(clocks, "datetime", Wrong)
    patch.setattr(service_clock, "now", lambda: RIGHT.now(UTC) + ahead)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    server = Issuer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["pod-identity", "irsa"])
def identity(request: pytest.FixtureRequest, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Issuer:
    """The issuer of the pod's cloud identity, as the cloud names it in the environment of the pod."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if request.param == "pod-identity":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{issuer.address}/v1/credentials")
        return issuer
    (tmp_path / "token").write_text("the token of the ServiceAccount")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/trainer")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", issuer.address)
    return issuer


@pytest.fixture
def uri(s3: S3) -> str:
    return f"s3://{s3.bucket(f'test-{uuid.uuid4().hex[:12]}')}/out/file"


@pytest.fixture
def connect(s3: S3, uri: str) -> Any:
    def storage() -> JobStorage:
        storages = [{"buckets": ["*"], "endpoint": s3.endpoint, "region": "us-east-1"}]
        return open_storage(bundle(uri, storages, JOB), s3.secrets_dir)

    return storage


@pytest.mark.parametrize("ahead", [timedelta(0), HOUR, -HOUR, timedelta(days=400), -timedelta(days=400)])
def test_credentials_expire_by_the_time_of_the_service(
    identity: Issuer, connect: Any, uri: str, ahead: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, ahead)
    storage = connect()
    for content in (b"one", b"two", b"three"):
        storage.write_bytes(uri, content)
    assert storage.read_bytes(uri) == b"three"
    assert identity.issued <= 2, "they are kept"


def test_credentials_are_refreshed_in_time_although_the_clock_is_behind(
    identity: Issuer, connect: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock of the pod, those that end in five minutes are valid for an hour."""
    set_clock(monkeypatch, -HOUR)
    identity.lifetime = timedelta(minutes=5)
    storage = connect()
    storage.write_bytes(uri, b"one")
    before = identity.issued
    storage.write_bytes(uri, b"two")
    assert identity.issued > before


def test_a_clock_that_is_set_while_the_pod_runs_is_followed(
    identity: Issuer, connect: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = connect()
    for hours in (0, 2, -2, 0):
        set_clock(monkeypatch, timedelta(hours=hours))
        storage.write_bytes(uri, b"")


def test_credentials_that_have_really_expired_are_a_fault_of_the_platform(
    identity: Issuer, connect: Any, uri: str
) -> None:
    identity.lifetime = -HOUR
    with pytest.raises(TrainerFailure, match=r"have still expired\. Have the clock of the node set \(NTP\)") as caught:
        connect().write_bytes(uri, b"one")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE


@pytest.mark.parametrize("identity", ["pod-identity"], indirect=True)
def test_an_agent_that_gives_no_credentials_is_a_fault_of_the_platform(
    identity: Issuer, connect: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    identity.status = 500
    with pytest.raises(TrainerFailure, match="got no credentials of its cloud identity") as caught:
        connect().write_bytes(uri, b"one")
    assert caught.value.reason is FailureReason.STORAGE_UNAVAILABLE
    identity.status = 200
    connect().write_bytes(uri, b"one")
