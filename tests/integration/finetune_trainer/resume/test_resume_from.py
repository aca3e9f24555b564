"""A job that resumes from an earlier job is the same training as one that nobody interrupted."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.resume.histories import PREEMPTED, History, Kill, attempt, checkpoints, prepare
from benchmarks.resume.serve import Server
from finetune_api.bundle import Bundle
from finetune_api.reasons import FAILURES, FailureReason
from tests.integration.finetune_trainer.resume.conftest import Job, Live

TERM = signal.SIGTERM
SPEC_INVALID = FAILURES[FailureReason.SPEC_INVALID].exit_code
Started = Callable[[str], Path]


@pytest.fixture
def resuming(jobs: Callable[[str], Job], tmp_path: Path) -> Callable[..., Path]:
    """The folder of a new job of this name that resumes from the job in another folder. Its preflight has succeeded. It
    can have other training settings."""

    def resume(name: str, earlier: Path, **training: Any) -> Path:
        said = jobs(name)[0].model_dump(mode="json", by_alias=True, exclude_none=True)
        said["spec"]["training"] |= training
        said["spec"]["resumeFrom"] = {"name": "earlier"}
        said["resume"] = {"uid": "local", "output": str(earlier / "out")}
        return prepare(Bundle.model_validate(said), tmp_path / "later")

    return resume


def words(folder: Path) -> dict[str, Any]:
    """The content of state.json of the newest checkpoint."""
    found: dict[str, Any] = json.loads((checkpoints(folder)[-1] / "state.json").read_text())
    return found


@pytest.mark.thorough_for("8-bit", "full")
@pytest.mark.parametrize("name", ["lora", "full", "8-bit"])
def test_weights_steps_and_curve_are_those_of_the_uninterrupted_run(
    name: str, server: Server, uninterrupted: Live, started: Started, resuming: Callable[..., Path]
) -> None:
    earlier = started(name)
    assert attempt(server, earlier, 1, Kill(TERM, "Training: step 7 ")).code == PREEMPTED
    left = {path.name for path in checkpoints(earlier)}

    later = resuming(name, earlier)
    ended = attempt(server, later, 1)

    assert ended.code == 0, ended.log
    assert ended.first_step >= 7
    assert f"Resumed at step {ended.first_step} from the checkpoint of attempt 1 of job earlier." in ended.log
    assert f'"resumedFromStep": {ended.first_step}' in ended.log
    assert History(later).results == uninterrupted(name).results
    assert {path.name for path in checkpoints(earlier)} == left, "they are the earlier job's"


UPLOAD = "finetune_trainer.train.recipe:upload_results:1"


@pytest.mark.thorough_for("full")
@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_training_that_had_ended_is_taken_over_and_no_step_is_repeated(
    name: str, server: Server, uninterrupted: Live, started: Started, resuming: Callable[..., Path]
) -> None:
    earlier = started(name)
    assert attempt(server, earlier, 1, DIES_AT=UPLOAD).code == -signal.SIGKILL
    shutil.rmtree(checkpoints(earlier)[0].parent)  # the weights suffice
    later = resuming(name, earlier)

    first = attempt(server, later, 1, DIES_AT=UPLOAD)
    second = attempt(server, later, 2)

    assert (first.code, second.code) == (-signal.SIGKILL, 0), second.log
    for ended in (first, second):
        assert "The tuned weights are those of attempt 1 of job earlier: " in ended.log
        assert "Training: step " not in ended.log
    published = {path.name: path.read_bytes() for path in (later / "out").glob("*/*.safetensors")}
    assert published == uninterrupted(name).results["weights"]


def test_its_own_checkpoints_win(
    server: Server, uninterrupted: Live, started: Started, resuming: Callable[..., Path]
) -> None:
    earlier = started("lora")
    assert attempt(server, earlier, 1, Kill(TERM, "Training: step 5 ")).code == PREEMPTED
    later = resuming("lora", earlier)
    first = attempt(server, later, 1, Kill(TERM, "Training: step 9 "))
    assert first.code == PREEMPTED, first.log
    shutil.rmtree(earlier)

    second = attempt(server, later, 2)

    assert second.code == 0, second.log
    assert second.first_step == first.message["checkpointStep"] >= 9
    assert f"Resumed at step {second.first_step} from the checkpoint of attempt 1.\n" in second.log
    assert History(later).results == uninterrupted("lora").results


def test_checkpoints_that_are_deleted_after_the_preflight_end_the_job_instead_of_training_from_the_first_step(
    server: Server, started: Started, resuming: Callable[..., Path]
) -> None:
    earlier = started("lora")
    assert attempt(server, earlier, 1, Kill(TERM, "Training: step 5 ")).code == PREEMPTED
    later = resuming("lora", earlier)
    shutil.rmtree(earlier)

    ended = attempt(server, later, 1)

    assert ended.code == SPEC_INVALID, ended.log
    assert "spec.resumeFrom.name: FineTuneJob earlier has no checkpoints below" in ended.message["message"]


def test_a_job_that_runs_out_of_memory_halves_the_plan_that_the_earlier_job_had_halved(
    server: Server, started: Started, resuming: Callable[..., Path]
) -> None:
    earlier = started("lora")
    assert attempt(server, earlier, 1, Kill(TERM, "Training: step 3 "), "--halvings", "1").code == PREEMPTED
    later = resuming("lora", earlier)

    assert attempt(server, later, 2, Kill(TERM, "Training: step 6 "), "--halvings", "1").code == PREEMPTED

    assert words(later)["step"] > words(earlier)["step"]
    assert (words(earlier)["halvings"], words(later)["halvings"]) == (1, 1)
    assert words(later)["plan"] != words(earlier)["plan"]


def test_the_settings_of_the_new_job_decide_its_micro_batches(
    server: Server, started: Started, resuming: Callable[..., Path]
) -> None:
    earlier = started("lora")
    assert attempt(server, earlier, 1, Kill(TERM, "Training: step 3 ")).code == PREEMPTED
    later = resuming("lora", earlier, microBatchTokens=128, gradientCheckpointing="Enabled")

    ended = attempt(server, later, 1, Kill(TERM, "Training: step 6 "))

    assert ended.code == PREEMPTED, ended.log
    plan = words(later)["plan"]
    assert words(earlier)["plan"]["micro_batch_tokens"] > plan["micro_batch_tokens"] >= 128
    assert plan["gradient_checkpointing"]
