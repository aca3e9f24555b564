"""Whether a job that has ended may have left something in the storage."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.reasons import FailureReason
from finetune_api.spec.run_policy import RunPolicy
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.leftovers import time_to_keep
from tests.unit.finetune_operator.worlds import NOW, SPEC, fresh, pod, preflight

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
    found, crashed = {"number": 2, "reason": reason}, {"number": 1, "reason": "TrainerCrashed"}
    assert time_to_keep({}, status(reason, "False", preflights=[found])) is None
    assert time_to_keep({}, status(reason, "False", preflights=[crashed, found])) == WEEK, "the first one may have"
    assert time_to_keep({}, status(reason, "False", counts={"attempts": 1})) == WEEK


@pytest.mark.parametrize(
    "reason", [FailureReason.STORAGE_UNAVAILABLE, FailureReason.TRAINER_CRASHED, "OfALaterVersion"]
)
def test_a_preflight_that_crashed_may_have_been_writing(reason: str) -> None:
    assert time_to_keep({}, status(reason, validated="False")) == WEEK


def test_a_status_with_a_state_alone_has_nothing_to_delete() -> None:
    assert time_to_keep({}, {"state": "Failed"}) is None


@pytest.mark.parametrize(("exit_code", "kept"), [(21, None), (26, WEEK)], ids=["bad data", "no storage"])
def test_it_is_known_from_the_status_that_the_operator_writes(exit_code: int, kept: timedelta | None) -> None:
    policy = RunPolicy(max_retries=0)
    spec = SPEC.model_copy(update={"run_policy": policy})
    plan = reconcile(fresh(spec=spec, preflight=preflight(pod("Failed", exit_code=exit_code))), NOW)

    assert plan.status is not None
    assert (plan.status["state"], time_to_keep({}, plan.status)) == ("Failed", kept)
