"""Checkpoints that are damaged or cannot be written, and checkpoints in S3."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.resume.histories import PREEMPTED, Kill, attempt, checkpoints
from benchmarks.resume.serve import Server
from finetune_api import names
from finetune_trainer.storage.job_storage import join
from tests.integration.finetune_trainer.resume.conftest import Live
from tests.unit.finetune_trainer.conftest import S3, s3

__all__ = ["s3"]

TERM, KILL = signal.SIGTERM, signal.SIGKILL
Started = Callable[[str], Path]


def weights(folder: Path) -> bytes:
    return (folder / "out" / "adapter" / "adapter_model.safetensors").read_bytes()


def whole_weights(uninterrupted: Live, name: str) -> bytes:
    return weights(uninterrupted(name).folder)


def test_a_damaged_checkpoint_is_skipped_for_the_one_before_it_and_log_and_status_say_so(
    server: Server, uninterrupted: Live, started: Started
) -> None:
    folder = started("lora")
    assert attempt(server, folder, 1, Kill(TERM, "Training: step 7 ")).code == PREEMPTED
    before, newest = checkpoints(folder)
    with (newest / "state.safetensors").open("r+b") as file:
        file.truncate(1000)
    second = attempt(server, folder, 2)
    assert second.code == 0, second.log
    assert second.first_step == int(before.name[5:13]) < int(newest.name[5:13])
    said = f"{newest} is not used: its file state.safetensors has 1,000 bytes instead of"
    told = [line for line in second.log.splitlines() if line.startswith('attempt-2: {"conditions"') and said in line]
    assert told, second.log
    assert f'"resumedFromStep": {second.first_step}' in second.log
    assert weights(folder) == whole_weights(uninterrupted, "lora")


def test_without_a_usable_checkpoint_training_begins_with_the_first_step(
    server: Server, uninterrupted: Live, started: Started
) -> None:
    folder = started("lora")
    assert attempt(server, folder, 1, Kill(TERM, "Training: step 7 ")).code == PREEMPTED
    for found in checkpoints(folder):
        (found / "manifest.json").unlink()
    second = attempt(server, folder, 2)
    assert "Training begins with the first step." in second.log
    assert '"resumedFromStep"' not in second.log
    assert weights(folder) == whole_weights(uninterrupted, "lora")


def test_a_checkpoint_of_another_global_batch_size_is_refused_and_the_field_is_named(
    server: Server, started: Started
) -> None:
    folder = started("lora")
    assert attempt(server, folder, 1, Kill(TERM, "Training: step 7 ")).code == PREEMPTED
    bundle = json.loads((folder / "bundle.json").read_text())
    bundle["spec"]["training"]["globalBatchSize"] = 4
    (folder / "bundle.json").write_text(json.dumps(bundle))
    second = attempt(server, folder, 2, Kill(TERM, "Training: step 1 "))
    assert "it was written for spec.training.globalBatchSize 8, and this run has 4" in second.log


def test_checkpoints_that_cannot_be_written_never_fail_the_job(
    server: Server, uninterrupted: Live, started: Started
) -> None:
    folder = started("lora")
    blocking = folder / "out" / ".work" / "local" / "checkpoints"
    blocking.write_text("a file where a folder is needed")
    first = attempt(server, folder, 1, None, GRACE_SECONDS="8")
    assert first.code == 0, first.log
    assert "The checkpoint of step 2 was not written. Training goes on" in first.log
    assert weights(folder) == whole_weights(uninterrupted, "lora")


def test_a_storage_that_works_again_gets_the_next_checkpoint(
    server: Server, uninterrupted: Live, started: Started
) -> None:
    folder = started("lora")
    (folder / "out" / ".work" / "local" / "checkpoints").write_text("")
    first = attempt(server, folder, 1, Kill(TERM, "Training: step 5 "), GRACE_SECONDS="4")
    assert first.code == PREEMPTED
    assert "There is no checkpoint." in first.message["message"]
    assert first.stopping is not None
    assert first.stopping < 4.5, "it does not use more than its grace period"
    (folder / "out" / ".work" / "local" / "checkpoints").unlink()
    second = attempt(server, folder, 2, Kill(TERM, "Training: step 5 "))
    assert second.message["checkpointStep"] == second.message["step"]
    assert attempt(server, folder, 3).first_step == second.message["step"]
    assert weights(folder) == whole_weights(uninterrupted, "lora")


def test_checkpoints_in_s3_carry_the_tag_and_are_deleted_with_the_work_folder(
    server: Server, uninterrupted: Live, started: Started, s3: S3
) -> None:
    bucket, folder = s3.bucket("resume"), started("lora")
    bundle = json.loads((folder / "bundle.json").read_text())
    output = f"s3://{bucket}/.work/tickets"
    bundle["spec"]["output"]["uri"] = output
    bundle["storages"] = [{"buckets": [bucket], "endpoint": s3.endpoint}]
    (folder / "bundle.json").write_text(json.dumps(bundle))
    client = s3.client()
    for path in (folder / "out" / ".work").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f".work/tickets/{path.relative_to(folder / 'out')}")
    shutil.rmtree(folder / "out")
    keys = {"AWS_ACCESS_KEY_ID": "owner", "AWS_SECRET_ACCESS_KEY": "owner-key"}
    first = attempt(server, folder, 1, Kill(KILL, "Training: step 7 "), **keys)
    assert first.code == -KILL
    assert {tags for key, tags in tagged(client, bucket) if "/checkpoints/" in key} == {(names.TEMPORARY_TAG, "true")}
    second = attempt(server, folder, 2, **keys)
    assert second.code == 0, second.log
    assert 0 < second.first_step <= 7
    published = dict(tagged(client, bucket))
    assert set(published.values()) == {()}, "results carry no tag, although the output is below a folder .work"
    assert not [key for key in published if join("tickets", ".work") in key]
    body = client.get_object(Bucket=bucket, Key=".work/tickets/adapter/adapter_model.safetensors")["Body"].read()
    assert body == whole_weights(uninterrupted, "lora")


def tagged(client: Any, bucket: str) -> list[tuple[str, tuple[str, ...]]]:
    """Each key in the bucket, and its tag."""
    found = []
    for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
        tags = client.get_object_tagging(Bucket=bucket, Key=item["Key"])["TagSet"]
        found.append((item["Key"], tuple(value for tag in tags for value in (tag["Key"], tag["Value"]))))
    return found


def test_smaller_micro_batches_after_an_attempt_that_ran_out_of_memory_take_the_same_steps(
    server: Server, uninterrupted: Live, started: Started
) -> None:
    folder = started("dora")
    assert attempt(server, folder, 1, Kill(TERM, "Training: step 5 ")).code == PREEMPTED
    second = attempt(server, folder, 2, Kill(TERM, "Training: step 9 "), "--halvings", "2")
    assert '"microBatchTokens": 512, "packed": true, "gradientCheckpointing": false' in second.log
    third = attempt(server, folder, 3, None, "--halvings", "2")
    assert '"microBatchTokens": 512' in third.log, "the checkpoint's plan was halved before"
    both = [json.loads((at / "records.json").read_text()) for at in (folder, uninterrupted("dora").folder)]
    losses = [[step["loss"] for step in records["steps"]] for records in both]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-3
