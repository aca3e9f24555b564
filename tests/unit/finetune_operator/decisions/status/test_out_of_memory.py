"""A job that ran out of GPU memory names the GPU types of its profile that have more of it."""

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.reasons import AGAIN, FAILURES, FailureReason
from finetune_api.spec.gpu_type import GpuType
from finetune_operator.decisions.reconcile import reconcile
from tests.unit.finetune_operator.decisions.test_gpu_choice import A100, H100, L4, world
from tests.unit.finetune_operator.plans import message, reason
from tests.unit.finetune_operator.worlds import NOW, PROFILE, attempt, pod, with_status

OUT_OF_MEMORY = FAILURES[FailureReason.GPU_OUT_OF_MEMORY]
MIG = {"name": "slice", "memory": "40Gi", "pricePerHour": "1.00", "resourceName": "nvidia.com/mig-3g.40gb"}


def told(*types: dict[str, Any], now: list[dict[str, Any]] | None = None, **spec: Any) -> str:
    """The message of a job that may not be retried and whose pod ran out of GPU memory. `now`: the GPU types of the
    profile at that time, if they are others."""
    once = {"runPolicy": {"maxRetries": 0, **spec.pop("runPolicy", {})}}
    begun = world(*types, **once, **spec)
    begun = with_status(begun, reconcile(begun, NOW))
    ended = attempt(pod("Failed", exit_code=OUT_OF_MEMORY.exit_code, finished=NOW), failed=True)
    changed = PROFILE.model_copy(update={"gpu_types": [GpuType.model_validate(each) for each in now or types]})
    plan = reconcile(replace(begun, attempts={1: ended}, profile=changed), NOW)
    assert reason(plan) == "GPUOutOfMemory"
    return message(plan)


def test_the_message_says_why_the_type_was_used_and_which_types_have_more_memory() -> None:
    text = told(L4, H100, A100)
    assert (
        "The job used GPU type l4 (23034Mi). Why this type: l4 is the cheapest of the GPU types that may fit: 0.80 for "
        "an hour. FineTuneProfile default also has h100 (81559Mi) and a100 (80Gi). Set spec.compute.gpuType to h100 or "
        f"a100, or lower spec.training.maxSequenceLength, or set spec.method.type to QLoRA. {AGAIN}"
    ) in text
    assert OUT_OF_MEMORY.remedy not in text


def test_a_type_that_was_named_is_said_to_be_named() -> None:
    text = told(L4, H100, compute={"gpuType": "l4"})
    assert "Why this type: spec.compute.gpuType names l4." in text
    assert "Set spec.compute.gpuType to h100," in text


def test_a_job_with_qlora_is_not_told_to_use_it() -> None:
    text = told(L4, H100, method={"type": "QLoRA"})
    assert text.endswith(f"to h100, or lower spec.training.maxSequenceLength. {AGAIN}")


@pytest.mark.parametrize(
    ("types", "spec"),
    [
        ([H100], {}),
        ([H100, L4], {"compute": {"gpuType": "h100"}}),
        ([L4, {**H100, "memory": None}], {}),
        ([{**L4, "memory": None}, H100], {"compute": {"gpuType": "l4"}}),
        ([L4, {**H100, "pricePerHour": None}], {"runPolicy": {"budget": {"cost": "100"}}}),
        ([L4, MIG], {"compute": {"gpusPerNode": 2}}),
    ],
    ids=["only", "largest", "unknown", "used unknown", "without a price", "a part of a GPU"],
)
def test_without_a_larger_type_that_the_job_may_name_the_usual_remedy_follows(
    types: list[dict[str, Any]], spec: dict[str, Any]
) -> None:
    given = [{name: value for name, value in each.items() if value is not None} for each in types]
    text = told(*given, **spec)
    assert text.endswith(OUT_OF_MEMORY.remedy)
    assert "also has" not in text


def test_a_type_that_was_added_to_the_profile_meanwhile_is_named() -> None:
    assert "also has h100 (81559Mi)." in told(L4, now=[L4, H100])
