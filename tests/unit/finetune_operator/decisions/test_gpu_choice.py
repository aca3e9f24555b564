"""Which GPU type a job uses: the cheapest that fits, or the one it names, and always the same one."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api import names
from finetune_api.spec.gpu_type import GpuType
from finetune_api.spec.job import FineTuneJobSpec
from finetune_api.status.job import FineTuneJobStatus
from finetune_operator.decisions import gpu_choice
from finetune_operator.decisions.plan import Plan
from finetune_operator.decisions.reconcile import reconcile
from finetune_operator.observed.facts.pods import PodCondition
from finetune_operator.observed.world import World
from tests.unit.finetune_operator.plans import message, reason, state
from tests.unit.finetune_operator.worlds import NOW, PROFILE, SPEC, attempt, fresh, pod, run, validated, with_status

L4 = {"name": "l4", "memory": "23034Mi", "pricePerHour": "0.80", "nodeSelector": {"gpu": "l4"}}
H100 = {"name": "h100", "memory": "81559Mi", "pricePerHour": "2.50", "nodeSelector": {"gpu": "h100"}}
A100 = {"name": "a100", "memory": "80Gi", "pricePerHour": "1.60", "resourceName": "example.com/a100"}
Prediction = tuple[bool | None, int | None]
"""Whether the job fits, and its seconds."""


def world(*types: dict[str, Any], predicted: dict[str, Prediction] | None = None, **spec: Any) -> World:
    """A job whose preflight has succeeded, in a profile with these GPU types."""
    estimates = [
        {"gpuType": name, "memory": "20Gi", "fits": fits, "seconds": seconds}
        for name, (fits, seconds) in (predicted or {}).items()
    ]
    raw = {"observedGeneration": -1, "preflight": {"estimate": estimates}}
    wish = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True, exclude_none=True) | spec)
    profile = PROFILE.model_copy(update={"gpu_types": [GpuType.model_validate(each) for each in types]})
    return validated(profile=profile, spec=wish, raw_status=raw, status=FineTuneJobStatus.model_validate(raw))


def chosen(*types: dict[str, Any], **rest: Any) -> tuple[str, str, str]:
    """Name, reason and message."""
    found = gpu_choice.of_job(world(*types, **rest))
    assert found is not None
    return found.name, found.reason, found.message


def without(gpu: dict[str, Any], *fields: str) -> dict[str, Any]:
    return {name: value for name, value in gpu.items() if name not in fields}


@pytest.mark.parametrize(
    ("types", "predicted", "name", "why"),
    [
        ([H100], {}, "h100", "OnlyType"),
        ([H100, L4], {"h100": (True, None), "l4": (True, None)}, "l4", "Cheapest"),
        # 2.50 for one hour, or 0.80 for four
        ([H100, L4], {"h100": (True, 3600), "l4": (True, 4 * 3600)}, "h100", "Cheapest"),
        ([H100, L4], {"h100": (True, 3600), "l4": (True, 3600)}, "l4", "Cheapest"),
        # the time of one is not known: the prices of an hour are compared
        ([H100, L4], {"h100": (True, 3600), "l4": (True, None)}, "l4", "Cheapest"),
        ([H100, L4], {"h100": (True, None), "l4": (False, None)}, "h100", "OnlyFit"),
        ([L4, H100], {"h100": (True, None), "l4": (None, None)}, "h100", "OnlyFit"),
        ([H100, L4], {}, "l4", "Cheapest"),
        ([H100, L4], {"h100": (None, None), "l4": (None, None)}, "l4", "Cheapest"),
        ([without(H100, "pricePerHour"), L4], {"h100": (True, 1), "l4": (True, 9999)}, "l4", "Cheapest"),
        (
            [without(H100, "pricePerHour"), without(L4, "pricePerHour")],
            {"h100": (True, 9), "l4": (True, 1)},
            "h100",
            "First",
        ),
        # of two types of one price, the one that stays
        ([{**H100, "capacityType": "Spot"}, {**L4, "pricePerHour": "2.5"}], {}, "l4", "Cheapest"),
        # decimals, not text: 10 is more than 9
        ([{**H100, "pricePerHour": "10"}, {**L4, "pricePerHour": "9"}], {}, "l4", "Cheapest"),
    ],
)
def test_the_cheapest_type_that_fits_is_chosen(
    types: list[dict[str, Any]], predicted: dict[str, Prediction], name: str, why: str
) -> None:
    assert chosen(*types, predicted=predicted)[:2] == (name, why)


def test_the_message_gives_the_cost_and_the_types_that_do_not_fit() -> None:
    predicted: dict[str, Prediction] = {"h100": (True, 3600), "a100": (True, 5400), "l4": (False, None)}
    _, _, said = chosen(H100, A100, L4, predicted=predicted)
    assert said == ("a100 is the cheapest of the GPU types that fit: about 2.40 for the job. The job does not fit l4.")


SEVERAL = [({}, 1), ({"gpusPerNode": 4}, 4), ({"gpusPerNode": 2, "nodes": 2}, 4), ({"nodes": 2}, 2)]


@pytest.mark.parametrize(("compute", "gpus"), SEVERAL)
def test_the_cost_and_the_price_of_an_hour_are_those_of_all_gpus(compute: dict[str, int], gpus: int) -> None:
    predicted: dict[str, Prediction] = {"h100": (True, 3600), "a100": (True, 5400)}
    said = chosen(H100, A100, predicted=predicted, compute=compute)[2]
    assert said == f"a100 is the cheapest of the GPU types that fit: about {gpus * 2.40:.2f} for the job."
    said = chosen(H100, A100, compute=compute)[2]
    all_of_them = f" of all {gpus} GPUs" if gpus > 1 else ""
    assert said == f"a100 is the cheapest of the GPU types that may fit: {gpus * 1.60:.2f} for an hour{all_of_them}."


@pytest.mark.parametrize(("compute", "gpus"), SEVERAL)
def test_a_job_on_several_gpus_uses_no_type_that_came_after_the_prediction(compute: dict[str, int], gpus: int) -> None:
    """The trainer shards the weights by the prediction for the type. Each GPU would load the whole model."""
    predicted: dict[str, Prediction] = {"h100": (None, None)}
    assert chosen(L4, predicted=predicted | {"l4": (None, None)}, compute=compute)[0] == "l4"
    assert chosen(L4, compute=compute)[0] == "l4", "the preflight knew no types at all"
    name, reason, _ = chosen(H100, L4, predicted=predicted, compute=compute)
    assert (name, reason) == (("h100", "OnlyType") if gpus > 1 else ("l4", "Cheapest"))
    late = world(L4, predicted={"h100": (True, 3600)}, compute=compute)
    if gpus == 1:
        assert trained(reconcile(late, NOW))["metadata"]["labels"][names.LABEL_GPU_TYPE] == "l4"
        return
    plan = reconcile(late, NOW)
    assert (state(plan), plan.create) == ("Pending", [])
    assert message(plan).startswith(
        "FineTuneProfile default no longer has the GPU types that the preflight predicted. A job on several GPUs needs "
        "a prediction for its GPU type, and there is none for l4. Create the job again, so that its preflight predicts "
        "this too."
    )
    both = world(A100, L4, predicted={"a100": (False, None)}, compute=compute)
    assert (
        "does not fit the GPU types that FineTuneProfile default has now: a100. A job on several GPUs needs a "
        "prediction for its GPU type, and there is none for l4. "
    ) in message(reconcile(both, NOW))


def test_a_named_type_is_used_also_if_it_is_not_the_cheapest() -> None:
    found = chosen(H100, L4, compute={"gpuType": "h100"})
    assert found == ("h100", "Requested", "spec.compute.gpuType names h100.")


def test_a_job_that_accepts_no_interruption_uses_a_spot_type_only_without_another() -> None:
    spot: dict[str, Any] = {**L4, "capacityType": "Spot"}
    strict = {"runPolicy": {"maxInterruptions": 0}}
    assert chosen(H100, spot)[0] == "l4"
    assert "the job continues from its checkpoint" in chosen(H100, spot)[2]
    name, _, said = chosen(H100, spot, **strict)
    assert name == "h100"
    assert "Spot types were left out, because spec.runPolicy.maxInterruptions is 0." in said
    assert chosen(H100, spot, predicted={"h100": (False, None), "l4": (True, None)}, **strict)[0] == "l4"
    assert chosen(H100, spot, compute={"gpuType": "l4"}, **strict)[0] == "l4"


def test_a_limit_on_the_cost_leaves_out_types_without_a_price() -> None:
    limited = {"runPolicy": {"budget": {"cost": "40"}}}
    assert chosen(without(L4, "pricePerHour"), H100, **limited)[0] == "h100"
    plan = reconcile(world(without(L4, "pricePerHour"), **limited), NOW)
    assert (state(plan), reason(plan)) == ("Pending", "WaitingForDependency")
    assert "spec.runPolicy.budget.cost: FineTuneProfile default has no pricePerHour" in message(plan)


def test_an_unknown_name_ends_the_job_before_its_first_pod_and_names_the_types_that_exist() -> None:
    unknown = replace(world(H100, L4, compute={"gpuType": "H100"}), preflight=None)
    plan = reconcile(unknown, NOW)
    assert (state(plan), reason(plan), plan.create) == ("Failed", "SpecInvalid", [])
    assert message(plan) == (
        'spec.compute.gpuType: FineTuneProfile default has no GPU type "H100". Its GPU types are h100, l4. Use one of '
        "these names, or remove spec.compute.gpuType: the job then uses the cheapest type that fits. Then create the "
        "job again."
    )


def test_a_job_with_several_gpus_uses_no_mig_instances_or_shared_gpus() -> None:
    part = L4 | {"resourceName": "nvidia.com/gpu.shared"}
    assert chosen(part, H100)[0] == "l4"
    assert chosen(part, H100, compute={"gpusPerNode": 2})[0] == "h100"


@pytest.mark.parametrize("named", [{}, {"gpuType": "l4"}])
def test_several_mig_instances_end_the_job_before_its_first_pod(named: dict[str, Any]) -> None:
    part = L4 | {"resourceName": "nvidia.com/mig-1g.10gb"}
    refused = replace(world(part, compute={"gpusPerNode": 2, **named}), preflight=None)
    plan = reconcile(refused, NOW)
    assert (state(plan), reason(plan), plan.create) == ("Failed", "SpecInvalid", [])
    assert message(plan).startswith(
        "spec.compute.gpusPerNode is 2, but in FineTuneProfile default the job may use only"
    )


def test_a_job_waits_if_its_type_left_the_profile_after_the_preflight_began() -> None:
    plan = reconcile(world(H100, compute={"gpuType": "l4"}), NOW)
    assert (state(plan), reason(plan), plan.create) == ("Pending", "WaitingForDependency", [])
    assert 'has no GPU type "l4"' in message(plan)


def test_a_job_waits_if_all_types_that_fit_left_the_profile() -> None:
    plan = reconcile(world(L4, predicted={"h100": (True, None), "l4": (False, None)}), NOW)
    assert (state(plan), reason(plan), plan.create) == ("Pending", "WaitingForDependency", [])
    assert "does not fit the GPU types that FineTuneProfile default has now: l4." in message(plan)


def trained(plan: Plan) -> dict[str, Any]:
    (job,) = [body for body in plan.create if body["kind"] == "Job"]
    return dict(job)


def test_the_attempt_requests_the_chosen_type_and_the_status_says_why() -> None:
    plan = reconcile(world(H100, A100, predicted={"h100": (True, None), "a100": (True, None)}), NOW)
    job, pod = trained(plan), trained(plan)["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"]["example.com/a100"] == resources["requests"]["example.com/a100"] == "1"
    assert "nvidia.com/gpu" not in resources["limits"]
    assert "nodeSelector" not in pod
    assert job["metadata"]["labels"][names.LABEL_GPU_TYPE] == "a100"
    assert {"name": names.GPU_TYPE_VARIABLE, "value": "a100"} in pod["containers"][0]["env"]
    assert plan.status is not None
    assert plan.status["attempts"][0]["pricePerHour"] == "1.60"
    assert plan.status["gpuType"] == {
        **A100,
        "reason": "Cheapest",
        "message": "a100 is the cheapest of the GPU types that fit: 1.60 for an hour.",
    }
    assert message(plan) == "The training pod is starting. The job requests GPU type a100."


def test_nothing_is_chosen_before_the_first_attempt() -> None:
    plan = reconcile(replace(fresh(), profile=world(H100, L4).profile), NOW)
    assert plan.status is not None
    assert "gpuType" not in plan.status


def test_later_attempts_use_the_type_as_it_is_in_the_profile_now_or_as_recorded_if_it_is_gone() -> None:
    begun = world(H100, L4)
    begun = with_status(begun, reconcile(begun, NOW - timedelta(hours=1)))
    ended = attempt(pod("Failed", exit_code=33, started=NOW - timedelta(hours=1), finished=NOW), failed=True)
    changed: dict[str, Any] = {
        **L4,
        "nodeSelector": {"other": "nodes"},
        "resourceName": "example.com/l4",
        "tolerations": [{"key": "l4"}],
        "pricePerHour": "0.90",
    }
    for types in ([H100, changed], [H100]):
        later = replace(begun, attempts={1: ended}, profile=world(*types).profile)
        later = with_status(later, reconcile(later, NOW))
        plan = reconcile(replace(later, attempts={}), NOW + timedelta(minutes=1))
        made = trained(plan)["spec"]["template"]["spec"]
        is_there = changed in types
        assert made["nodeSelector"] == (changed if is_there else L4)["nodeSelector"]
        assert ("example.com/l4" in made["containers"][0]["resources"]["limits"]) is is_there
        assert ("l4" in [toleration.get("key") for toleration in made["tolerations"]]) is is_there
        assert plan.status is not None
        assert plan.status["gpuType"]["name"] == "l4"
        # What an hour costs is what the profile says when the attempt starts.
        assert plan.status["attempts"][1]["pricePerHour"] == ("0.90" if is_there else "0.80")


def test_an_attempt_that_waits_takes_over_a_correction_when_it_is_suspended_and_resumed_and_this_costs_no_try() -> None:
    said = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    condition = PodCondition("False", "Unschedulable", said, None)
    strict = {"runPolicy": {"maxInterruptions": 0, "maxRetries": 0}}
    begun = world(H100, **strict)
    begun = with_status(begun, reconcile(begun, NOW))
    waits = replace(
        begun, attempts={1: attempt(pod("Pending", node_name=None, conditions={"PodScheduled": condition}))}
    )
    assert "set spec.suspend of the FineTuneJob to true, and to false when its state is Suspended." in message(
        reconcile(waits, NOW)
    )

    asleep = replace(waits, spec=world(H100, suspend=True, **strict).spec)
    stopped = reconcile(asleep, NOW)
    assert stopped.delete_jobs == ["tickets-12345678-a1"]
    gone = replace(with_status(asleep, stopped), attempts={})
    corrected = world({**H100, "nodeSelector": {"right": "nodes"}}, **strict)
    plan = reconcile(replace(gone, spec=corrected.spec, profile=corrected.profile), NOW)

    assert trained(plan)["spec"]["template"]["spec"]["nodeSelector"] == {"right": "nodes"}
    assert plan.status is not None
    assert plan.status["counts"] == {"attempts": 2, "reasons": {"Suspended": 1}}


def test_an_attempt_that_was_created_and_not_recorded_keeps_the_type_that_it_requested() -> None:
    made = run("tickets-12345678-a1", pod("Pending", node_name=None), gpu_type="h100")
    plan = reconcile(replace(world(H100, L4), attempts={1: made}), NOW)
    assert plan.status is not None
    assert plan.status["gpuType"]["name"] == "h100"
    assert plan.status["attempts"][0]["pricePerHour"] == "2.50"


def test_a_pod_that_waits_for_a_node_says_which_type_it_requests() -> None:
    condition = PodCondition("False", "Unschedulable", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", None)
    waiting = pod("Pending", node_name=None, conditions={"PodScheduled": condition})
    begun = world(H100, L4)
    begun = with_status(begun, reconcile(begun, NOW))
    plan = reconcile(replace(begun, attempts={1: attempt(waiting, gpu_type="l4")}), NOW)
    assert message(plan).endswith("The job requests GPU type l4.")
