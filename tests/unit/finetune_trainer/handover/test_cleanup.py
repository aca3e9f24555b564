"""What the cleanup of a failed job deletes, on a real S3 server."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from finetune_api.bundle import Bundle, TerminationMessage
from finetune_api.reasons import FAILURES, FailureReason
from finetune_trainer import __main__ as command
from finetune_trainer.handover.cleanup import cleanup
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import open_storage
from tests.unit.finetune_trainer.conftest import S3
from tests.unit.finetune_trainer.storage.test_job_storage import JOB, bundle

UID = JOB["uid"]
OTHERS = [
    f".work/{UID}4/checkpoints/step-1/state.json",
    f".work/{UID}.json",
    ".work/other/prepared/manifest.json",
    "adapter/adapter_model.safetensors",
    "manifest.json",
    f"prepared/{UID}/train.npy",
]
"""What belongs to other jobs, some of whose uids begin alike, and results."""
OWN = [f".work/{UID}/{path}" for path in ("prepared/manifest.json", "checkpoints/a/state.json", "kept/base/b", "")]


def job_in(s3: S3, secret: str = "owner") -> tuple[Bundle, str, Any]:
    bucket = s3.bucket(f"test-{uuid.uuid4().hex[:12]}")
    storages = [{"buckets": [bucket], "endpoint": s3.endpoint, "credentialsSecretName": secret}]
    return bundle(f"s3://{bucket}", storages, JOB), bucket, s3.client()


def keys(client: Any, bucket: str) -> set[str]:
    return {found["Key"] for found in client.list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_everything_in_the_work_folder_goes_and_nothing_else(s3: S3) -> None:
    job, bucket, client = job_in(s3)
    for path in (*OWN, *OTHERS):
        client.put_object(Bucket=bucket, Key=f"out/{path}", Body=b"" if path.endswith("/") else b"x" * 100_000)
    storage = open_storage(job, s3.secrets_dir)

    said = cleanup(job, storage)

    assert keys(client, bucket) == {f"out/{path}" for path in OTHERS}
    assert said == f"Deleted 3 objects (0.3 MB) below s3://{bucket}/out/.work/{UID}."
    assert cleanup(job, storage).startswith("Deleted 0 objects (0.0 MB)"), "a repeated cleanup finds nothing"


def test_more_objects_than_a_page_of_a_list_has_are_deleted(s3: S3) -> None:
    job, bucket, client = job_in(s3)
    for number in range(1001):
        client.put_object(Bucket=bucket, Key=f"out/.work/{UID}/kept/{number}", Body=b"1")

    assert cleanup(job, open_storage(job, s3.secrets_dir)).startswith("Deleted 1,001 objects")
    assert keys(client, bucket) == set()


def test_a_storage_that_refuses_it_is_a_typed_failure(s3: S3) -> None:
    job, bucket, client = job_in(s3, secret="reader")
    client.put_object(Bucket=bucket, Key=f"out/{OWN[0]}", Body=b"1")

    with pytest.raises(TrainerFailure) as caught:
        cleanup(job, open_storage(job, s3.secrets_dir))

    assert FAILURES[caught.value.reason].exit_code != 0
    assert caught.value.reason in (FailureReason.STORAGE_ACCESS_DENIED, FailureReason.OUTPUT_NOT_WRITABLE)
    assert keys(client, bucket) == {f"out/{OWN[0]}"}


def test_the_command_deletes_the_folder_and_says_so_in_its_termination_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(command, "handle_sigterm", lambda: None)
    monkeypatch.setattr(command, "_hide_torch", lambda: None)  # other tests of this process need torch
    job = bundle(str(tmp_path), job=JOB)
    (tmp_path / "bundle.json").write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    for path in (OWN[1], OTHERS[2]):
        (tmp_path / "out" / path).parent.mkdir(parents=True)
        (tmp_path / "out" / path).write_text("1")

    assert command.main(["cleanup", str(tmp_path / "bundle.json")]) == 0

    said = TerminationMessage.model_validate_json((tmp_path / "log").read_text())
    assert said.reason == "Succeeded"
    assert said.message == f"Deleted 1 object (0.0 MB) below {tmp_path}/out/.work/{UID}."
    assert capsys.readouterr().out == f"{said.message}\n"
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [tmp_path / "out" / OTHERS[2]]
