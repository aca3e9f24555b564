"""Whether a job that has ended may have left something in the storage."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_operator.observed.leftovers import time_to_keep

WEEK = timedelta(days=7)


def status(reason: str = FailureReason.LOSS_DIVERGED, validated: str = "True", **parts: Any) -> dict[str, Any]:
    return {
        "state": "Failed",
        "conditions": [
            {"type": "Failed", "status": "True", "reason": reason},
            {"type": "Validated", "status": validated, "reason": "R"},
        ],
        **parts,
    }


def test_a_failed_job_keeps_its_checkpoints_for_a_week_or_for_as_long_as_its_run_policy_says() -> None:
    assert time_to_keep({}, status()) == WEEK
    assert time_to_keep({"runPolicy": {"keepCheckpointsSeconds": 0}}, status()) == timedelta(0)
    assert time_to_keep({"runPolicy": {"keepCheckpointsSeconds": 2**31 - 1}}, status()) == timedelta(seconds=2**31 - 1)


@pytest.mark.parametrize("state", ["", "Pending", "Running", "Suspended", "Complete", "OfALaterVersion"])
def test_a_job_that_has_not_failed_has_nothing_to_delete(state: str) -> None:
    assert time_to_keep({}, status() | {"state": state}) is None


def test_a_job_that_published_and_missed_a_gate_has_deleted_its_folder_itself() -> None:
    assert time_to_keep({}, status(FailureReason.EVALUATION_GATE_FAILED, artifacts={"report": "s3://r"})) is None
    assert time_to_keep({}, status(FailureReason.EVALUATION_GATE_FAILED)) == WEEK


@pytest.mark.parametrize("deleted", ["True", "False"])
def test_a_cleanup_whose_end_is_on_record_is_never_repeated(deleted: str) -> None:
    known = status()
    known["conditions"].append({"type": "CheckpointsDeleted", "status": deleted, "reason": "R"})
    assert time_to_keep({}, known) is None


@pytest.mark.parametrize(
    "reason", [FailureReason.SPEC_INVALID, FailureReason.DATASET_INVALID, FailureReason.DOES_NOT_FIT]
)
def test_a_preflight_that_found_bad_input_has_written_nothing(reason: str) -> None:
    assert time_to_keep({}, status(reason, validated="False")) is None
    assert time_to_keep({}, status(reason, "False", preflights=[{"number": 1}])) == WEEK, "an earlier one may have"
    assert time_to_keep({}, status(reason, "False", counts={"attempts": 1})) == WEEK


@pytest.mark.parametrize(
    "reason", [FailureReason.STORAGE_UNAVAILABLE, FailureReason.TRAINER_CRASHED, "OfALaterVersion"]
)
def test_a_preflight_that_crashed_may_have_been_writing(reason: str) -> None:
    assert time_to_keep({}, status(reason, validated="False")) == WEEK


def test_a_status_with_a_state_alone_has_nothing_to_delete() -> None:
    assert time_to_keep({}, {"state": "Failed"}) is None
