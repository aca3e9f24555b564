"""A pod whose clock is wrong, on a real S3 server that enforces signatures."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_trainer.pod.failure import TrainerFailure
from finetune_trainer.storage.job_storage import JobStorage
from finetune_trainer.storage.s3 import service_clock
from tests.unit.finetune_trainer.conftest import S3
from tests.unit.finetune_trainer.storage.s3.test_temporary import storage_at


@pytest.fixture
def bucket(s3: S3) -> str:
    return s3.bucket(f"test-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def storage(s3: S3, bucket: str) -> JobStorage:
    return storage_at(bucket, s3.endpoint, s3.secrets_dir)


def set_clock(patch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    patch.setattr(service_clock, "now", lambda: datetime.now(UTC) + ahead)


@pytest.mark.parametrize("ahead", [timedelta(hours=1), -timedelta(hours=1), timedelta(days=400)])
def test_every_kind_of_request_works_with_a_wrong_clock(
    storage: JobStorage,
    bucket: str,
    ahead: timedelta,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_clock(monkeypatch, ahead)
    uri, large = f"s3://{bucket}/out/file", tmp_path / "large"
    assert storage.size(uri) is None, "the first request has no body"
    assert storage.write_bytes(uri, b"one")
    large.write_bytes(bytes(40_000_000))
    storage.upload_file(large, f"s3://{bucket}/out/large")
    assert storage.read_bytes(uri) == b"one"
    assert storage.list(f"s3://{bucket}/out/*") == [uri, f"s3://{bucket}/out/large"]
    minutes = round(abs(ahead) / timedelta(minutes=1))
    told = f"{minutes} minutes {'ahead of' if ahead > timedelta(0) else 'behind'} the clock of the S3 service"
    assert capsys.readouterr().out.count(told) == 1, "told once"


def test_a_clock_that_is_set_while_the_pod_runs_is_followed(
    storage: JobStorage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hours in (1, 0, -2):
        set_clock(monkeypatch, timedelta(hours=hours))
        assert storage.write_bytes(f"s3://{bucket}/{hours}", b"")


def test_requests_that_are_refused_at_the_same_time_are_all_sent_again(
    storage: JobStorage, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them learns the time of the service while the others are under way."""
    signed, together = service_clock._Signer._modify_request_before_signing, threading.Barrier(4)

    def waits(self: Any, request: Any) -> None:
        signed(self, request)
        if request.context["clock-ahead"] == timedelta(0):
            together.wait(60)

    storage.write_bytes(f"s3://{bucket}/first", b"")  # while the clock is right
    set_clock(monkeypatch, timedelta(hours=1))
    monkeypatch.setattr(service_clock._Signer, "_modify_request_before_signing", waits)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda number: storage.write_bytes(f"s3://{bucket}/{number}", b""), range(4)))


def test_a_refusal_with_a_right_clock_is_told_as_before(storage: JobStorage) -> None:
    with pytest.raises(TrainerFailure) as caught:
        storage.read_bytes("s3://nobody-has-this/file")
    assert caught.value.reason is not FailureReason.STORAGE_UNAVAILABLE
