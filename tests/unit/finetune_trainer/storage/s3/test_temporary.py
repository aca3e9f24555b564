"""The tag of temporary objects, on a real S3 server and on services that refuse tags."""

import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from finetune_api import names
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage, join, open_storage
from finetune_trainer.storage.s3 import files as s3_files
from finetune_trainer.storage.s3.temporary import REFUSED_TIMES
from tests.unit.finetune_trainer.conftest import S3
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, bundle


def storage_at(bucket: str, endpoint: str, secrets: Path) -> JobStorage:
    storages = [{"buckets": [bucket], "endpoint": endpoint, "credentialsSecretName": "owner"}]
    return open_storage(bundle(f"s3://{bucket}/.work", storages, JOB), secrets)


def test_what_is_written_below_the_work_folder_carries_the_tag_and_results_do_not(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
    storage, client = storage_at(bucket, s3.endpoint, s3.secrets_dir), s3.client()
    (tmp_path / "large").write_bytes(bytes(20_000_000))
    output = f"s3://{bucket}/.work/out"  # a folder of the tenant that is called like ours
    for folder in (join(output, ".work", "u"), output):
        storage.write_bytes(join(folder, "small"), b"1")
        storage.upload_file(tmp_path / "large", join(folder, "large"))
        storage.send(lambda: BytesIO(bytes(20_000_000)), join(folder, "stream"))
    for name in ("small", "large", "stream"):
        for key, expected in {
            f".work/out/.work/u/{name}": [{"Key": names.TEMPORARY_TAG, "Value": "true"}],
            f".work/out/{name}": [],
        }.items():
            assert client.get_object_tagging(Bucket=bucket, Key=key)["TagSet"] == expected, key


def test_a_copy_of_a_temporary_object_carries_no_tag(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a lifecycle rule would delete results."""
    bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
    storage, client = storage_at(bucket, s3.endpoint, s3.secrets_dir), s3.client()
    parts = TransferConfig(multipart_threshold=6 * 2**20, multipart_chunksize=6 * 2**20)
    monkeypatch.setattr(s3_files, "COPIES", parts)
    output, content = f"s3://{bucket}/.work/out", bytes(range(256)) * 80_000
    (tmp_path / "large").write_bytes(content)
    storage.upload_file(tmp_path / "large", join(output, ".work", "u", "large"))
    storage.write_bytes(join(output, ".work", "u", "small"), b"1")
    for name, data in (("small", b"1"), ("large", content)):
        storage.copy(join(output, ".work", "u", name), join(output, name))
        assert storage.read_bytes(join(output, name)) == data
        assert client.get_object_tagging(Bucket=bucket, Key=f".work/out/{name}")["TagSet"] == [], name


class Refusing(ThreadingHTTPServer):
    """An S3 service that answers a request with a tag with `code`, and stores what comes without. `times`: how often;
    then it stores what comes with a tag too."""

    def __init__(self, status: int, code: str, times: int = 100) -> None:
        self.status, self.code, self.times, self.refused = status, code, times, 0
        self.stored, self.tagged = set[str](), set[str]()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # with 1.0 a client waits a second for leave to send the content
    server: Refusing

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        tagged = "x-amz-tagging" in self.headers
        if not tagged or self.server.refused >= self.server.times:
            (self.server.tagged if tagged else self.server.stored).add(self.path)
            self._answer(200, b"")
            return
        self.server.refused += 1
        self._answer(self.server.status, f"<Error><Code>{self.server.code}</Code></Error>".encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def refusing(request: pytest.FixtureRequest) -> Iterator[Refusing]:
    server = Refusing(*request.param)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "refusing", [(403, "AccessDenied"), (501, "NotImplemented"), (400, "InvalidTag")], indirect=True
)
def test_a_service_that_refuses_tags_gets_the_objects_without_and_the_log_says_so(
    refusing: Refusing, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = storage_at("bucket", f"http://127.0.0.1:{refusing.server_address[1]}", s3.secrets_dir)
    work = "s3://bucket/.work/out/.work/u"
    storage.write_bytes(join(work, "a"), b"1")
    for name in "bcdef":
        storage.send(lambda: BytesIO(b"2"), join(work, name))
    assert refusing.stored == {f"/bucket/.work/out/.work/u/{name}" for name in "abcdef"}
    assert refusing.refused == REFUSED_TIMES, "then nobody asks any more"
    said = capsys.readouterr().out.splitlines()
    told = f"The storage refuses the tag {names.TEMPORARY_TAG} ({refusing.code}). No lifecycle rule deletes what has no"
    assert [line.startswith(told) for line in said] == [True] * REFUSED_TIMES
    assert said[0].endswith(f"tag: {work}/a.")
    assert said[-1].endswith("tag: temporary files below s3://bucket/.work/out/.work/.")


@pytest.mark.parametrize("refusing", [(403, "AccessDenied", 1)], indirect=True)
def test_a_refusal_that_passes_costs_one_tag(refusing: Refusing, s3: S3) -> None:
    storage = storage_at("bucket", f"http://127.0.0.1:{refusing.server_address[1]}", s3.secrets_dir)
    for name in "ab":
        storage.write_bytes(f"s3://bucket/.work/out/.work/u/{name}", b"1")
    assert (refusing.stored, refusing.tagged) == ({"/bucket/.work/out/.work/u/a"}, {"/bucket/.work/out/.work/u/b"})


def test_a_file_keeps_its_identity_when_its_bucket_begins_to_have_versions(s3: S3) -> None:
    bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
    storage, uri = storage_at(bucket, s3.endpoint, s3.secrets_dir), f"s3://{bucket}/model/config.json"
    storage.write_bytes(uri, b"{}")
    before = storage.identity(uri)
    s3.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert storage.identity(uri) == before
    storage.write_bytes(uri, b"{}")
    assert storage.identity(uri) != before, "another version"


@pytest.mark.parametrize("refusing", [(403, "InvalidAccessKeyId")], indirect=True)
def test_another_refusal_is_not_taken_for_one_of_the_tag(refusing: Refusing, s3: S3) -> None:
    storage = storage_at("bucket", f"http://127.0.0.1:{refusing.server_address[1]}", s3.secrets_dir)
    with pytest.raises(TrainerFailure, match="InvalidAccessKeyId"):
        storage.write_bytes("s3://bucket/.work/out/.work/u/a", b"1")
    assert not refusing.stored
